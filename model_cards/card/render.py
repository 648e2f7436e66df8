"""Cards of models and adapters: templates filled with facts, and the metadata of the Hub."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from cellglot.evaluation.judges.names import JUDGES
from cellglot.model_cards.card.details import check_complete
from cellglot.model_cards.card.evaluation import ModelEvaluation
from cellglot.model_cards.card.example_cells import MOST_GENES
from cellglot.model_cards.card.facts import Example, ModelFacts
from cellglot.model_cards.card.run_record import Result, TrainingRun


# Metric -> name on the Hub.
_METRIC_TYPES = {"macro_f1": "f1"}

_PURPOSES = {
    "embedding": "embeds cells",
    "cell classification": "classifies cells",
    "multi-label classification": "gives cells labels, any number at the same time",
    "gene classification": "classifies the genes of cells",
    "regression": "predicts a value of each cell",
    "zero-shot annotation": "embeds cells and texts, and names cell types from descriptions",
}


def render_model_card(facts: ModelFacts) -> str:
    """Return the card of a model or an adapter: YAML metadata and Markdown.

    Raises
    ------
    CardError
        If a mandatory field is empty.
    """
    check_complete(facts.mandatory_values(), facts.mandatory())
    template = "adapter.md.jinja" if facts.adapter is not None else "model.md.jinja"
    body = environment(facts).get_template(template).render(
        facts=facts,
        lead=_lead(facts),
        overview=_overview(facts),
        auto_classes=_auto_classes(facts),
        uses=_uses(facts),
        our_choice=_our_choice(facts),
        limits=_limits(facts),
        most_genes=MOST_GENES,
        weight_size=size_text(facts.weight_bytes),
    )  # fmt: skip
    return f"---\n{model_card_data(facts).to_yaml()}\n---\n\n{tidy(body)}"


def environment(facts: ModelFacts | None = None) -> jinja2.Environment:
    """Return the environment of the templates, with their filters; `facts` are for the commands of a model's runs."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("cellglot.model_cards", "templates"),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    made.filters |= {
        "cell": cell_text,
        "dataset_links": dataset_links,
        "one_line": lambda text: " ".join(str(text).split()),
        "output": output_text,
        "size": size_text,
        "tojson": lambda value: json.dumps(value, ensure_ascii=False),
        "value": value_text,
    }
    if facts is not None:
        made.filters["command"] = lambda run: run_command(facts, run)
    return made


def run_command(facts: ModelFacts, run: TrainingRun) -> str:
    """Return the command of a run with the names of the published models."""
    last = run is facts.runs[-1]
    return run.command(facts.name if last else facts.base_name or "base_model", facts.base_model or facts.base_name)


def dataset_links(names: Sequence[str]) -> str:
    """Return links to data sets of the Hub."""
    return ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in names)


def output_text(example: Example) -> str:
    """Return the first values of an output, and their number, as text."""
    more = f", ...] ({example.size:,} values)" if example.size > len(example.values) else "]"
    return "[" + ", ".join(f"{value:g}" for value in example.values) + more


def cell_text(text: Any) -> str:
    """Return a text for a cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def value_text(result: Result) -> str:
    """Return a score with its interval, if any, as text."""
    interval = "" if result.low is None or result.high is None else f" ({result.low:.3f} to {result.high:.3f})"
    return f"{result.value:.3f}{interval}"


def size_text(number: int) -> str:
    """Return a number of bytes as text, such as ``1.2 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number} bytes"


def tidy(text: str) -> str:
    """Remove repeated empty lines, and blanks at the ends of lines."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept) + "\n"


# -------------------------------------------------------------------- metadata


def model_card_data(facts: ModelFacts) -> ModelCardData:
    """Return the metadata of a model or an adapter for the Hub."""
    details, adapter = facts.details, facts.adapter is not None
    tags = ["cellglot", "single-cell", "scrna-seq", "biology", *facts.system.tags, *details.tags]
    tags += ["peft", str(facts.adapter.get("peft_type", "")).lower()] if facts.adapter is not None else []
    known = facts.results + listed_results(facts.evaluations)
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=facts.pipeline_tag,
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        base_model=facts.base_model,
        datasets=details.datasets or None,
        metrics=metric_types(known) or None,
        tags=[tag for tag in tags if tag],
        model_name=facts.name,
        eval_results=[eval_result(facts.pipeline_tag, r) for r in known] or None,
    )
    if facts.base_model and facts.relation:
        data["base_model_relation"] = facts.relation
    if facts.examples:
        data["widget"] = [_widget(facts, example) for example in facts.examples]
    if not known:
        data.pop("model_name")
    return data


def listed_results(evaluations: Sequence[ModelEvaluation]) -> list[Result]:
    """Return the scores of evaluations that the metadata lists: all but those of judges, which tables have."""
    return [result for own in evaluations for result in own.results if result.task not in JUDGES]


def metric_types(results: Sequence[Result]) -> list[str]:
    """Return the names of metrics on the Hub, sorted."""
    return sorted({_METRIC_TYPES.get(result.metric, result.metric) for result in results})


def eval_result(pipeline_tag: str, result: Result) -> EvalResult:
    """Return a score as the metadata of the Hub has it."""
    return EvalResult(
        task_type=pipeline_tag,
        task_name=result.task,
        dataset_type=re.sub(r"[^A-Za-z0-9]+", "-", result.data).strip("-").lower(),
        dataset_name=result.data,
        dataset_config=result.task,
        metric_type=_METRIC_TYPES.get(result.metric, result.metric),
        metric_name=result.name,
        metric_value=round(float(result.value), 6),
    )


def _widget(facts: ModelFacts, example: Example) -> dict[str, Any]:
    entry: dict[str, Any] = {"example_title": example.name, "text": example.text}
    if facts.candidates:
        entry["candidate_labels"] = ", ".join(facts.candidates)
    if example.scores:
        entry["output"] = [{"label": name, "score": score} for name, score in example.scores]
    elif example.values:
        entry["output"] = {"text": output_text(example)}
    return entry


# -------------------------------------------------------------------- sentences


def _lead(facts: ModelFacts) -> str:
    system = facts.system
    if facts.adapter is not None:
        kind = _adapter_kind(facts.adapter)
        return (
            f"{_article(kind)} {kind} adapter that makes {_link(facts.base_model)}, {_article(system.title).lower()} "
            f"{system.title}, into a model that {_PURPOSES[facts.purpose]}."
        )
    base, word = "", "merged with an adapter from" if facts.relation == "merge" else "fine-tuned from"
    if facts.base_model:
        base = f", {word} {_link(facts.base_model)}"
    elif facts.base_name:
        base = f", {word} `{facts.base_name}`, which is not published"
    kind = f"{_article(system.title)} {system.title}{base}: {system.family}."
    return f"It {_PURPOSES[facts.purpose]}. {kind}"


def _adapter_kind(adapter: Mapping[str, Any]) -> str:
    given = str(adapter.get("peft_type", ""))
    return "DoRA" if adapter.get("use_dora") else {"LORA": "LoRA", "IA3": "IA3"}.get(given, given)


def _link(model: str | None) -> str:
    return f"[{model}](https://huggingface.co/{model})"


def _article(word: str) -> str:
    return "An" if word[:1] in "AEIO" else "A"


def _overview(facts: ModelFacts) -> list[tuple[str, str]]:
    config, cell_config = facts.config, facts.config.get("cell_config", facts.config)
    rows = [("Licence", facts.details.license or "")]
    if facts.details.license_link:
        rows = [("Licence", f"[{facts.details.license_name}]({facts.details.license_link})")]
    if facts.adapter is not None:
        rows.append(("Base model", f"{_link(facts.base_model)}{_base_version(facts)}"))
        modules = facts.adapter.get("target_modules") or []
        named = modules if isinstance(modules, str) else ", ".join(sorted(modules))
        rows.append(("Adapted modules", f"`{cell_text(named)}`"))
    else:
        rows.append(("Class", f"`{(config.get('architectures') or ['?'])[0]}`"))
        rows.append(("Vocabulary", f"{cell_config.get('vocab_size', 0):,} ids"))
    rows.append(("Weights", f"{facts.parameters:,} numbers, {size_text(facts.weight_bytes)}"))
    if facts.labels:
        ids = facts.config.get("label_cl_ids") or {}
        shown = ", ".join(cell_text(f"{n} ({ids[n]})" if ids.get(n) else n) for n in facts.labels[:20])
        rows.append(("Classes", f"{len(facts.labels)}: {shown}{', ...' if len(facts.labels) > 20 else ''}"))
    if facts.details.authors:
        rows.append(("Authors", cell_text(facts.details.authors)))
    return rows


def _base_version(facts: ModelFacts) -> str:
    """Return the recorded revision and weights of an adapter's base, as text."""
    revision = (facts.adapter or {}).get("revision")
    weights = facts.runs[-1].record.get("base_model_fingerprint") if facts.runs else None
    return (f", revision `{revision}`" if revision not in (None, "main") else "") + (
        f", weights `{weights[:12]}`" if weights else ""
    )


def _auto_classes(facts: ModelFacts) -> list[dict[str, str]]:
    auto_map = facts.config.get("auto_map", {})
    architecture = (facts.config.get("architectures") or [""])[0]
    rows = []
    for kind in sorted(k for k in auto_map if k.startswith("AutoModel")):
        model, new = auto_map[kind].split("--")[-1].split(".")[1], facts.new_weights.get(kind, [])
        head = kind in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
        if model == architecture:
            weights = "the model as it was trained"
        elif new or head:
            weights = f"to be trained: {', '.join(f'`{part}`' for part in new or ['classifier'])} new"
        else:
            weights = "all in this repository"
        rows.append({"auto_class": kind, "model": model, "weights": weights})
    return rows


def _uses(facts: ModelFacts) -> list[str]:
    uses = {
        "cell classification": [f"labelling cells with one of its {len(facts.labels)} classes, from raw RNA counts"],
        "multi-label classification": [f"giving cells any of {len(facts.labels)} labels, from raw RNA counts"],
        "gene classification": [
            f"labelling genes, in the context of the cell that expresses them, with one of {len(facts.labels)} classes"
        ],
        "regression": ["predicting the value that it was fine-tuned on, from raw RNA counts"],
    }
    return uses.get(facts.purpose, facts.system.uses) + facts.details.uses


def _our_choice(facts: ModelFacts) -> list[str]:
    settings = []
    if facts.runs:
        model = facts.runs[-1].record.get("config", {}).get("model", {})
        now = dict(_flat(facts.config))  # what is fitted after the training may change settings
        sizes = {name: now.get(name, value) for name, value in _flat(model)}
        if sizes:
            settings = ["sizes and settings of this model: " + ", ".join(f"`{k}={v}`" for k, v in sizes.items())]
    if facts.config.get("gene_sums"):
        share = facts.config["gene_sum_weight"]
        settings.append(
            f"the scores of classes are for {share:.0%} those of gene sums, which are logistic regression on the log "
            f"expression of all genes, and for {1 - share:.0%} those of the network; embeddings are the network's"
        )
    return [*settings, *facts.system.our_choice]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name != "type" and isinstance(value, str | int | float):
            yield prefix + name, value


def _limits(facts: ModelFacts) -> list[str]:
    limits = ["Results for tissues, assays or diseases that are not in the training data may be wrong."]
    if facts.labels and facts.calibrated:
        limits.append("Its scores are for every cell; cells of other types are unassigned only where they look novel.")
    elif facts.labels:
        limits.append("It assigns one of its classes to every cell, also to cells of other types.")
    if facts.runs and facts.runs[-1].record.get("corpus", {}).get("split", {}).get("by") == "cell":
        limits.append(
            "Cells were held out one by one, because the metadata has no donors and no data sets: results on other "
            "donors will be lower."
        )
    if sum(run.cells for run in facts.runs) < 10_000 and facts.runs:
        limits.append("It was trained on few cells: use it as an example or a starting point, not as a general model.")
    if facts.adapter is None:
        limits += [text for name, text in facts.system.limits_without.items() if facts.config.get(name) is None]
    return limits + facts.details.limits


def check_labels(labels: Sequence[str]) -> None:
    """Refuse classes without names."""
    if labels and all(name.startswith("LABEL_") for name in labels):
        raise ValueError(
            f"the {len(labels)} classes have no names (LABEL_0, ...): set id2label and label2id in config.json"
        )


__all__ = [
    "cell_text", "check_labels", "environment", "eval_result", "listed_results", "metric_types", "model_card_data",
    "render_model_card", "run_command", "size_text", "tidy", "value_text",
]  # fmt: skip
