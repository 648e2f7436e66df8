"""Gene sums: the part of a classifier that is a weighted sum over all genes of a cell."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForSequenceClassification

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.configuration_langcell import LangCellConfig
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.gene_sums import WEIGHT_SCALE, implied_counts
from cellglot.modeling.masked_genes import masked_embeddings
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification
from cellglot.modeling.modeling_langcell import LangCellForPreTraining, LangCellForSequenceClassification
from cellglot.modeling.modeling_sccello import (
    ScCelloForMaskedLM,
    ScCelloForSequenceClassification,
    ScCelloForTokenClassification,
)


GENES, CLASSES, ENCODED = 40, 3, 8
LAYER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
RANKED = {
    **LAYER, "vocab_size": GENES + 3, "max_position_embeddings": 64, "pooling": "mean", "encoder_tokens": ENCODED
}  # fmt: skip
PARTS = {"gene_sums": True, "num_labels": CLASSES}


def ranked_cells():
    """Counts of three cells over all genes, the medians of genes, and the cells' tokens, padded."""
    random = np.random.default_rng(0)
    medians = random.uniform(1, 9, GENES)
    counts = random.poisson(medians * random.gamma(1, 0.5, (3, GENES)))
    ids = np.zeros((3, GENES + 1), dtype=np.int64)
    for cell in range(3):
        genes = np.flatnonzero(counts[cell])
        order = genes[np.lexsort((genes, -counts[cell, genes] / medians[genes]))]
        ids[cell, : len(order) + 1] = [GENES + 2, *(order + 2)]
    return counts, medians, torch.from_numpy(ids[:, : int((ids > 0).sum(axis=1).max())])


def ranked_model(kind, medians):
    torch.manual_seed(0)
    if kind == "sccello":
        model = ScCelloForSequenceClassification(ScCelloConfig(**RANKED, **PARTS))
    else:
        model = LangCellForSequenceClassification(LangCellConfig(cell_config=RANKED, text_config=LAYER, **PARTS))
    model.gene_sums.medians[2 : GENES + 2] = torch.from_numpy(medians).float()
    torch.nn.init.normal_(model.gene_sums.weight)
    return model.eval()


def test_the_order_of_genes_implies_their_counts():
    counts, medians, ids = ranked_cells()
    of_tokens = torch.zeros(GENES + 3)
    of_tokens[2 : GENES + 2] = torch.from_numpy(medians).float()
    for half in (of_tokens, of_tokens.half().float()):
        found = implied_counts(half[ids])
        assert (found[:, 0] == 0).all() and (found[ids == 0] == 0).all()
        true = np.take_along_axis(np.pad(counts, ((0, 0), (2, 1))), ids.numpy(), axis=1)
        genes = true > 0
        assert (found.numpy() >= 1)[genes].all()
        assert np.corrcoef(np.log(found.numpy()[genes]), np.log(true[genes]))[0, 1] > 0.95
        ratios = (found / half[ids].clamp(min=1e-9)).numpy()
        for cell in range(3):  # the counts nearly explain the order after a few rounds
            inside = ratios[cell][genes[cell]]
            assert (inside[:-1] >= inside[1:] * 0.9).all()


@pytest.mark.parametrize("kind", ["sccello", "langcell"])
def test_scores_are_the_weighted_mean_of_both_parts(kind, tmp_path):
    _, medians, ids = ranked_cells()
    model = ranked_model(kind, medians)
    labels = torch.tensor([0, 2, 1])
    with torch.no_grad():
        losses, scores = {}, {}
        for share in (0.0, 0.25, 1.0):
            model.config.gene_sum_weight = share
            outputs = model(ids, labels=labels)
            losses[share], scores[share] = outputs.loss, outputs.logits
        assert len({float(loss) for loss in losses.values()}) == 1  # each part learns by its own loss
        assert torch.allclose(scores[0.25], scores[0.0] * 0.75 + scores[1.0] * 0.25, atol=1e-6)
        own = [torch.nn.functional.cross_entropy(scores[share], labels) for share in (0.0, 1.0)]
        assert torch.allclose(losses[0.25], sum(own) / 2)
        alone = torch.cat([model(row[row > 0][None]).logits for row in ids])
        assert torch.allclose(alone, scores[1.0], atol=1e-5)  # padded as unpadded
        # the encoder reads the first tokens alone, the sums all of them
        cut, encoder = ids[:, :ENCODED], getattr(model, model.encoder_name)
        assert torch.equal(encoder(cut).pooler_output, encoder(ids).pooler_output)
        assert not torch.allclose(model(cut).logits, scores[1.0], atol=1e-3)
    genes, copies = masked_embeddings(model, {"input_ids": ids[0][ids[0] > 0]})
    assert len(genes) == len(copies) == ENCODED - 1
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.allclose(again(ids).logits, scores[1.0], atol=1e-6)
    if kind == "sccello":
        assert AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state.shape[1] == ENCODED


def test_sums_of_standardised_values_are_those_of_log_counts():
    random = np.random.default_rng(1)
    deviations, zeros = random.uniform(0.5, 2, GENES), random.uniform(-1, 1, GENES)
    logs = np.where(random.random((2, GENES)) < 0.5, random.uniform(0.1, 3, (2, GENES)), 0.0)
    values = torch.from_numpy(logs / deviations + zeros).float()
    torch.manual_seed(0)
    sizes = {**LAYER, "vocab_size": GENES + 2, "gene_embedding_size": 8, "num_latents": 3}
    model = ExceiverForSequenceClassification(ExceiverConfig(**sizes, **PARTS, gene_sum_weight=1.0)).eval()
    model.gene_sums.zero_values[:GENES] = torch.from_numpy(zeros).float()
    model.gene_sums.deviations[:GENES] = torch.from_numpy(deviations).float()
    torch.nn.init.normal_(model.gene_sums.weight)
    ids = torch.arange(GENES).expand(2, -1)
    mask = torch.from_numpy(logs > 0).long()
    hidden = torch.zeros(2, GENES, dtype=torch.bool)
    hidden[:, :5] = True
    with torch.no_grad():
        found = model(ids, values, mask, masked_genes=hidden).logits
        weight = model.gene_sums.weight[:GENES].numpy()
        expected = torch.from_numpy((logs * ~hidden.numpy()) @ weight * WEIGHT_SCALE).log_softmax(dim=-1)
    assert np.abs(found.numpy() - expected.numpy()).max() < 1e-4


def test_what_needs_other_tokens_or_labels_is_refused():
    _, medians, ids = ranked_cells()
    config = ScCelloConfig(**RANKED, **PARTS)
    for needs_all in (ScCelloForMaskedLM, ScCelloForTokenClassification):
        with pytest.raises(ValueError, match="encoder_tokens=8 is for classifiers of cells"):
            needs_all(config)
    with pytest.raises(ValueError, match="encoder_tokens=8"):
        LangCellForPreTraining(LangCellConfig(cell_config=RANKED, text_config=LAYER))
    for wrong in ({"gene_sum_weight": 1.5}, {"encoder_tokens": 65}, {"encoder_tokens": 1}):
        with pytest.raises((StrictDataclassError, ValueError), match=next(iter(wrong))):
            ScCelloConfig(**{**RANKED, **wrong})
    model = ranked_model("sccello", medians)
    with pytest.raises(ValueError, match="each cell in a row of its own"):
        model(ids[:1], position_ids=torch.arange(ids.shape[1])[None])
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="gene_sums=True is for one class"):
        model(ids, labels=torch.zeros(3, CLASSES))


def test_a_graph_of_any_length_is_exported():
    _, medians, ids = ranked_cells()
    model = ranked_model("sccello", medians)
    model.set_attn_implementation("eager")
    shape = (torch.export.Dim.AUTO, torch.export.Dim.AUTO)
    with torch.no_grad():
        shapes = {"input_ids": shape, "attention_mask": shape}
        program = torch.export.export(model, (ids, (ids > 0).long()), dynamic_shapes=shapes, strict=False).module()
        other = ids[:2, : ids.shape[1] - 5]
        assert torch.allclose(program(other, (other > 0).long()).logits, model(other).logits, atol=1e-5)
