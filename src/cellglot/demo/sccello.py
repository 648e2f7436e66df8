"""The demo's part on scCello: pretraining with and without the Cell Ontology, its geometry, classification."""

import json

import numpy as np

from cellglot.demo.data import DemoData, series
from cellglot.demo.report import Section, Table, draw
from cellglot.evaluation import plots
from cellglot.evaluation.scores.ontology_agreement import OntologyGeometry, ontology_geometry
from cellglot.modeling.modeling_sccello import ScCelloForSequenceClassification, ScCelloModel
from cellglot.outputs import write_json
from cellglot.training.config import load_config
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


PRETRAINING_CELLS, FINETUNING_CELLS = 9_000, 12_000  # cells seen in all, over epochs
LENGTH = 128  # highest-ranked genes of a cell that the demo reads
WITHOUT = ("coherence_weight", "regularization_weight", "relational_alignment_weight")


class ScCelloDemo:
    """Pretrains a small scCello with the ontology's objectives and without, compares, fine-tunes, classifies.

    Parameters
    ----------
    data
        Cells and their tokens.
    """

    name = "scCello"

    def __init__(self, data: DemoData):
        self.data = data
        self.corpus = data.tokenize("rank-value", return_expression_values=True)
        self.folder = data.output / "sccello"
        self.plain_folder = data.output / "sccello-genes-alone"
        self.classifier_folder = data.output / "sccello-classifier"
        self.ontology = open_ontology("shipped")

    def run(self) -> np.ndarray:
        """Run every step, and return the predicted classes of the held-out cells."""
        data = self.data
        data.step("scCello: pretraining on masked genes and the Cell Ontology")
        settings = [
            *data.overrides(self.corpus, PRETRAINING_CELLS, 40),
            f"model.max_position_embeddings={LENGTH}",
        ]
        pretrain(load_config("sccello_small.yaml", settings), self.corpus, self.folder, overwrite=True)
        self.pretraining = json.loads((self.folder / RUN_FILE).read_text())
        data.step("scCello: the same without the ontology's objectives")
        alone = [f"model.{name}=0" for name in WITHOUT]
        pretrain(load_config("sccello_small.yaml", settings + alone), self.corpus, self.plain_folder, overwrite=True)
        self.geometries = self._geometries()
        self.umap = data.umap(ScCelloModel, self.folder, self.corpus, "scCello, pretrained")
        data.step("scCello: fine-tuning for classification")
        config = load_config("sccello_finetune.yaml", data.overrides(self.corpus, FINETUNING_CELLS, 20))
        finetune(config, self.folder, self.corpus, self.classifier_folder, overwrite=True)
        self.finetuning = json.loads((self.classifier_folder / RUN_FILE).read_text())
        return data.classify(ScCelloForSequenceClassification, self.classifier_folder, self.corpus)

    def _geometries(self) -> dict[str, OntologyGeometry]:
        """Compare both models' held-out cells with the ontology; return nothing if there are too few types."""
        data = self.data
        types = np.array(self.ontology.resolve(data.classes).cell_types, dtype=object)[data.test]
        if len({t for t in types if t is not None}) < 3:
            return {}
        folders = {"masked genes alone": self.plain_folder, "with the ontology's objectives": self.folder}
        found = {
            name: ontology_geometry(data.embed(ScCelloModel, folder, self.corpus)[data.test], types, self.ontology)
            for name, folder in folders.items()
        }
        for name, geometry in found.items():
            data.console.print(
                f"agreement with the Cell Ontology, {name}: Spearman {geometry.spearman:.2f} "
                f"({geometry.interval[0]:.2f} to {geometry.interval[1]:.2f}) over {len(geometry.cosine)} pairs of "
                f"{len(geometry.cell_types)} types"
            )
        write_json(
            data.output / "ontology-geometry.json",
            {n: {"spearman": g.spearman, "interval": g.interval} for n, g in found.items()},
        )
        return found

    def cards(self) -> list[tuple[str, str]]:
        """Return the numbers for the top of the page."""
        if not self.geometries:
            return []
        without, with_ontology = (f"{g.spearman:.2f}" for g in self.geometries.values())
        return [(f"{with_ontology}", f"agreement with the Cell Ontology (scCello; {without} without its objectives)")]

    def sections(self) -> list[Section]:
        """Return this part of the page."""
        metrics, log = self.pretraining["metrics"], self.pretraining["log"]
        labels = self.pretraining["cell_labels"]
        figures = draw(
            "Losses of pretraining",
            lambda: plots.curves_plot(
                {
                    "masked genes": series(log, "masked_gene_loss"),
                    "masked genes, held-out": series(log, "eval_masked_gene_loss"),
                    "coherence": series(log, "coherence_loss"),
                    "relational alignment": series(log, "relational_alignment_loss"),
                },
                "Pretraining scCello",
                "loss",
            ),
            self.data.again,
        )
        accuracy = f"{metrics['eval_masked_gene_accuracy']:.1%} of masked genes are found among all genes"
        if "eval_cell_type_accuracy" in metrics:
            accuracy += (
                f", and {metrics['eval_cell_type_accuracy']:.1%} of cells lie nearest to their type's prototype"
            )
        paragraphs = [
            f"Cells are their {LENGTH - 1} highest-ranked genes. {labels['matched']:,} of {labels['labels']:,} "
            f"training labels match a type of the Cell Ontology. On held-out cells {accuracy}.",
        ]
        if self.geometries:
            figures += draw(
                "Ontology similarity against cosine of centroids",
                lambda: plots.geometry_plot(self.geometries, "Pairs of cell types: ontology and embeddings"),
                self.data.again,
                self.data.output / "ontology-geometry.png",
                wide=True,
            )
            paragraphs.append(
                "The picture compares pairs of cell types: their similarity in the ontology, and the cosine of the "
                "centroids of their held-out cells, for a model trained on masked genes alone and for one trained "
                "with the ontology's objectives too."
            )
        else:
            paragraphs.append("Fewer than three labels match cell types: there is no comparison with the ontology.")
        title = "scCello: masked genes and the Cell Ontology"
        return [Section(title, paragraphs, table=self._table(), figures=figures, maps=self.umap)]

    def _table(self) -> Table | None:
        if not self.geometries:
            return None
        rows = [
            [name, f"{g.spearman:.3f}", f"{g.interval[0]:.3f} to {g.interval[1]:.3f}", f"{len(g.cosine):,}"]
            for name, g in self.geometries.items()
        ]
        return Table(["objectives", "Spearman", "95% interval", "pairs of types"], rows)


__all__ = ["ScCelloDemo"]
