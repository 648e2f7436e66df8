"""A model as a component of openproblems' task label projection: ``config.vsh.yaml`` and ``script.py`` for viash."""

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cellglot.outputs import write_text


TEMPLATES = Path(__file__).with_name("openproblems")
FILES = ("config.vsh.yaml", "script.py")


@dataclass
class ComponentExport:
    """Files of a component.

    Parameters
    ----------
    name
        Of the method.
    files
        Names of the written files.
    """

    name: str
    files: tuple[str, ...]

    def summary(self) -> str:
        """Say where the files go."""
        return (
            f"{', '.join(self.files)} of the method {self.name}: copy the folder to src/methods/{self.name} of "
            "openproblems' task_label_projection, and run viash test src/methods/"
            f"{self.name}/config.vsh.yaml"
        )


def method_name(model: str) -> str:
    """Return the name of a method: ``cellglot_`` and the model in small letters, digits and underscores."""
    return "cellglot_" + re.sub(r"[^a-z0-9]+", "_", model.rstrip("/").rpartition("/")[2].lower()).strip("_")


def write_component(folder: Path, model: str, doi: str) -> ComponentExport:
    """Write the files of a component.

    Parameters
    ----------
    folder
        Where to write.
    model
        The model as the script names it.
    doi
        Of the paper of the model's family.
    """
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    name = method_name(model)
    given = {"name": name, "label": f"cellglot {model.rstrip('/').rpartition('/')[2]}", "model": model, "doi": doi}
    for file in FILES:
        write_text(folder / file, pages.get_template(f"{file}.jinja").render(given))
    return ComponentExport(name, FILES)


__all__ = ["ComponentExport", "method_name", "write_component"]
