import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from model_records import LangCell, assert_same, assert_same_gradients, gradients, outputs, without_dropout
from peft import PeftModel
from safetensors.torch import load_file, save_file

from cellglot.modeling import (
    LangCellCellModel,
    LangCellConfig,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellForTokenClassification,
    LangCellModel,
    LangCellTextModel,
)
from cellglot.modeling.adapters import add_adapter, load_with_adapter, use_adapter
from cellglot.modeling.packed_texts import CellKeys
from cellglot.training.finetuning.adapters import put_adapter, save_adapter


make_model, make_batch, padded_rows = LangCell.make, LangCell.batch, LangCell.rows


@pytest.fixture
def both(langcell_config):
    return make_model(LangCellModel, langcell_config)


# -------------------------------------------------------------------- one class's weights in another


def test_every_class_loads_from_a_pretrained_folder(langcell_config, tmp_path):
    whole = make_model(LangCellForPreTraining, langcell_config)
    whole.save_pretrained(tmp_path)
    batch = make_batch(whole)
    cells = (batch["input_ids"], batch["attention_mask"])
    texts = (batch["text_input_ids"], batch["text_attention_mask"])
    for model_class, given, tower in (
        (LangCellModel, cells, whole.cell_model),
        (LangCellCellModel, cells, whole.cell_model),
        (LangCellTextModel, texts, whole.text_model),
    ):
        loaded = model_class.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(*given).pooler_output, tower(*given).pooler_output)
    classifier, info = LangCellForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert torch.equal(classifier.cell_model.layers[0].fc1.weight, whole.cell_model.layers[0].fc1.weight)
    of_genes, info = LangCellForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"} and not info["unexpected_keys"]


def test_former_names_of_the_head_load(langcell_config, tmp_path):
    """Folders and adapters that have the first layer of the head beside it, by whatever loads them."""
    model = make_model(LangCellForSequenceClassification, langcell_config)
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(former(weights), tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    loaded, info = LangCellForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    cells = {n: v for n, v in make_batch(model).items() if n in ("input_ids", "attention_mask")}
    assert torch.equal(loaded.eval()(**cells).logits, model(**cells).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = LangCellForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(**cells).logits, model(**cells).logits)

    adapted = put_adapter(again, "lora", ("classifier",)).eval()
    save_adapter(adapted, tmp_path / "adapter")
    expected = adapted(**cells).logits
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[2:][-2] for name in weights if "classifier" in name} == {"dense", "out_proj"}
    save_file(former(weights), tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    recorded["modules_to_save"] = ["pooler", "classifier"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(recorded))
    ours = load_with_adapter(tmp_path / "adapter")
    add_adapter(ours, tmp_path / "adapter", "second")
    for name in ("default", "second"):
        use_adapter(ours, name)
        torch.testing.assert_close(ours(**cells).logits, expected)
    for put in (lambda base: PeftModel.from_pretrained(base, tmp_path / "adapter"), put_by_transformers(tmp_path)):
        base = LangCellForSequenceClassification.from_pretrained(tmp_path / "model")
        torch.nn.init.normal_(base.classifier.dense.weight)
        given = put(base).eval()(**cells).logits
        torch.testing.assert_close(given, expected)


def former(weights):
    """Return weights by the names of before."""
    names = {"classifier.dense.": "pooler.", "classifier.out_proj.": "classifier."}
    renamed = {}
    for name, values in weights.items():
        for now, before in names.items():
            name = name.replace(now, before)
        renamed[name] = values
    return renamed


def put_by_transformers(folder):
    """Return what puts the adapter on a model by `transformers` alone."""

    def put(base):
        base.load_adapter(str(folder / "adapter"))
        return base

    return put


# -------------------------------------------------------------------- modes, pooling, requested outputs


def test_text_mode_passes_the_blocks_of_cross_attention_by(langcell_config):
    model = make_model(LangCellTextModel, langcell_config)
    batch = make_batch(model)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before, reading = model(**texts), model(**batch)
    assert reading.pooler_output is None
    assert torch.allclose(before.pooler_output.norm(dim=1), torch.ones(3))
    with torch.no_grad():
        for layer in model.layers:
            layer.cross_attn.v_proj.weight.add_(1.0)
    assert torch.equal(model(**texts).last_hidden_state, before.last_hidden_state)
    assert not torch.allclose(model(**batch).last_hidden_state, reading.last_hidden_state)
    with pytest.raises(ValueError, match="takes single texts"):
        model(**texts, token_type_ids=torch.ones_like(texts["input_ids"]))
    with pytest.raises(ValueError, match="pass cell_rows"):
        model(**texts, cell_hidden_states=batch["cell_hidden_states"][:2])


def test_texts_read_the_cells_that_they_are_told_to(langcell_config):
    model = make_model(LangCellTextModel, langcell_config)
    batch = make_batch(model)
    rows = torch.tensor([2, 0, 2])
    chosen = {n: v[rows] if n.startswith("cell") else v for n, v in batch.items()}
    assert_same(outputs(model, chosen), outputs(model, batch | {"cell_rows": rows}))


def test_pooling(both):
    batch = make_batch(both)
    cells = (batch["input_ids"], batch["attention_mask"])
    states = both(*cells).last_hidden_state
    genes = (cells[1].bool() & (cells[0] != 41))[..., None]
    both.config.pooling = "mean"
    mean = (states * genes).sum(1) / genes.sum(1)
    expected = torch.nn.functional.normalize(both.cell_model.projection(mean), dim=-1)
    assert torch.allclose(both.get_cell_features(*cells), expected, atol=1e-6)


def test_requested_outputs(langcell_config):
    for model_class in (LangCellModel, LangCellTextModel, LangCellForSequenceClassification):
        model = make_model(model_class, langcell_config)
        model.set_attn_implementation("eager")
        batch = make_batch(model)
        result = model(**batch, output_hidden_states=True, output_attentions=True)
        layers = 3 if model_class is LangCellTextModel else 2
        assert len(result.hidden_states) == layers + 1
        assert len(result.attentions) == layers
        if model_class is LangCellTextModel:
            assert [a.shape for a in result.cross_attentions] == [(3, 2, 9, 13)] * 3
        assert isinstance(model(**batch, return_dict=False), tuple)


def test_flash_attention_is_refused_where_there_is_cross_attention(langcell_config):
    config = langcell_config(attn_implementation="flash_attention_2")
    with pytest.raises((ValueError, ImportError), match="(?i)flash"):
        LangCellTextModel(config.text_config)
    assert not LangCellModel._supports_flash_attn
    assert LangCellCellModel._supports_flash_attn


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("passes", [1, 2])
def test_packed_cells_are_padded_cells(langcell_config, implementation, passes):
    """The losses of all objectives and their gradients, with one pass of the encoder and with two."""
    model = without_dropout(make_model(LangCellForPreTraining, langcell_config))
    model.set_attn_implementation(implementation)
    if passes == 2:
        model.config.cell_config.hidden_dropout_prob = 0.1  # the second pass; the layers drop nothing
    model.train()
    batch = make_batch(model, lengths=(13, 7, 10, 1), texts=(9, 4, 6, 3)) | {"text_ids": torch.tensor([0, 1, 0, -100])}
    kept = batch["attention_mask"].bool()
    of_cells = ("input_ids", "labels")
    packed = {n: v[kept][None] if n in of_cells else v for n, v in batch.items() if n != "attention_mask"}
    packed["position_ids"] = torch.cat([torch.arange(n) for n in kept.sum(1).tolist()])[None]
    expected, given = outputs(model, batch), outputs(model, packed)
    assert {"masked_gene_loss", "cell_cell_loss", "cell_text_loss", "matching_loss"} < given.keys()
    expected["last_hidden_state"] = expected["last_hidden_state"][kept][None]
    assert_same(expected, given, 1e-5)
    assert_same_gradients(gradients(model, batch), gradients(model, packed))


# -------------------------------------------------------------------- exact sharing


def every_pair(model, batch):
    """P(match) by running every pair of a cell and a text through the text encoder."""
    states = model.cell_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    columns = []
    for text in range(len(batch["text_input_ids"])):
        rows = {n: batch[f"text_{n}"][text].expand(len(states), -1) for n in ("input_ids", "attention_mask")}
        read = model.text_model(**rows, cell_hidden_states=states, cell_attention_mask=batch["attention_mask"])
        columns.append(model.matching_head(read.last_hidden_state[:, 0]).softmax(-1)[:, 1])
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    ("implementation", "pairs_at_once", "layers"),
    [("sdpa", None, 3), ("sdpa", 1, 3), ("sdpa", 7, 1), ("eager", 3, 3), ("eager", None, 1)],
)
def test_matching_is_that_of_every_pair(langcell_config, implementation, pairs_at_once, layers, monkeypatch):
    monkeypatch.setattr("cellglot.modeling.modeling_langcell_text.TOKENS_AT_ONCE", 8)
    model = make_model(LangCellModel, langcell_config, text={"num_hidden_layers": layers})
    model.set_attn_implementation(implementation)
    batch = make_batch(model, lengths=(13, 7, 1, 30, 7, 18), texts=(9, 4, 6, 4, 2, 9, 1))
    batch["text_input_ids"][5] = batch["text_input_ids"][0]  # asked once
    batch["text_attention_mask"][2, 2] = 0  # a hole
    with torch.no_grad():
        expected, given = every_pair(model, batch), model.match(**batch, pairs_at_once=pairs_at_once)
        assert torch.allclose(given, expected, rtol=1e-5, atol=1e-5)
        scores = model.annotate(**batch, pairs_at_once=pairs_at_once)
    similarity = model(**batch).logits.softmax(1)
    assert torch.allclose(scores.similarity, similarity, atol=1e-5)
    assert torch.allclose(scores.scores, 0.1 * similarity + 0.9 * expected.softmax(1), atol=1e-5)


def test_what_is_shared_is_computed_once(both, monkeypatch):
    counts = {"keys": 0, "first": 0}
    cross = both.text_model.layers[1].cross_attn
    original, read = cross.key_value, both.text_model.read_texts
    monkeypatch.setattr(
        cross, "key_value", lambda states: counts.update(keys=counts["keys"] + len(states)) or original(states)
    )
    monkeypatch.setattr(
        both.text_model,
        "read_texts",
        lambda texts: counts.update(first=counts["first"] + len(texts.lengths)) or read(texts),
    )
    batch = make_batch(both, lengths=(13, 7, 10, 9), texts=(9, 4, 6, 4, 2, 9, 1, 3))
    for pairs in (2, 100):
        counts.update(keys=0, first=0)
        both.match(**batch, pairs_at_once=pairs)
        assert counts == {"keys": 4, "first": 8}


def test_matching_has_gradients(both):
    batch = make_batch(both)
    both.match(**batch, pairs_at_once=2)[0, 1].backward()
    given = {n: p.grad.clone() for n, p in both.named_parameters() if p.grad is not None}
    both.zero_grad()
    every_pair(both, batch)[0, 1].backward()
    assert_same_gradients({n: p.grad for n, p in both.named_parameters() if p.grad is not None}, given)


def test_keys_are_kept_only_where_texts_come_in_parts(both):
    states = torch.randn(2, 5, 16)
    for keep in (True, False):
        keys = CellKeys(both.text_model.layers, states, None, keep)
        assert (keys.of_layer(0)[0] is keys.of_layer(0)[0]) == keep


def test_text_features_are_those_of_the_padded_encoder(both):
    batch = make_batch(both, texts=(9, 4, 6, 4, 2, 9, 1))
    texts = (batch["text_input_ids"], batch["text_attention_mask"])
    expected = both.text_model(*texts).pooler_output
    for at_once in (None, 1, 3):
        assert torch.allclose(both.get_text_features(*texts, texts_at_once=at_once), expected, atol=1e-6)


# -------------------------------------------------------------------- options of annotation


def test_several_texts_of_a_class_are_averaged(both):
    batch = make_batch(both, texts=(9, 4, 6, 5))
    classes = torch.tensor([1, 0, 1, 2])
    given = both.annotate(**batch, text_class_ids=classes)
    logits, probability = both(**batch).logits, both.match(**batch)

    def mean(x):
        return torch.stack([x[:, classes == c].mean(1) for c in range(3)], dim=1)

    assert torch.allclose(given.similarity, mean(logits).softmax(1), atol=1e-6)
    assert torch.allclose(given.matching_probability, mean(probability), atol=1e-6)
    assert torch.allclose(given.matching, mean(probability).softmax(1), atol=1e-6)


@pytest.mark.parametrize("pairs_at_once", [None, 2])
def test_a_shortlist_matches_the_most_similar_classes(both, pairs_at_once):
    batch = make_batch(both, texts=(9, 4, 6, 5, 3))
    whole = both.annotate(**batch)
    given = both.annotate(**batch, shortlist=2, pairs_at_once=pairs_at_once)
    asked = torch.zeros(3, 5, dtype=torch.bool).scatter(1, whole.similarity.topk(2, dim=1).indices, True)
    assert torch.equal(given.matching_probability.isnan(), ~asked)
    assert torch.allclose(given.matching_probability[asked], whole.matching_probability[asked], atol=1e-6)
    expected = whole.matching_probability.masked_fill(~asked, 0.0).softmax(1)
    assert torch.allclose(given.matching, expected, atol=1e-6)
    assert torch.equal(both.annotate(**batch, shortlist=5).scores, whole.scores)
    several = both.annotate(**batch, shortlist=1, text_class_ids=torch.tensor([0, 0, 1, 1, 1]))
    assert (several.matching_probability.isnan().sum(1) == 1).all()


def test_text_features_that_are_ready(both, monkeypatch):
    batch = make_batch(both)
    features = both.get_text_features(batch["text_input_ids"], batch["text_attention_mask"])
    expected = both.annotate(**batch).scores
    monkeypatch.setattr(both.text_model, "encode_texts", None)
    assert torch.equal(both.annotate(**batch, text_features=features).scores, expected)
    with pytest.raises(ValueError, match="2 text_features for 3 texts"):
        both.annotate(**batch, text_features=features[:2])


def test_duplicate_candidates_get_the_same_score(both, caplog, monkeypatch):
    from cellglot.modeling import modeling_langcell

    said = []
    monkeypatch.setattr(modeling_langcell.logger, "warning_once", said.append)
    batch = make_batch(both)
    both.annotate(**batch)
    assert not said
    for name in ("text_input_ids", "text_attention_mask"):
        batch[name] = batch[name][[0, 1, 2, 0]]
    given = both.annotate(**batch)
    assert torch.equal(given.scores[:, 0], given.scores[:, 3])
    assert "4 texts, but only 3 different" in said[0]
    said.clear()
    both.annotate(**batch, text_class_ids=torch.tensor([0, 1, 2, 0]))
    assert not said


# -------------------------------------------------------------------- bad input


def test_bad_candidates(both):
    batch = make_batch(both)
    cells = {n: batch[n] for n in ("input_ids", "attention_mask")}
    for none in ({}, {"text_input_ids": torch.zeros(0, 4, dtype=torch.long)}):
        for method in (both.match, both.annotate):
            with pytest.raises(ValueError, match="no texts"):
                method(**cells, **none)
    empty = batch["text_attention_mask"].clone()
    empty[1] = 0
    with pytest.raises(ValueError, match="text 1 of 3 is empty"):
        both.annotate(**(batch | {"text_attention_mask": empty}))
    with pytest.raises(ValueError, match="vocab_size=50"):
        both.annotate(**(batch | {"text_input_ids": batch["text_input_ids"] + 40}))
    with pytest.raises(ValueError, match="positions for 32"):
        both.get_text_features(torch.full((1, 40), 7))
    for classes, said in (([0, 2, 2], "each with at least one"), ([0, 1], "shape"), ([0, -1, 1], "counted from 0")):
        with pytest.raises(ValueError, match=said):
            both.annotate(**batch, text_class_ids=torch.tensor(classes))
    with pytest.raises(ValueError, match="shortlist=0"):
        both.annotate(**batch, shortlist=0)
    with pytest.raises(ValueError, match="alpha=2"):
        both.annotate(**batch, alpha=2)


def test_towers_of_other_sizes(langcell_config):
    with pytest.raises(
        StrictDataclassClassValidationError, match="cell_config.projection_dim=3, but projection_dim=8"
    ):
        langcell_config(cell={"projection_dim": 3})
    with pytest.raises(
        StrictDataclassClassValidationError, match="encoder_hidden_size=99, but\\s+cell_config.hidden_size=16"
    ):
        langcell_config(text={"encoder_hidden_size": 99})
    with pytest.raises(StrictDataclassClassValidationError, match="stage=3"):
        langcell_config(stage=3)
    with pytest.raises(StrictDataclassClassValidationError, match="not a multiple"):
        langcell_config(text={"num_attention_heads": 5})


def test_configurations_of_other_text_encoders():
    from transformers import BertConfig, DebertaV2Config, ElectraConfig, RobertaConfig

    assert LangCellConfig(text_config=BertConfig(vocab_size=77)).text_config.vocab_size == 77
    assert (
        LangCellConfig(text_config=RobertaConfig(max_position_embeddings=514)).text_config.max_position_embeddings
        == 512
    )
    assert LangCellConfig(text_config={"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2})
    with pytest.raises(ValueError, match="'deberta-v2' .* cannot be LangCell's"):
        LangCellConfig(text_config=DebertaV2Config())
    with pytest.raises(ValueError, match="embedding_size=128 and hidden_size=256 differ"):
        LangCellConfig(text_config=ElectraConfig())


def test_published_sizes_are_the_default():
    config = LangCellConfig()
    assert (config.vocab_size, config.cell_config.hidden_size, config.cell_config.num_hidden_layers) == (
        25427,
        512,
        12,
    )
    assert (config.text_config.vocab_size, config.text_config.hidden_size, config.projection_dim) == (30524, 768, 256)
    assert config.tau == 0.05
