"""docs/studies/benchmarks.md from what the benchmarks wrote into benchmarks/results.

python benchmarks/write_docs.py
"""

import json
from pathlib import Path
from typing import Any

from measure import table


HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "studies" / "benchmarks.md"

INTRODUCTION = """# Speed and memory

Every benchmark compares with the straightforward way in the same run, the two taking turns. This page is written by
`python benchmarks/write_docs.py` from what `make benchmark` left in `benchmarks/results`. Timings never decide a test.
"""


def section(record: dict[str, Any]) -> str:
    machine = record["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, torch {machine['torch']}"
    parts = [f"## {record['benchmark'].replace('_', ' ')}", f"`{record['command']}`, {record['date']}, {where}."]
    parts.append(table(record["results"]))
    if record.get("targets"):
        parts.append(table(record["targets"]))
    return "\n\n".join(parts)


def main() -> None:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "results").glob("*.json"))]
    PAGE.write_text("\n\n".join([INTRODUCTION.strip(), *map(section, records)]) + "\n", encoding="utf-8")
    print(f"{PAGE}: {len(records)} benchmarks")


if __name__ == "__main__":
    main()
