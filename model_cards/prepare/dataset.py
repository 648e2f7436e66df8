"""Token data sets: stage the Parquet files and write their card."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from cellglot.model_cards.card.details import CardFacts, check_complete
from cellglot.model_cards.card.render import environment, tidy
from cellglot.model_cards.checks.clean_process import Outcome
from cellglot.model_cards.checks.stranger import ROWS
from cellglot.model_cards.prepare.staging import CORPUS_FILES, Prepared, Source, stage_code, stage_files
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.plan import SPLITS


# Meaning of columns; the others are metadata of the CELLxGENE schema.
COLUMNS = {
    "input_ids": "ids of the cell's gene tokens",
    "expression_values": "value of each token, as the model takes it: standardised, clipped, plus 1",
    "length": "number of tokens",
    "expression_total": "count that the values were scaled by",
    "clipped_counts": "counts of the genes whose value was clipped, in their order",
    "cell_id": "name of the cell in its file",
    "cell_index": "row of the cell in its file, from 0",
    "dataset_id": "data set of the cell; the file's name if the file has none",
    "donor_id": "donor",
    "cell_type": "label, as in the file",
    "cell_type_ontology_term_id": "Cell Ontology id of the label",
    "split": "train, validation or test",
}


@dataclass
class DatasetFacts(CardFacts):
    """Content of a card of a token data set; `features` are the columns and their types."""

    corpus: Corpus
    features: Features

    @property
    def splits(self) -> dict[str, list[dict[str, Any]]]:
        """Split -> its shards, without empty splits."""
        shards = self.corpus.manifest["shards"]
        found = {split: [s for s in shards if s["split"] == split and s["cells"]] for split in SPLITS}
        return {split: those for split, those in found.items() if those}

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """Name, type and meaning of each column."""
        return [
            (name, _type_text(kind), COLUMNS.get(name, "metadata of the cell")) for name, kind in self.features.items()
        ]

    @property
    def held_out(self) -> str:
        """How cells were held out, in words."""
        split = self.corpus.manifest["split"]
        by = "one by one" if split["by"] == "cell" else f"by whole groups of {split['by']}"
        return f"{by}, seed {split['seed']}"

    def command(self) -> str:
        """Return the command that tokenizes the files."""
        plan, split = self.corpus.manifest["plan"], self.corpus.manifest["split"]
        arguments, words = plan["arguments"], ["cellglot tokenize FILES"]
        words += ["--output", self.name, "--tokenizer", arguments["tokenizer"]]
        words += [f"--option {k}={str(v).lower() if isinstance(v, bool) else v}"
                  for k, v in arguments["tokenizer_options"].items()]  # fmt: skip
        words += [
            f"--{name} FILE" for name in ("vocabulary", "gene-table", "genes") if arguments[name.replace("-", "_")]
        ]
        renamed = {had: name for file in plan["files"] for name, had in file["metadata"].items() if had != name}
        words += [f"--rename {_quoted(f'{had}={name}')}" for had, name in renamed.items()]
        words += [f"--{name}-fraction {share:g}" for name, share in split["fractions"].items()]
        words += ["--shuffle"] * bool(arguments.get("shuffle"))
        return " ".join([*words, "--seed", str(split["seed"])])


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text


def _type_text(kind: Any) -> str:
    inner = getattr(kind, "feature", None)
    return f"list of {_type_text(inner)}" if inner is not None else str(getattr(kind, "dtype", kind))


def prepare_dataset(source: Source, target: Path) -> Prepared:
    """Stage a token data set of ``cellglot tokenize`` with its card.

    Raises
    ------
    ValueError
        If the corpus is unfinished or damaged, or the card is not complete.
    """
    corpus = Corpus.open(source.folder)
    first = source.folder / corpus.manifest["shards"][0]["file"]
    facts = DatasetFacts(source.repo, source.details, corpus, Features.from_arrow_schema(pq.read_schema(first)))
    mandatory = ["license", "training_data", "training_data_license"]
    check_complete({name: getattr(source.details, name) for name in mandatory}, mandatory)
    shards = [glob.escape(shard["file"]) for shard in corpus.manifest["shards"]]
    staged = stage_files(source.folder, target, (*CORPUS_FILES, *shards))
    stage_code(target / "tokenizer")
    (target / "README.md").write_text(render_dataset_card(facts), encoding="utf-8")
    Corpus.open(target)
    return Prepared(staged, {"kind": "dataset"}, _first_cells(corpus, facts))


def _first_cells(corpus: Corpus, facts: DatasetFacts) -> Outcome:
    """Read the first cells of each split from the corpus, with the names of `stranger.Visit`."""
    tokenizer = corpus.tokenizer()
    arrays: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    for split, shards in facts.splits.items():
        texts[f"{split}: features"] = {name: str(kind) for name, kind in facts.features.items()}
        rows = pq.ParquetFile(corpus.folder / shards[0]["file"]).iter_batches(batch_size=ROWS)
        for number, row in enumerate(next(rows).to_pylist()):
            for name, value in row.items():
                place = f"{split}: cell {number}: {name}"
                if isinstance(value, list):
                    arrays[place] = np.asarray(value)
                else:
                    texts[place] = value
            texts[f"{split}: cell {number}: genes"] = tokenizer.decode(row["input_ids"])
    return Outcome(arrays, texts, {}, {})


def render_dataset_card(facts: DatasetFacts) -> str:
    """Return the card of a token data set: YAML metadata and Markdown."""
    body = environment().get_template("dataset.md.jinja").render(
        facts=facts, details=facts.details, manifest=facts.corpus.manifest, splits=facts.splits
    )  # fmt: skip
    return f"---\n{dataset_card_data(facts).to_yaml()}\n---\n\n{tidy(body)}"


def dataset_card_data(facts: DatasetFacts) -> DatasetCardData:
    """Return the metadata of a data set: licence, files of each split, features and sizes."""
    details = facts.details
    cells = sum(shard["cells"] for shards in facts.splits.values() for shard in shards)
    data = DatasetCardData(
        pretty_name=facts.title,
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        tags=["cellglot", "single-cell", "scrna-seq", "biology", *details.tags],
        size_categories=size_category(cells),
        source_datasets=details.datasets or None,
    )
    data["configs"] = [
        {
            "config_name": "default",
            "data_files": [
                {
                    "split": split,
                    "path": [shard["file"] for shard in shards] if len(shards) < 20 else f"data/{split}-*",
                }
                for split, shards in facts.splits.items()
            ],
        }
    ]
    splits = SplitDict()
    for split, shards in facts.splits.items():
        splits.add(
            SplitInfo(split, num_bytes=sum(s["bytes"] for s in shards), num_examples=sum(s["cells"] for s in shards))
        )
    size = sum(s["bytes"] for shards in facts.splits.values() for s in shards)
    info = DatasetInfo(features=facts.features, splits=splits, download_size=size, dataset_size=size)
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return data


def size_category(number: int) -> str:
    """Return the Hub's category of a number of rows."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
              (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M")]  # fmt: skip
    return next((name for bound, name in bounds if number < bound), "100M<n<1B")


__all__ = [
    "COLUMNS", "DatasetFacts", "dataset_card_data", "prepare_dataset", "render_dataset_card", "size_category",
]  # fmt: skip
