import re

import numpy as np
import pytest
import torch
from model_records import RECORDS, Exceiver, assert_same_gradients, gradients, some_loss

from cellglot.modeling import (
    ExceiverConfig,
    ExceiverForMaskedExpression,
    ExceiverForSequenceClassification,
    ExceiverModel,
)


CLASSES = (ExceiverModel, ExceiverForMaskedExpression, ExceiverForSequenceClassification)
make_batch = Exceiver.batch


@pytest.fixture(params=["exclude", "bias"])
def mode(request):
    return request.param


@pytest.fixture(params=[record for record in RECORDS if record.family is Exceiver], ids=str)
def record(request):
    return request.param


# -------------------------------------------------------------------- what the modes mean


def dense_reference(model, batch):
    """Latents by attention over all genes of every cell, as the released code does it."""
    base = getattr(model, "exceiver", model)
    config, weight, block = base.config, base.gene_embedding.weight, base.encoder
    rows, expressed = [], []
    for cell in range(len(batch["input_ids"])):
        genes = weight[:40] * base.background_values[:, None]
        taking_part = torch.zeros(40, dtype=torch.bool)
        for place, gene in enumerate(batch["input_ids"][cell].tolist()):
            if gene < 40:
                taking_part[gene] = True
                value = batch["expression_values"][cell, place]
                hidden = batch["masked_genes"][cell, place]
                genes = genes.index_put((torch.tensor(gene),), weight[40] if hidden else weight[gene] * value)
        rows.append(genes)
        expressed.append(taking_part)
    keys, expressed = block.norm_key_value(torch.stack(rows)), torch.stack(expressed)
    attn = block.cross_attn
    latents = base.latent_queries.expand(len(rows), -1, -1)
    query, key, value = (
        attn.split_heads(projection(states))
        for projection, states in ((attn.q_proj, block.norm_query(latents)), (attn.k_proj, keys), (attn.v_proj, keys))
    )
    logits = query @ key.transpose(-1, -2) * attn.scaling
    unexpressed = ~expressed[:, None, None, :]
    if config.unexpressed_genes == "bias":
        logits = logits + unexpressed.float()
    else:
        logits = logits.masked_fill(unexpressed, -torch.inf)
    context = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
    states = latents + attn.o_proj(context)
    states = states + block.mlp(states)
    for layer in base.layers:
        states = layer(states)
    return states


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [4, 8])
def test_both_modes_are_attention_over_all_genes(exceiver_config, mode, implementation, heads):
    torch.manual_seed(1)
    model = ExceiverModel(exceiver_config(unexpressed_genes=mode, num_cross_attention_heads=heads))
    model.set_background_values(torch.randn(40))
    model.set_attn_implementation(implementation)
    batch = make_batch(model, lengths=(17, 1, 40, 30))
    expected = dense_reference(model, batch)
    assert torch.allclose(model(**batch).last_hidden_state, expected, atol=2e-5)
    model.zero_grad()
    some_loss(expected).backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    wanted["gene_embedding.weight"][40] = 0  # padding is never trained
    model.zero_grad()
    some_loss(model(**batch).last_hidden_state).backward()
    given = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same_gradients(wanted, given, tolerance=5e-4)


def test_extreme_logits_stay_finite_and_exact(exceiver_config):
    torch.manual_seed(2)
    model = ExceiverModel(exceiver_config(unexpressed_genes="bias"))
    model.set_background_values(torch.randn(40))
    with torch.no_grad():
        model.encoder.cross_attn.q_proj.weight.mul_(30)
    batch = make_batch(model)
    expected = dense_reference(model, batch)
    given = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        given[implementation] = gradients(model, batch)
        assert torch.allclose(model(**batch).last_hidden_state, expected, atol=1e-4)
    assert_same_gradients(given["eager"], given["sdpa"], tolerance=1e-3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cells_without_expressed_genes(exceiver_config, mode, implementation):
    torch.manual_seed(0)
    model = ExceiverForMaskedExpression(exceiver_config(unexpressed_genes=mode))
    model.exceiver.set_background_values(torch.randn(40))
    model.set_attn_implementation(implementation)
    batch = make_batch(model, lengths=(9, 0, 5))
    alone = model(torch.empty(1, 0, dtype=torch.long), torch.empty(1, 0), query_ids=batch["query_ids"][1:2])
    together = model(**batch)
    assert torch.allclose(together.last_hidden_state[1], alone.last_hidden_state[0], atol=1e-5)
    together.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_the_mode_is_read_at_every_call(exceiver_config):
    torch.manual_seed(0)
    model = ExceiverModel(exceiver_config()).eval()
    batch = make_batch(model)
    background = torch.randn(40)
    excluded = model(**batch, background_values=background).last_hidden_state
    assert torch.equal(excluded, model(**batch).last_hidden_state)
    model.config.unexpressed_genes = "bias"
    biased = model(**batch, background_values=background).last_hidden_state
    assert not torch.allclose(excluded, biased)
    model.set_background_values(background)
    assert torch.equal(biased, model(**batch).last_hidden_state)


def test_masked_genes_are_hidden_and_asked_for_by_default(exceiver_config):
    torch.manual_seed(0)
    model = ExceiverForMaskedExpression(exceiver_config()).eval()
    batch = make_batch(model)
    masked = batch["masked_genes"]
    most = int(masked.sum(1).max())
    queries = torch.full((3, most), 40)
    for cell in range(3):
        queries[cell, : masked[cell].sum()] = batch["input_ids"][cell, masked[cell]]
    by_default = model(**{k: v for k, v in batch.items() if k not in ("query_ids", "labels")})
    assert torch.equal(
        by_default.predicted_expression, model(**(batch | {"query_ids": queries, "labels": None})).predicted_expression
    )
    other = batch | {"expression_values": batch["expression_values"].masked_fill(masked, 99.0)}
    assert torch.equal(model(**other).predicted_expression, model(**batch).predicted_expression)


def test_pooling(exceiver_config):
    torch.manual_seed(0)
    model = ExceiverModel(exceiver_config()).eval()
    batch = make_batch(model)
    flat = model(**batch)
    assert torch.equal(flat.pooler_output, flat.last_hidden_state.reshape(3, -1))
    model.config.pooling = "mean"
    assert torch.equal(model(**batch).pooler_output, flat.last_hidden_state.mean(1))


def test_requested_outputs(exceiver_config):
    model = ExceiverModel(exceiver_config()).eval()
    model.set_attn_implementation("eager")
    result = model(**make_batch(model), output_hidden_states=True, output_attentions=True)
    assert len(result.hidden_states) == 3
    assert [a.shape for a in result.attentions] == [(3, 2, 6, 6)] * 2
    assert result.cross_attentions[0].shape == (3, 4, 6, 24)
    assert model(**make_batch(model), return_dict=False)[0].shape == (3, 6, 16)


def test_losses_over_a_whole_step(exceiver_config):
    """Losses count by their share of the labels of the step: parts of a batch add up to the batch."""
    torch.manual_seed(0)
    for model_class in CLASSES[1:]:
        model = model_class(exceiver_config(num_labels=3)).eval()
        batch = make_batch(model, lengths=(12, 20, 7, 9))
        targets = "labels" if model_class is CLASSES[1] else "expression_labels"
        padding = batch["query_ids"] == model.config.pad_token_id
        batch[targets] = batch[targets].masked_fill(padding, -100.0)
        if model_class is not CLASSES[1]:
            batch["query_ids"][0, -1], batch[targets][0, -1] = 3, 1.5  # cells with equal numbers of queries
        whole = model(**batch)
        items = (batch["labels"] != -100).sum()
        parts = [model(**{k: v[c] for k, v in batch.items()}, num_items_in_batch=items) for c in ([0, 1, 2], [3])]
        assert torch.allclose(sum(p.loss for p in parts), whole.loss, rtol=1e-6)


# -------------------------------------------------------------------- the wide feed-forward block


@pytest.mark.parametrize("tokens", [1, 255, 256, 700])
def test_the_wide_block_gives_the_values_and_gradients_of_its_layers(tokens):
    from cellglot.modeling.cpu_layers import pays, wide_feed_forward

    torch.manual_seed(0)
    linear1, linear2 = torch.nn.Linear(4, 128), torch.nn.Linear(128, 4)
    x = torch.randn(tokens, 4, requires_grad=True)
    assert pays(x, linear1, torch.nn.GELU())
    assert not pays(x, torch.nn.Linear(4, 32), torch.nn.GELU())
    assert not pays(x, linear1, torch.nn.ReLU())
    grads = []
    for function in (
        lambda: wide_feed_forward(x, linear1, linear2),
        lambda: linear2(torch.nn.functional.gelu(linear1(x))),
    ):
        for tensor in (x, *linear1.parameters(), *linear2.parameters()):
            tensor.grad = None
        y = function()
        y.sin().sum().backward()
        grads.append([y.detach(), x.grad, *(p.grad for p in (*linear1.parameters(), *linear2.parameters()))])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_published_sizes_take_the_wide_block(monkeypatch):
    import cellglot.modeling.modeling_exceiver as module

    called = []
    original = module.wide_feed_forward
    monkeypatch.setattr(module, "wide_feed_forward", lambda *a: (called.append(1), original(*a))[1])
    model = ExceiverModel(ExceiverConfig(vocab_size=42, num_latents=8)).eval()
    model(**make_batch(model))
    assert len(called) == 8
    model.train()
    model.config.hidden_dropout = 0.1
    for layer in model.layers:
        layer.dropout.p = 0.1
    model(**make_batch(model))
    assert len(called) == 8


# -------------------------------------------------------------------- starting weights


def test_weights_start_as_pytorchs_own_layers_do():
    torch.manual_seed(0)
    model = ExceiverForMaskedExpression(ExceiverConfig(vocab_size=2002))
    model.requires_grad_(False)
    base = model.exceiver
    assert base.gene_embedding.weight[:2000].std() == pytest.approx(1.0, rel=0.05)
    assert torch.equal(base.gene_embedding.weight[2000], torch.zeros(4))
    assert base.latent_queries.std() == pytest.approx(1.0, rel=0.1)
    layer = base.layers[0]
    assert layer.fc2.weight.abs().max() <= 2048**-0.5
    assert layer.fc2.weight.std() == pytest.approx(2048**-0.5 / 3**0.5, rel=0.05)
    assert layer.self_attn.q_proj.weight.abs().max() <= (6 / 8) ** 0.5
    assert not layer.self_attn.q_proj.bias.any()
    assert not layer.self_attn.o_proj.bias.any()
    assert layer.fc1.bias.any()
    assert (model.expression_head[1].bias.item(), model.expression_head[3].weight.item()) == (1.0, 1.0)
    assert base.background_values.isnan().all()


def test_missing_heads_are_made_anew_and_the_rest_is_loaded(exceiver_config, tmp_path):
    pretrained = ExceiverForMaskedExpression(exceiver_config())
    pretrained.save_pretrained(tmp_path)
    classifier, info = ExceiverForSequenceClassification.from_pretrained(
        tmp_path, num_labels=4, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert not info["unexpected_keys"]
    assert torch.equal(classifier.decoder.mlp[1].weight, pretrained.decoder.mlp[1].weight)
    assert torch.equal(classifier.classifier[3].weight, torch.eye(4))


# -------------------------------------------------------------------- bad input


def test_ids_beyond_the_vocabulary_name_both_numbers(model):
    batch = make_batch(model)
    for wrong in (41, 99, -1):
        ids = batch["input_ids"].clone()
        ids[0, 0] = wrong
        with pytest.raises(
            ValueError, match=rf"input_ids contains {wrong}, but this model has 40 genes .vocab_size=42"
        ):
            model(**(batch | {"input_ids": ids}))


def test_queries_beyond_the_vocabulary(exceiver_config):
    for model_class in CLASSES[1:]:
        model = model_class(exceiver_config(num_labels=3))
        batch = make_batch(model)
        batch["query_ids"][1, 2] = 41
        with pytest.raises(ValueError, match="query_ids contains 41"):
            model(**batch)


def test_bias_without_background_values_says_how_to_set_them(exceiver_config):
    for model_class in CLASSES:
        model = model_class(exceiver_config(unexpressed_genes="bias", num_labels=3))
        with pytest.raises(ValueError, match="set_background_values"):
            model(**make_batch(model))
        model(**make_batch(model), background_values=torch.zeros(40))
        with pytest.raises(ValueError, match=r"shape \(39,\), but the model has 40 genes"):
            model(**make_batch(model), background_values=torch.zeros(39))
    with pytest.raises(ValueError, match=r"shape \(3,\), but the model has 40 genes"):
        ExceiverModel(exceiver_config()).set_background_values(np.zeros(3))


def test_calls_that_miss_something(exceiver_config):
    masked = ExceiverForMaskedExpression(exceiver_config())
    batch = make_batch(masked)
    with pytest.raises(ValueError, match="no genes to predict"):
        masked(batch["input_ids"], batch["expression_values"])
    classifier = ExceiverForSequenceClassification(exceiver_config(num_labels=3))
    batch = make_batch(classifier)
    with pytest.raises(ValueError, match="expression_targets need query_ids"):
        classifier(**(batch | {"query_ids": None}))
    with pytest.raises(ValueError, match="labels contains 3, but this model has 3 classes"):
        classifier(**(batch | {"labels": torch.tensor([0, 3, 1])}))


@pytest.mark.parametrize("wrong", [lambda t: t[:, :1], lambda t: t[:1], lambda t: t[0], lambda t: t.unsqueeze(-1)])
def test_labels_of_another_shape_than_the_queries(exceiver_config, wrong):
    for model, name in (
        (ExceiverForMaskedExpression(exceiver_config()), "labels"),
        (ExceiverForSequenceClassification(exceiver_config(num_labels=3)), "expression_labels"),
    ):
        batch = make_batch(model)
        shape = tuple(wrong(batch[name]).shape)
        expected = rf"have shape {re.escape(str(shape))}, but .* {re.escape(str(tuple(batch['query_ids'].shape)))}"
        with pytest.raises(ValueError, match=expected):
            model(**(batch | {name: wrong(batch[name])}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 15}, "hidden_size=15 is not a multiple of num_attention_heads=2"),
        ({"gene_embedding_size": 6}, "gene_embedding_size=6 is not a multiple of num_cross_attention_heads=4"),
        ({"unexpressed_genes": "ignore"}, "unexpressed_genes='ignore': it has to be one of 'exclude', 'bias'"),
        ({"pooling": "cls"}, "pooling='cls': it has to be one of 'flatten', 'mean'"),
        ({"vocab_size": 2}, "vocab_size=2"),
    ],
)
def test_configurations_that_cannot_be(exceiver_config, changes, message):
    with pytest.raises(Exception, match=message):
        exceiver_config(**changes)


def test_the_configuration_names_every_auto_class(exceiver_config, tmp_path):
    exceiver_config().save_pretrained(tmp_path)
    loaded = ExceiverConfig.from_pretrained(tmp_path)
    assert set(loaded.auto_map) == {
        "AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForPreTraining",
        "AutoModelForSequenceClassification",
    }  # fmt: skip
    assert (loaded.num_genes, loaded.pad_token_id, loaded.cls_token_id) == (40, 40, 41)
    for name in set(ExceiverConfig.__annotations__) - {"auto_map", "model_type"}:
        assert name in ExceiverConfig.__doc__, f"{name} is not documented"
