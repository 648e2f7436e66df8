"""What a model predicts, and the labels that its configuration names."""

from collections.abc import Mapping
from typing import Any

from transformers.configuration_utils import PreTrainedConfig


# All fields of our models' outputs; a loss can be there without labels, if an objective does not need them.
OUTPUTS = (
    "attentions",
    "cell_cell_loss",
    "cell_representation",
    "cell_text_loss",
    "classification_loss",
    "coherence_loss",
    "cross_attentions",
    "expression_loss",
    "hard_negatives",
    "hidden_states",
    "last_hidden_state",
    "logits",
    "loss",
    "masked_gene_loss",
    "matching_loss",
    "pooler_output",
    "predicted_expression",
    "regression_loss",
    "regularization_loss",
    "relational_alignment_loss",
    "text_features",
    "text_last_hidden_state",
)


def check_gene_sums(config: Any) -> None:
    """Refuse settings of gene sums, and of the tokens that an encoder reads, that are out of range.

    Raises
    ------
    ValueError
        Names the field.
    """
    share, tokens = getattr(config, "gene_sum_weight", 0), getattr(config, "encoder_tokens", None)
    if not 0 <= share <= 1:
        raise ValueError(f"gene_sum_weight={share}: it is a share between 0 and 1")
    genes, factors = getattr(config, "imputed_genes", 0), getattr(config, "imputation_factors", 0)
    if min(genes, factors) < 0 or (genes > 0) != (factors > 0):
        raise ValueError(f"imputed_genes={genes}, imputation_factors={factors}: both are 0, or both are positive")
    if tokens is not None and not 2 <= tokens <= config.max_position_embeddings:
        raise ValueError(
            f"encoder_tokens={tokens}: it is between 2, <cls> and a gene, and "
            f"max_position_embeddings={config.max_position_embeddings}"
        )


def check_linear_genes(config: Any, genes: int) -> None:
    """Refuse a number of genes of the linear latent that the model does not have.

    Raises
    ------
    ValueError
        Names the field.
    """
    if not 0 <= config.linear_genes <= genes:
        raise ValueError(f"linear_genes={config.linear_genes}: the model has {genes:,} genes")


def classes_that_fit(auto_map: dict[str, Any] | None, config: Any, *kept: str) -> dict[str, Any] | None:
    """Return the Auto classes of a configuration that fit what its encoder of cells reads.

    Parameters
    ----------
    auto_map
        All of them.
    config
        Configuration of the encoder of cells.
    *kept
        Those that do not need the hidden states of all tokens, nor an embedding of the hidden size.
    """
    if auto_map is None or (config.encoder_tokens is None and not config.linear_genes):
        return auto_map
    return {name: path for name, path in auto_map.items() if name in ("AutoConfig", *kept)}


class TaskConfig:
    """Part of a configuration: the model's prediction and its labels."""

    id2label: Any
    label_cl_ids: Any = None
    problem_type: Any

    @property
    def keys_to_ignore_at_inference(self) -> list[str]:
        """Outputs that `transformers.Trainer` does not pass to ``compute_metrics``: all but the prediction."""
        return [name for name in OUTPUTS if name != vars(self).get("_prediction", "logits")]

    @property
    def num_labels(self) -> Any:
        """Number of labels."""
        return None if self.id2label is None else len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        """Change the number of labels; names and Cell Ontology ids of the former labels are dropped.

        With one label, a recorded ``problem_type`` of one class among several is dropped, too.
        """
        if self.id2label is not None and len(self.id2label) != number:
            if self.label_cl_ids is not None:
                self.label_cl_ids = None
            if number == 1 and self.problem_type == "single_label_classification":
                self.problem_type = None
        PreTrainedConfig.num_labels.fset(self, number)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but the prediction, which follows from the model's class."""
        given = super().to_dict()  # type: ignore[misc]
        given.pop("_prediction", None)
        return given


class Predicts:
    """Part of a model class: the output that is its prediction."""

    prediction = "logits"

    def post_init(self) -> None:
        """Finish the model, and store its prediction in its configuration."""
        super().post_init()  # type: ignore[misc]
        self.config._prediction = self.prediction  # type: ignore[attr-defined]


def former_name(kwargs: Mapping[str, Any], name: str, given: Any) -> Any:
    """Return an argument that may be given by its former name; it is removed from `kwargs`.

    Names were changed because `transformers.Trainer` takes every forward argument with "label" in its name for a
    column of labels, and evaluates a loss only if all of them are there.
    """
    former = kwargs.pop(name, None)  # type: ignore[attr-defined]
    return former if given is None else given


__all__ = ["OUTPUTS", "Predicts", "TaskConfig", "former_name"]
