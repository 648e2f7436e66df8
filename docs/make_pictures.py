"""The pictures of the documentation: runs the README's first Python block and shrinks the UMAP that it draws.

python docs/make_pictures.py
"""

import os
import re
import tempfile
from pathlib import Path

from PIL import Image


DOCS = Path(__file__).resolve().parent


def main() -> None:
    """Write docs/pictures/umap.png."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert block is not None, "README.md has no Python"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(block[1], "README.md", "exec"), {})
        picture = Image.open("umap.png").convert("RGB").quantize(128)
        picture.save(DOCS / "pictures" / "umap.png", optimize=True)
        os.chdir(DOCS)


if __name__ == "__main__":
    main()
