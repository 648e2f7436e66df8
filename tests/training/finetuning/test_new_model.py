import numpy as np
import pytest
import torch

from cellglot.modeling import (
    ExceiverForSequenceClassification,
    LangCellForSequenceClassification,
    ScCelloForSequenceClassification,
)
from cellglot.training.config import load_config
from cellglot.training.data.gene_embeddings import co_expression_vectors
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.cells import corpus_of_new_model
from cellglot.training.finetuning.finetune import finetune_on
from cellglot.training.finetuning.network import new_network


KINDS = {
    "exceiver": (ExceiverForSequenceClassification, 1.0),
    "langcell": (LangCellForSequenceClassification, 0.02),
    "sccello": (ScCelloForSequenceClassification, 0.02),
}
SHORT = ["trainer.max_steps=3", "trainer.eval_strategy=no", "trainer.save_strategy=no", "trainer.use_cpu=true"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_from_the_start_on_files_of_cells(kind, blood_file, tmp_path):
    config = load_config(f"{kind}_small_finetune.yaml", SHORT)
    finetune_on(config, None, [blood_file], None, tmp_path, label_column="cell_type", resume=False)
    loaded = KINDS[kind][0].from_pretrained(tmp_path)
    assert len(loaded.config.id2label) == 10
    if kind == "exceiver":
        corpus = corpus_of_new_model(kind, [blood_file], tmp_path / "again", None, processes=1, progress=False)
        assert np.allclose(loaded.exceiver.background_values.numpy()[:765], corpus.tokenizer().background_values)


@pytest.mark.parametrize("kind", KINDS)
def test_gene_embeddings_start_from_co_expression_on_the_scale_of_ranks(kind, blood_file, tmp_path):
    deviation = KINDS[kind][1]
    corpus = corpus_of_new_model(kind, [blood_file], tmp_path, None, processes=1, progress=False)
    config = load_config(f"{kind}_small_finetune.yaml")
    torch.manual_seed(0)
    model, tokenizer = new_network(FAMILIES[kind], "cell-type", config.model, corpus, 0, initialize_embeddings=True)
    assert type(model) is KINDS[kind][0]
    weight = model.get_input_embeddings().weight.detach()
    ids = torch.from_numpy(tokenizer.vocabulary.gene_token_ids)
    expected = torch.from_numpy(co_expression_vectors(corpus, 64))
    assert torch.allclose(weight[ids], deviation * expected, atol=1e-6)
    assert tokenizer.vocabulary.genes == corpus.tokenizer().vocabulary.genes
    if kind != "exceiver":
        assert not tokenizer.return_expression_values and tokenizer.model_max_length == 512


def test_a_corpus_of_another_tokenizer_is_refused(corpus):
    with pytest.raises(ValueError, match="needs RankValueTokenizer"):
        new_network(FAMILIES["sccello"], "cell-type", load_config("sccello_small_finetune.yaml").model, corpus, 0)
