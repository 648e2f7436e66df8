"""Labels as people write them (``CD14+ Mono``, ``CD4 TCM``, ``cDC2``) -> cell types of the Cell Ontology."""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


SHORTHAND_FILE = Path(__file__).with_name("shorthand.tsv")

_WORD = re.compile(r"[a-z0-9]+(?:[+]+|-(?![a-z0-9]))?|/|[()&]|or\b")
_MINUS_WITHIN = re.compile(r"\b((?:cd\d+[a-z]?|cd45r[ao]|ig[admeg]))-(?=(?:cd\d|ig[admeg]\b))")
_STATE = re.compile(r"\b(?!CD\d)[A-Za-z0-9][A-Za-z0-9.-]* (?:high|hi|low|lo)\b", re.IGNORECASE)
_TISSUES = {"blood", "brain", "colon", "gut", "heart", "kidney", "liver", "lung", "pbmc", "skin", "spleen", "tumor"}
# Words that say nothing here, and other ways to write a word.
_SILENT = {"cell", "lymphocyte", "the", "human", "sorted"}
_WORDS = {
    "tcell": "t", "ts": "t", "bcell": "b", "nkcell": "nk", "monocyte": "mono", "macrophage": "mac", "mph": "mac",
    "mem": "memory", "regulatory": "reg", "classic": "classical", "conventional": "conv", "eff": "effector",
    "prolif": "proliferating", "cycling": "proliferating", "dividing": "proliferating", "mitotic": "proliferating",
    "act": "activated", "positive": "+", "pos": "+", "negative": "-", "neg": "-", "centre": "center",
    "haematopoietic": "hematopoietic", "intermed": "intermediate", "inter": "intermediate",
}  # fmt: skip
_PHRASES = (
    (re.compile(r"\bgamma[ -/]?delta\b|γδ|γ/δ"), "gd"),
    (re.compile(r"\balpha[ -/]?beta\b|αβ|α/β"), "ab"),
    (re.compile(r"\bnatural killer t\b"), "nkt"),
    (re.compile(r"\bnatural killer\b"), "nk"),
    (re.compile(r"\bnon[ -]?classic(?:al)?\b"), "nonclassical"),
    (re.compile(r"\bnon[ -]?switched\b"), "nonswitched"),
    (re.compile(r"\btissue[ -]resident\b"), "resident"),
    (re.compile(r"\bt[ -]?regs?\b"), "treg"),
    (re.compile(r"\beffector[ -]memory\b"), "em"),
    (re.compile(r"\bcentral[ -]memory\b"), "cm"),
    (re.compile(r"\bt[ -]?em\b"), "em t"),
    (re.compile(r"\bt[ -]?cm\b"), "cm t"),
    (re.compile(r"\bcd56[ -]?(?:bright|hi(?:gh)?)\b|\bcd56\+\+"), "cd56bright"),
    (re.compile(r"\bcd56[ -]?(?:dim|lo(?:w)?)\b"), "cd56dim"),
)


@dataclass(frozen=True)
class Shorthand:
    """The table of shorthand.

    Parameters
    ----------
    cell_types
        Key of a label (`shorthand_key`) -> id of the cell type.
    reasons
        Key of a label that does not mean a single cell type -> why.
    labels
        Id -> its labels in the table.
    """

    cell_types: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    def find(self, label: str) -> tuple[str | None, str]:
        """Return the id of a label's cell type, or None and why it has none (empty for an unknown label)."""
        for key in shorthand_keys(label):
            if key in self.cell_types:
                return self.cell_types[key], ""
            if key in self.reasons:
                return None, self.reasons[key]
        return None, ""


def shorthand_keys(label: str) -> list[str]:
    """Return the keys under which a label is looked up: of the whole label, then of its type only.

    Removed are the number of a cluster (``NK_2``), the tissue after the type (``Monocyte Liver``) and genes that are
    high or low (``T Cell GZMK_high``), but not CD markers.
    """
    words = _words(label)
    fewer = _words(_STATE.sub(" ", label.replace("_", " ")))
    if len(fewer) > 1 and fewer[-1] in _TISSUES:
        fewer = fewer[:-1]
    if len(fewer) > 1 and fewer[-1].isdigit():
        fewer = fewer[:-1]
    return [key for key in dict.fromkeys([_key(words), _key(fewer)]) if key]


def shorthand_key(label: str) -> str:
    """Return a label without differences of case, order of words, plurals, ``cell``, and plus signs of markers.

    ``Naive CD4+ T cells``, ``CD4 T naive`` and ``cd4_naive_t`` have the same key. An absent marker (``CD25-``) and a
    slash between types (``T/NK``) stay.
    """
    return _key(_words(label))


def _words(label: str) -> list[str]:
    text = unicodedata.normalize("NFKD", label)
    text = "".join(c for c in text if not unicodedata.combining(c)).casefold().replace("_", " ")
    for pattern, word in _PHRASES:
        text = pattern.sub(word, text)
    text = re.sub(r"(?<=[a-z0-9])[ -](?:positive|pos)\b", "+", text)
    text = re.sub(r"(?<=[a-z0-9])[ -](?:negative|neg)\b", "- ", text)
    if "+" in text or re.search(r"\w-(?:[\s,/)]|$)", text):  # signs of markers, so that a dash between two is one
        text = _MINUS_WITHIN.sub(r"\1- ", text)
    text = re.sub(r"([+-])\s*[/,]\s*", r"\1 ", text)  # CD4+/CD45RO+
    text = re.sub(r"(\++)(?=[a-z0-9])", r"\1 ", text)  # CD4+CD25+
    words = []
    for word in _WORD.findall(text):
        bare = word[:-1] if word.endswith("+") and not word.endswith("++") else word
        bare = bare[:-1] if len(bare) > 2 and bare.endswith("s") and not bare.endswith("ss") else bare
        bare = _WORDS.get(bare, bare)
        if bare not in _SILENT:
            words.append(bare)
    return words


def _key(words: list[str]) -> str:
    return " ".join(sorted(set(words)))


@cache
def read_shorthand() -> Shorthand:
    """Read the table of the package, once."""
    table = Shorthand()
    for line in SHORTHAND_FILE.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        cell_type, name, labels = line.split("\t")
        listed = labels.split(" | ")
        known: dict[str, str] = table.reasons if cell_type == "-" else table.cell_types
        known.update({shorthand_key(label): name if cell_type == "-" else cell_type for label in listed})
        if cell_type != "-":
            table.labels[cell_type] = listed
    return table


__all__ = ["Shorthand", "read_shorthand", "shorthand_key", "shorthand_keys"]
