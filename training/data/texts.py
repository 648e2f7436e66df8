"""The texts of the cells of a corpus, and a tokenizer of their words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizerFast

from cellglot.modeling.cell_losses import IGNORED
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import read_columns
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.ontology.descriptions import ASPECTS, ORGAN_COLUMNS, describe_cells
from cellglot.tokenization.ontology.labels import CellLabelReport
from cellglot.tokenization.reading.labels import label_text
from cellglot.training.data.cell_types import LABEL_COLUMNS
from cellglot.training.data.labels import label_counts, label_rows


MOST_WORDS = 30_000
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Values = tuple[str | None, ...]


@dataclass
class CorpusTexts:
    """Texts of the cells of a corpus.

    Parameters
    ----------
    columns
        Columns that the texts are made of.
    texts
        The different texts; a text's position is its id.
    text_of
        Values of `columns` -> text id, -100 for none.
    left_out
        Values of `columns` of cells that are left out.
    cells
        Split -> text id -> number of cells that are not left out; -100 is for cells without a text.
    cells_left_out
        Split -> number of cells left out.
    aspects
        Aspects that appear in a text.
    labels
        How the cell type labels of all training cells were resolved, also of those left out.
    """

    columns: list[str]
    texts: list[str]
    text_of: dict[Values, int]
    left_out: set[Values]
    cells: dict[str, Counter[int]]
    cells_left_out: dict[str, int]
    aspects: list[str]
    labels: CellLabelReport

    def without_text(self, split: str) -> int:
        """Count the cells of a split that have no text."""
        return self.cells[split][IGNORED]

    def ids(self, split: str) -> list[int]:
        """Return the sorted ids of the texts of a split."""
        return sorted(i for i in self.cells[split] if i != IGNORED)

    def keep(self, corpus: Corpus, split: str) -> np.ndarray | None:
        """Return whether each cell of a split is kept, shape (cells,); None if all are."""
        if not self.left_out:
            return None
        return np.array([values not in self.left_out for values in label_rows(corpus, split, self.columns)])

    def summary(self) -> str:
        """Return a text for the user: number of texts, their aspects, and cells without a text."""
        aspects = ", ".join(self.aspects) or "none"
        lines = [
            f"{len(self.ids('train')):,} different texts of training cells (aspects: {aspects}); cells without one: "
            f"{self.without_text('train'):,} for training, {self.without_text('validation'):,} held out"
        ]
        if self.left_out:
            train, held_out = self.cells_left_out["train"], self.cells_left_out["validation"]
            lines.append(f"left out by data.leave_out: {train:,} cells for training, {held_out:,} held out")
        return "\n".join([*lines, self.labels.summary()])


def texts_of(
    corpus: Corpus,
    ontology: CellOntology,
    *,
    aspects: Sequence[str] = tuple(ASPECTS),
    label_columns: Sequence[str] = LABEL_COLUMNS,
    leave_out: Sequence[str] = (),
    **options: Any,
) -> CorpusTexts:
    """Describe the cells of a corpus by their metadata; each combination of values once.

    Parameters
    ----------
    label_columns
        Columns of the cell type; the first value that is not missing is used.
    leave_out
        Cell types by id, name or synonym, or labels that the ontology does not know. Cells of these types, of types
        below them, and of these labels are left out.
    aspects, **options
        As for `describe_cells`.
    """
    present = read_columns(corpus.shards("train")[0])
    wanted = list(label_columns) if "cell type" in aspects or leave_out else []
    for aspect in (a for a in aspects if a in ASPECTS and a != "cell type"):
        names = ORGAN_COLUMNS if aspect == "organ" else ASPECTS[aspect]
        wanted += [*names, *(f"{name}_ontology_term_id" for name in names)]
    columns = [c for c in dict.fromkeys(wanted) if c in present]
    labelled = [c for c in label_columns if c in columns]
    counts = {split: label_counts(corpus, split, columns) for split in ("train", "validation")}
    combinations = sorted({v for c in counts.values() for v in c}, key=lambda v: [x or "" for x in v])
    frame = pd.DataFrame(combinations, columns=columns, dtype=object)
    labels = [_first(values[: len(labelled)]) for values in combinations]
    if set(labelled) - set(LABEL_COLUMNS):
        frame = frame.drop(columns=labelled).assign(cell_type=np.array(labels, dtype=object))
    described = describe_cells(frame, ontology, aspects=aspects, **options)
    text_of = dict(zip(combinations, described.text_ids.tolist(), strict=True))
    left_out = _left_out(combinations, labels, ontology, leave_out)
    kept: dict[str, Counter[int]] = {}
    for split, of_split in counts.items():
        kept[split] = Counter()
        for values, n in of_split.items():
            if values not in left_out:
                kept[split][text_of[values]] += n
    if left_out and not kept["train"]:
        raise ValueError(f"data.leave_out {list(leave_out)} leaves no training cell of {corpus.folder}")
    numbers: Counter[str] = Counter()
    for values, label in zip(combinations, labels, strict=True):
        numbers[label or ""] += counts["train"][values]
    return CorpusTexts(
        columns=columns,
        texts=described.texts,
        text_of=text_of,
        left_out=left_out,
        cells=kept,
        cells_left_out={s: sum(n for v, n in c.items() if v in left_out) for s, c in counts.items()},
        aspects=[a for a, n in described.aspects.items() if n],
        labels=ontology.resolve(numbers).report,
    )


def _first(values: Iterable[str | None]) -> str | None:
    return next((v for v in values if v), None)


def _left_out(
    combinations: Sequence[Values], labels: Sequence[str | None], ontology: CellOntology, leave_out: Sequence[str]
) -> set[Values]:
    if isinstance(leave_out, str):
        raise ValueError(f"data.leave_out {leave_out!r} is not a list: write [{leave_out}]")
    if not leave_out:
        return set()
    types = dict(zip(labels, ontology.resolve(labels).cell_types, strict=True))
    gone: set[str | None] = set()
    for name in leave_out:
        of_name = ontology.resolve([name]).cell_types[0]
        below = set() if of_name is None else {of_name, *ontology.descendants(of_name)}
        found = {label for label, t in types.items() if label is not None and (label == name or t in below)}
        if not found:
            raise ValueError(f"data.leave_out {name!r}: the corpus has no cell of this type")
        gone |= found
    return {values for values, label in zip(combinations, labels, strict=True) if label in gone}


def row_values(example: Mapping[str, Any], columns: Sequence[str]) -> Values:
    """Return the values of a cell in some columns: a key of `CorpusTexts.text_of`."""
    return tuple(label_text(example.get(column)) for column in columns)


def word_tokenizer(texts: Iterable[str], longest: int = 512, most_words: int = MOST_WORDS) -> BertTokenizerFast:
    """Make a BERT tokenizer of the words of some texts, if there is no pretrained text encoder. Our choice.

    The vocabulary is the most frequent words, in lower case, and all characters, to spell other words.

    Parameters
    ----------
    longest
        Maximum number of tokens of a text.
    """
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts = Counter(w for t in texts for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    signs = sorted({sign for word in counts for sign in word} | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:most_words]
    vocabulary = dict.fromkeys([*SPECIAL_TOKENS, *signs, *(f"##{sign}" for sign in signs), *words])
    return BertTokenizerFast(
        vocab={word: i for i, word in enumerate(vocabulary)}, do_lower_case=True, model_max_length=longest
    )


__all__ = ["CorpusTexts", "row_values", "texts_of", "word_tokenizer"]
