"""References for `cellglot map`: stage the folder as a data set, and write its card."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features
from huggingface_hub import DatasetCardData

from cellglot.evaluation.mapping.reference import CELLS_FILE, RECORD_FILE, Reference
from cellglot.model_cards.card.details import CardFacts, check_complete
from cellglot.model_cards.card.render import environment, tidy
from cellglot.model_cards.checks.clean_process import Outcome
from cellglot.model_cards.checks.stranger import ROWS
from cellglot.model_cards.prepare.dataset import size_category
from cellglot.model_cards.prepare.staging import Prepared, Source, stage_files, write_json


@dataclass
class IndexFacts(CardFacts):
    """Facts of the card of a reference.

    Parameters
    ----------
    reference
        The reference.
    model
        Name of its model, as others can load it.
    size
        Bytes of its files.
    """

    reference: Reference
    model: str
    size: int

    @property
    def on_the_hub(self) -> bool:
        """Whether the model's name is that of a repository."""
        return "/" in self.model


def prepare_index(source: Source, target: Path) -> Prepared:
    """Stage a reference with its card.

    Raises
    ------
    ValueError
        If the reference is damaged, its model is a folder of this machine and no repository is named for it, or the
        card is not complete.
    """
    reference, details = Reference.open(source.folder), source.details
    model = details.base_model or ("" if os.path.isabs(reference.model.name) else reference.model.name)
    mandatory = ["license", "training_data", "training_data_license", "base_model"]
    given = {name: getattr(details, name) for name in mandatory} | {"base_model": model}
    check_complete(given, mandatory)
    staged = stage_files(source.folder, target, (RECORD_FILE, *reference.record["files"]))
    record = dict(reference.record, license=details.license)
    write_json(target / RECORD_FILE, record | {"model": dict(record["model"], name=model)})
    size = sum(staged.files.values())
    facts = IndexFacts(source.repo, details, reference, model, size)
    (target / "README.md").write_text(render_index_card(facts), encoding="utf-8")
    Reference.open(target)
    return Prepared(staged, {"kind": "index"}, _first_cells(reference))


def _first_cells(reference: Reference) -> Outcome:
    """Read the first cells of the reference, with the names of `stranger.Visit`."""
    arrays: dict[str, Any] = {"embeddings": reference.vectors[:ROWS].astype("float32")}
    texts: dict[str, Any] = {}
    file = pq.ParquetFile(reference.folder / CELLS_FILE)
    texts["features"] = {name: str(kind) for name, kind in Features.from_arrow_schema(file.schema_arrow).items()}
    for number, row in enumerate(next(file.iter_batches(batch_size=ROWS)).to_pylist()):
        for name, value in row.items():
            place = f"cell {number}: {name}"
            if isinstance(value, float | int):
                arrays[place] = value
            else:
                texts[place] = value
    return Outcome(arrays, texts, {}, {})


def render_index_card(facts: IndexFacts) -> str:
    """Return the card of a reference: YAML metadata and Markdown."""
    details = facts.details
    data = DatasetCardData(
        pretty_name=facts.title,
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        tags=["cellglot", "single-cell", "scrna-seq", "biology", "embeddings", *details.tags],
        size_categories=size_category(len(facts.reference)),
        source_datasets=details.datasets or None,
    )
    data["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": CELLS_FILE}]}]
    body = environment().get_template("index.md.jinja").render(
        facts=facts, details=details, record=facts.reference.record
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{tidy(body)}"


__all__ = ["IndexFacts", "prepare_index", "render_index_card"]
