"""Evaluations of a model of the collection in its folder: ``evaluation.json``, tables and metadata of its card.

The studies of docs/evaluation leave records of ``cellglot evaluate``, each with several models. A record belongs to
the weights that it was computed with.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from cellglot.inputs import read_json
from cellglot.model_cards.card.evaluation import (
    EVALUATION_FILE,
    SEVERAL,
    ModelEvaluation,
    evaluation_of,
    file_content,
)
from cellglot.model_cards.card.render import environment, eval_result, listed_results, metric_types, tidy
from cellglot.outputs import sha256, write_json, write_text


WEIGHTS = "file_sha256"  # of the file of weights, in the facts of a model in a record
CARD = "README.md"
BEGIN, END = "<!-- evaluations -->", "<!-- end of evaluations -->"
NEXT = "## As published, and our choice"  # heading after the results


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return file name -> content of the records in a folder, in their ``order``.

    Raises
    ------
    ValueError
        If the folder does not exist or has no ``.json``, or a file is not such a record.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise ValueError(f"{folder} has no records of evaluations (*.json): run benchmarks/evaluation_tables.py")
    records = {path.name: read_json(path) for path in files}
    for name, content in records.items():
        lacking = [field for field in ("title", "models", "results", "data") if field not in content]
        if lacking:
            raise ValueError(f"{Path(folder, name)} is not a record of an evaluation: it has no {', '.join(lacking)}")
    return dict(sorted(records.items(), key=lambda item: (item[1].get("order", 0), item[0])))


def kept_records(model: Path) -> dict[str, dict[str, Any]]:
    """Return title -> content of the evaluations in the folder of a model; empty if it has none."""
    path = model / EVALUATION_FILE
    if not path.is_file():
        return {}
    return {str(content["title"]): content for content in read_json(path).get(SEVERAL, [])}


def put_evaluations(model: Path, records: Mapping[str, dict[str, Any]]) -> list[str]:
    """Write the evaluations of a model into its folder; earlier ones are replaced.

    Parameters
    ----------
    model
        Folder of a model of the collection.
    records
        Name -> content; those without the model are left out.

    Returns
    -------
    list of str
        A line for each record of the model: added, or left out because it is of other weights.
    """
    own = sha256(next(iter(sorted(model.glob("*model.safetensors")))))
    said, found = [], []
    for name, content in records.items():
        facts = content["models"].get(model.name)
        if facts is None:
            continue
        if facts.get(WEIGHTS) != own:
            said.append(f"{name} is left out: it was computed with other weights of {model.name}")
            continue
        found.append(evaluation_of(content, name, model.name, model.name))
        said.append(f"{name}: {len(found[-1].results)} scores")
    path, card = model / EVALUATION_FILE, model / CARD
    if found:
        write_json(path, file_content(found), indent=None)
    else:
        path.unlink(missing_ok=True)
    write_text(card, card_with(card.read_text(encoding="utf-8"), model.name, found))
    return said


def card_with(card: str, name: str, evaluations: Sequence[ModelEvaluation]) -> str:
    """Return the card of a model with these evaluations in results and metadata, in place of those that it has."""
    content = ModelCard(card)
    data: Any = content.data  # ModelCardData; the library says CardData
    body = content.text
    body = re.sub(rf"\n*{BEGIN}.*?{END}\n*", "\n\n", body, flags=re.S)
    before, heading, after = body.partition(NEXT)
    if not heading:
        raise ValueError(f"the card has no heading {NEXT!r}: build the model again")
    section = environment().get_template("evaluations.jinja").make_module().section(evaluations)
    earlier = [result for result in data.eval_results or [] if result.dataset_name.endswith(", held-out cells")]
    listed = listed_results(evaluations)
    data.eval_results = [*earlier, *(eval_result(str(data.pipeline_tag), result) for result in listed)] or None
    data.model_name = name if data.eval_results else None
    metrics = sorted({*(result.metric_type for result in earlier), *metric_types(listed)})
    data.metrics = metrics or None
    whole = tidy(f"{before}\n{section}\n{heading}{after}")
    return f"---\n{data.to_yaml()}\n---\n\n{whole}"


def lines(model: str, said: Iterable[str]) -> str:
    """Return what was added to a model, as text."""
    return "\n".join(f"{model}: {line}" for line in said) or f"{model}: no evaluation has it"


__all__ = ["BEGIN", "END", "WEIGHTS", "card_with", "kept_records", "lines", "put_evaluations", "read_records"]
