"""Details of a card that people add: licences, origin of the data, names on the Hub."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellglot.inputs import InputError, read_yaml
from cellglot.training.config import check_keys


CARD_FILE = "card.yaml"

# Identifiers of the Hub, which refuses cards with others.
LICENSES = (
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "odc-by", "odbl", "pddl",
    "openrail", "openrail++", "bigscience-openrail-m", "bigcode-openrail-m", "creativeml-openrail-m", "afl-3.0",
    "agpl-3.0", "artistic-2.0", "bsl-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mpl-2.0", "ms-pl",
    "ncsa", "ofl-1.1", "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib", "other",
)  # fmt: skip


class CardError(ValueError):
    """A mandatory field of a card is empty, or a field has an unsupported value."""


@dataclass
class CardDetails:
    """Details that a person adds to the facts in the files; all are fields of ``card.yaml`` in the model's folder.

    Parameters
    ----------
    license
        The Hub's identifier, such as ``apache-2.0``; ``other`` needs `license_name` and `license_link`.
    license_name, license_link
        Name and address of a licence that is ``other``.
    training_data
        Origin of the cells, in one or several sentences.
    training_data_license
        Terms of the cells.
    datasets
        Data sets on the Hub that the cells come from.
    base_model
        Repository of the model that was fine-tuned.
    base_model_relation
        ``finetune``, or ``merge`` for a merged adapter; by default as recorded.
    ontology_release
        Release of the Cell Ontology, if the training record has none.
    title
        Heading; by default from the name of the repository.
    summary
        One or two sentences at the top.
    authors
        Authors of the model or the data set.
    results
        Additional results, as Markdown.
    uses, limits, tags
        Additional uses, limits and tags.
    citation
        BibTeX, in addition to that of the paper.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    training_data: str | None = None
    training_data_license: str | None = None
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    base_model_relation: str | None = None
    ontology_release: str | None = None
    title: str | None = None
    summary: str | None = None
    authors: str | None = None
    results: str | None = None
    uses: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    citation: str | None = None

    def check(self) -> None:
        """Check licence and relation to the base model.

        Raises
        ------
        CardError
            If the Hub does not support one of them.
        """
        if self.base_model_relation not in (None, "finetune", "merge"):
            raise CardError(f"base_model_relation {self.base_model_relation!r} must be finetune or merge")
        if self.license is None:
            return
        if self.license not in LICENSES:
            close = difflib.get_close_matches(self.license.lower().replace(" ", "-"), LICENSES, n=1, cutoff=0.5)
            meant = f"did you mean {close[0]!r}? Otherwise" if close else "for another licence"
            raise CardError(
                f"license {self.license!r} is not an identifier of the Hub: {meant} pass 'other', with license_name "
                f"and license_link in {CARD_FILE}"
            )
        if self.license == "other" and not (self.license_name and self.license_link):
            raise CardError(f"license 'other' needs license_name and license_link in {CARD_FILE}")


@dataclass
class CardFacts:
    """Facts of every card: the repository (``owner/name``, or the folder's name) and the details of a person."""

    repo: str
    details: CardDetails

    @property
    def name(self) -> str:
        """Name of the repository without its owner."""
        return self.repo.split("/")[-1]

    @property
    def title(self) -> str:
        """Heading of the card."""
        return self.details.title or self.name


def read_details(folder: str | Path, file: str | Path | None = None, **given: Any) -> CardDetails:
    """Read the details of a card from a file and from options, which take precedence.

    Parameters
    ----------
    file
        By default ``card.yaml`` in `folder`, if it exists.
    **given
        Fields of `CardDetails`; None and empty ones are ignored.
    """
    path = Path(folder, CARD_FILE) if file is None else Path(file)
    if file is not None and not path.is_file():
        raise FileNotFoundError(f"{path} with the details of the card does not exist")
    content: Any = {}
    if path.is_file():
        try:
            content = read_yaml(path) or {}
        except InputError as error:
            raise CardError(str(error)) from error
    if not isinstance(content, dict):
        raise CardError(f"{path} must contain fields, such as license: apache-2.0")
    check_keys(content, [f.name for f in dataclasses.fields(CardDetails)], f"{path}: field")
    merged = {name: _typed(path, name, value) for name, value in content.items() if value is not None}
    merged |= {name: value for name, value in given.items() if value}
    details = CardDetails(**merged)
    details.check()
    return details


def _typed(path: Path, name: str, value: Any) -> Any:
    wanted = {f.name: f.type for f in dataclasses.fields(CardDetails)}[name]
    if wanted == list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise CardError(f"{path}: {name} must be a list of texts, not {value!r}")
        return values
    if not isinstance(value, str | int | float):
        # YAML reads 2024-04-05 as a date.
        if hasattr(value, "isoformat"):
            return value.isoformat()
        raise CardError(f"{path}: {name} must be a text, not {value!r}")
    return str(value).strip()


HOW_TO_GIVE = {
    "license": ("--license", "the Hub's identifier, such as apache-2.0"),
    "training_data": ("--training-data", "where the cells come from"),
    "training_data_license": ("--training-data-license", "the terms of the cells, such as 'CC BY 4.0'"),
    "base_model": ("--base-model", "the repository of the model that was fine-tuned, owner/name"),
    "ontology_release": ("--ontology-release", "the release of the Cell Ontology, such as 2024-04-05"),
}


def check_complete(values: dict[str, Any], mandatory: Sequence[str]) -> None:
    """Refuse a card with empty mandatory fields."""
    ways = {name: HOW_TO_GIVE[name] for name in mandatory if not values.get(name)}
    if ways:
        said = "; ".join(
            f"{name}, {what} ({option}, or {name} in {CARD_FILE})" for name, (option, what) in ways.items()
        )
        raise CardError(f"the card is not complete, nothing was published. Missing: {said}")


__all__ = ["CARD_FILE", "CardDetails", "CardError", "CardFacts", "HOW_TO_GIVE", "check_complete", "read_details"]
