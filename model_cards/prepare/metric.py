"""Preparation of metrics: an `evaluate` module as a Space, with its card."""

import ast
import functools
import importlib.metadata
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
from huggingface_hub import SpaceCardData

from cellglot.model_cards.card.details import CardError, CardFacts, check_complete
from cellglot.model_cards.card.render import environment, tidy
from cellglot.model_cards.checks.clean_process import visit_here
from cellglot.model_cards.prepare.staging import Prepared, Source, Staged, stage_files


METRIC_FILES = ("requirements.txt",)

# Kinds of predictions and references -> an example call.
EXAMPLE_CALLS: dict[tuple[str, str], dict[str, Any]] = {
    ("text", "text"): {
        "predictions": ["B cell", "T cell", "T cell", "monocyte", "monocyte"],
        "references": ["B cell", "T cell", "natural killer cell", "monocyte", "monocyte"],
    },
    ("number", "number"): {"predictions": [0.1, 1.9, 3.2, 3.9], "references": [0.0, 2.0, 3.0, 4.0]},
    ("numbers", "text"): {
        "predictions": [[0.2 * (cell % 3) + 2 * (cell % 2), 0.1 * cell] for cell in range(20)],
        "references": ["monocyte" if cell % 2 else "B cell" for cell in range(20)],
    },
    ("numbers", "numbers"): {
        "predictions": [[0.9, 0.2, 0.4, 0.1], [0.3, 0.8, 0.1, 0.7]],
        "references": [[1, 0, 1, 0], [0, 1, 0, 0]],
    },
}


@dataclass
class MetricFacts(CardFacts):
    """Content of a card of a metric.

    Parameters
    ----------
    description, inputs, links
        Texts of the module.
    call, result, versions
        Arguments, result and software of an example.
    """

    description: str
    inputs: str
    links: list[str]
    call: dict[str, Any]
    result: dict[str, Any]
    versions: str

    @property
    def title(self) -> str:
        """Heading of the card."""
        words = self.name.replace("_", " ").replace("-", " ").capitalize()
        return self.details.title or words.replace("auroc", "AUROC")


def prepare_metric(source: Source, target: Path) -> Prepared:
    """Stage a metric, a module with the name of its folder, with its card and a page to try it.

    Raises
    ------
    ValueError
        If the module is not a metric, its kinds of inputs are unsupported, or the card is not complete.
    """
    folder = source.folder.resolve()
    check_complete({"license": source.details.license}, ["license"])
    module = evaluate.load(str(folder))
    call = _example_call(module)
    code = f"{folder.name}.py"
    staged = stage_files(folder, target, (*METRIC_FILES, code))
    # `evaluate` looks for a module with the name of the repository.
    (target / code).rename(target / f"{target.name}.py")
    job = {"kind": "metric", "calls": [call]}
    before = visit_here(job | {"folder": str(folder)})
    facts = MetricFacts(
        repo=source.repo,
        details=source.details,
        description=module.description.strip(),
        inputs=module.inputs_description.strip(),
        links=list(module.info.reference_urls),
        call=call,
        result=module.compute(**call),
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in _packages(folder / code)),
    )
    _write_space(staged, facts, folder / code)
    return Prepared(staged, job, before)


def _example_call(module: Any) -> dict[str, Any]:
    features = module.features[0] if isinstance(module.features, list) else module.features
    kinds = tuple(_kind(features[name]) if name in features else "" for name in ("predictions", "references"))
    if kinds not in EXAMPLE_CALLS or len(features) != 2:
        raise CardError(
            f"the metric has the inputs {dict(features)}: only predictions and references are supported, each text, "
            "numbers or lists of numbers"
        )
    return EXAMPLE_CALLS[kinds]


def _kind(feature: Any) -> str:
    if hasattr(feature, "feature"):
        return "numbers"
    return "text" if feature.dtype == "string" else "number"


def _packages(code: Path) -> list[str]:
    """Return the distributions that a module imports, without the standard library."""
    tree = ast.parse(code.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    known = _distributions()
    return sorted({known[name][0] for name in names - sys.stdlib_module_names if name in known})


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the distributions that are installed, by the packages they bring; looking takes a second or more."""
    return importlib.metadata.packages_distributions()


def _write_space(staged: Staged, facts: MetricFacts, code: Path) -> None:
    target = staged.folder
    if not (target / "requirements.txt").exists():
        (target / "requirements.txt").write_text("\n".join(_packages(code)) + "\n", encoding="utf-8")
    (target / "app.py").write_text(environment().get_template("metric_app.py.jinja").render(name=facts.name))
    (target / "README.md").write_text(render_metric_card(facts), encoding="utf-8")
    shutil.rmtree(target / "__pycache__", ignore_errors=True)


def render_metric_card(facts: MetricFacts) -> str:
    """Return the card of a metric: the metadata of a Space, and Markdown."""
    arguments, _, results = facts.inputs.partition("Returns:")
    body = environment().get_template("metric.md.jinja").render(
        facts=facts,
        details=facts.details,
        arguments=_entries(arguments.removeprefix("Args:")),
        results=_entries(results),
        call=",\n    ".join(f"{name}={_rounded(value)}" for name, value in facts.call.items()),
        output=json.dumps(facts.result, indent=1),
    )  # fmt: skip
    return f"---\n{metric_card_data(facts).to_yaml()}\n---\n\n{tidy(body)}"


def _rounded(values: list[Any]) -> str:
    """Return the arguments of a call as text with few digits."""
    short = json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 3))
    return json.dumps(short, ensure_ascii=False)


def _entries(text: str) -> list[tuple[str, str]]:
    """Split a list of ``name: meaning`` into pairs; lines with a deeper indent continue the one before."""
    entries: list[tuple[str, str]] = []
    for line in text.strip("\n").splitlines():
        name, separator, meaning = line.strip().partition(": ")
        if separator and len(line) - len(line.lstrip()) <= 4:
            entries.append((name, meaning))
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    return entries


def metric_card_data(facts: MetricFacts) -> SpaceCardData:
    """Return the metadata of a metric's Space."""
    data = SpaceCardData(
        title=facts.title,
        sdk="gradio",
        app_file="app.py",
        license=facts.details.license,
        tags=["evaluate", "metric", "cellglot", "single-cell", *facts.details.tags],
        pinned=False,
    )
    data["short_description"] = textwrap.shorten(facts.description.split(". ")[0], 60, placeholder=" ...")
    return data


__all__ = ["EXAMPLE_CALLS", "MetricFacts", "metric_card_data", "prepare_metric", "render_metric_card"]
