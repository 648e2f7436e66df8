"""The demo's part on Exceiver: masked expression, embeddings, classification."""

import json

import numpy as np

from cellglot.demo.data import DemoData, series
from cellglot.demo.report import Section, draw
from cellglot.evaluation import plots
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification, ExceiverModel
from cellglot.training.config import load_config
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.metrics import expressed_gene_mean_scores
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


PRETRAINING_CELLS, FINETUNING_CELLS = 34_000, 22_000  # cells seen in all, over epochs


class ExceiverDemo:
    """Pretrains a small Exceiver, embeds, fine-tunes, classifies.

    Parameters
    ----------
    data
        Cells and their tokens.
    """

    name = "Exceiver"

    def __init__(self, data: DemoData):
        self.data = data
        self.corpus = data.tokenize("exceiver")
        self.folder, self.classifier_folder = data.output / "exceiver", data.output / "exceiver-classifier"

    def run(self) -> np.ndarray:
        """Run every step, and return the predicted classes of the held-out cells."""
        data = self.data
        data.step("Exceiver: pretraining on masked expression")
        config = load_config("exceiver_small.yaml", data.overrides(self.corpus, PRETRAINING_CELLS, 60))
        pretrain(config, self.corpus, self.folder, overwrite=True)
        self.pretraining = json.loads((self.folder / RUN_FILE).read_text())
        self.gene_mean = expressed_gene_mean_scores(self.corpus)
        self.umap_pretrained = data.umap(ExceiverModel, self.folder, self.corpus, "Exceiver, pretrained")
        data.step("Exceiver: fine-tuning for classification")
        config = load_config("exceiver_finetune.yaml", data.overrides(self.corpus, FINETUNING_CELLS, 40))
        finetune(config, self.folder, self.corpus, self.classifier_folder, overwrite=True)
        self.finetuning = json.loads((self.classifier_folder / RUN_FILE).read_text())
        self.umap_finetuned = data.umap(ExceiverModel, self.classifier_folder, self.corpus, "Exceiver, fine-tuned")
        return data.classify(ExceiverForSequenceClassification, self.classifier_folder, self.corpus)

    def cards(self) -> list[tuple[str, str]]:
        """Return the numbers for the top of the page."""
        variance = self.pretraining["metrics"]["eval_explained_variance"]
        return [(f"{variance:.2f}", "explained variance of masked genes (Exceiver)")]

    def sections(self) -> list[Section]:
        """Return this part of the page."""
        metrics, gene_mean, log = self.pretraining["metrics"], self.gene_mean, self.pretraining["log"]
        fine = self.finetuning["log"]
        figures = [
            *draw(
                "Loss curves of pretraining",
                lambda: plots.curves_plot(
                    {"training": series(log, "loss"), "held-out": series(log, "eval_masked_mse")},
                    "Masked expression",
                    "mean squared error",
                    {"mean of the gene": gene_mean["mse"]},
                ),
                self.data.again,
            ),
            *draw(
                "Explained variance of held-out cells",
                lambda: plots.curves_plot(
                    {"held-out": series(log, "eval_explained_variance")},
                    "Masked expression of held-out cells",
                    "explained variance",
                    {"mean of the gene": gene_mean["explained_variance"]},
                ),
                self.data.again,
            ),
            *draw(
                "Loss curves of fine-tuning",
                lambda: plots.curves_plot(
                    {
                        "training, classification": series(fine, "classification_loss"),
                        "held-out, classification": series(fine, "eval_loss"),
                        "training, masked expression": series(fine, "expression_loss"),
                    },
                    "Fine-tuning Exceiver",
                    "loss",
                ),
                self.data.again,
            ),
        ]
        return [
            Section(
                "Exceiver: masked expression",
                [
                    f"{self.pretraining['num_masked']} expressed genes of each cell are hidden and predicted from the "
                    f"others. On held-out cells the mean squared error is {metrics['eval_masked_mse']:.3f} and the "
                    f"explained variance {metrics['eval_explained_variance']:.3f}; predicting each gene's mean over "
                    f"the training cells that express it has {gene_mean['mse']:.3f} and "
                    f"{gene_mean['explained_variance']:.3f}.",
                    "The mean of the model's latents is a cell's embedding. The upper map shows the pretrained "
                    "model, which has seen no label; the lower one the model after fine-tuning on the labels of the "
                    "training cells.",
                ],
                figures=figures,
                maps=[*self.umap_pretrained, *self.umap_finetuned],
            )
        ]


__all__ = ["ExceiverDemo"]
