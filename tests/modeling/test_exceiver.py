import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from cellglot.modeling import (
    ExceiverConfig,
    ExceiverForMaskedExpression,
    ExceiverForSequenceClassification,
    ExceiverModel,
)


CLASSES = (ExceiverModel, ExceiverForMaskedExpression, ExceiverForSequenceClassification)
MODES = ("exclude", "bias")
FIELDS = ("last_hidden_state", "pooler_output", "predicted_expression", "logits", "loss")


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture(params=CLASSES, ids=lambda c: c.__name__)
def model(request, mode, exceiver_config):
    torch.manual_seed(0)
    config = exceiver_config(unexpressed_genes=mode, num_labels=3)
    model = request.param(config)
    base = getattr(model, "exceiver", model)
    base.set_background_values(torch.randn(40))
    return model.eval()


def make_batch(model, lengths=(17, 9, 24), seed=0, **more):
    """Cells of these lengths, padded; masked genes and queries where the model takes them."""
    random = torch.Generator().manual_seed(seed)
    width = max(lengths)
    batch = {
        "input_ids": torch.full((len(lengths), width), 40),
        "expression_values": torch.zeros(len(lengths), width),
        "attention_mask": torch.zeros(len(lengths), width, dtype=torch.long),
        "masked_genes": torch.zeros(len(lengths), width, dtype=torch.bool),
    }
    for cell, n in enumerate(lengths):
        batch["input_ids"][cell, :n] = torch.randperm(40, generator=random)[:n].sort().values
        batch["expression_values"][cell, :n] = 1 + torch.randn(n, generator=random)
        batch["attention_mask"][cell, :n] = 1
        batch["masked_genes"][cell, torch.randperm(n, generator=random)[: n // 4]] = True
    if not isinstance(model, ExceiverModel):
        queries = torch.randint(0, 40, (len(lengths), 5), generator=random)
        queries[0, -1] = 40  # padded
        targets = torch.randn(len(lengths), 5, generator=random)
        batch["query_ids"] = queries
        if isinstance(model, ExceiverForSequenceClassification):
            batch |= {"labels": torch.arange(len(lengths)) % 3, "expression_labels": targets}
        else:
            batch["labels"] = targets
    return batch | more


def outputs(model, batch):
    result = model(**batch)
    return {name: result[name] for name in FIELDS if name in result and result[name] is not None}


def assert_same(a, b, tolerance=1e-5):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance), name


def some_loss(states):
    """Depend on every state; a plain sum of squares does not change under a layer norm."""
    weights = torch.randn(states[0].numel(), generator=torch.Generator().manual_seed(3))
    return (states.flatten(1) * weights).sum()


def gradients(model, batch):
    model.zero_grad()
    result = model(**batch)
    loss = result.loss if "loss" in result else some_loss(result.pooler_output)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(a, b, tolerance=1e-4):
    assert a.keys() == b.keys()
    largest = max(float(gradient.abs().max()) for gradient in a.values())
    for name in a:  # some gradients are zero but for rounding: the bias of keys shifts all logits alike
        scale = max(float(a[name].abs().max()), 0.01 * largest)
        assert torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance * scale), name


# -------------------------------------------------------------------- the table of checks


def test_eager_is_sdpa(model):
    batch, results, grads = make_batch(model), {}, {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        results[implementation], grads[implementation] = outputs(model, batch), gradients(model, batch)
    assert_same(results["eager"], results["sdpa"])
    assert_same_gradients(grads["eager"], grads["sdpa"])


def test_padded_is_unpadded(model):
    batch = make_batch(model, lengths=(13, 13))
    wider = dict(batch)
    for name, value in (("input_ids", 40), ("expression_values", 7.0), ("attention_mask", 0), ("masked_genes", False)):
        wider[name] = torch.nn.functional.pad(batch[name], (0, 6), value=value)
    assert_same(outputs(model, batch), outputs(model, wider))
    del wider["attention_mask"]  # padding is known by its id
    assert_same(outputs(model, batch), outputs(model, wider))


def test_batch_is_single(model):
    batch = make_batch(model)
    together = outputs(model, batch)
    together.pop("loss", None)
    for cell in range(3):
        alone = outputs(model, {name: value[cell : cell + 1] for name, value in batch.items()})
        alone.pop("loss", None)
        assert_same({name: value[cell : cell + 1] for name, value in together.items()}, alone)


def test_saved_is_loaded(model, tmp_path):
    batch = make_batch(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_same(outputs(model, batch), outputs(loaded.eval(), batch), tolerance=0)
    background = getattr(loaded, "exceiver", loaded).background_values
    assert torch.equal(background, getattr(model, "exceiver", model).background_values)
    assert (tmp_path / "model.safetensors").exists()


def test_gradient_checkpointing_changes_nothing(model):
    batch = make_batch(model)
    model.train()
    plain = gradients(model, batch)
    model.gradient_checkpointing_enable()
    assert_same_gradients(plain, gradients(model, batch), tolerance=1e-6)


def test_compiled_is_eager(model):
    batch = make_batch(model)
    expected, grads = outputs(model, batch), gradients(model, batch)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_same(expected, outputs(compiled, batch))
    assert_same_gradients(
        grads, {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, batch).items()}
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is none")
def test_compiled_by_inductor(exceiver_config, mode):
    torch.manual_seed(0)
    model = ExceiverForMaskedExpression(exceiver_config(unexpressed_genes=mode)).eval()
    model.exceiver.set_background_values(torch.randn(40))
    batch = make_batch(model)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_same(outputs(model, batch), outputs(torch.compile(model), batch))


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_loaded_without_cellglot_is_loaded_with_it(model_class, exceiver_config, tmp_path):
    torch.manual_seed(0)
    for mode in MODES:
        model = model_class(exceiver_config(unexpressed_genes=mode, num_labels=3)).eval()
        getattr(model, "exceiver", model).set_background_values(torch.randn(40))
        model.save_pretrained(tmp_path / mode)
        batch = make_batch(model)
        torch.save(batch, tmp_path / mode / "batch.pt")
        torch.save({n: v.detach() for n, v in outputs(model, batch).items()}, tmp_path / mode / "expected.pt")
    auto = {
        ExceiverModel: "AutoModel",
        ExceiverForMaskedExpression: "AutoModelForMaskedLM",
        ExceiverForSequenceClassification: "AutoModelForSequenceClassification",
    }[model_class]
    script = f"""
        import sys
        sys.modules["cellglot"] = None
        import torch, transformers
        for mode in {MODES!r}:
            folder = {str(tmp_path)!r} + "/" + mode
            model = transformers.{auto}.from_pretrained(folder, trust_remote_code=True).eval()
            assert type(model).__module__.startswith("transformers_modules"), type(model)
            assert type(model).__name__ == {model_class.__name__!r}
            given = model(**torch.load(folder + "/batch.pt", weights_only=True))
            for name, value in torch.load(folder + "/expected.pt", weights_only=True).items():
                assert torch.equal(given[name], value), name
    """
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_bfloat16_is_near_float32(model):
    batch = make_batch(model)
    expected = outputs(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = outputs(model, batch)
    model.to(torch.bfloat16)
    half = outputs(model, batch)
    for name, value in expected.items():
        scale = float(value.detach().abs().max())
        for other in (mixed, half):
            assert other[name].isfinite().all()
            assert float((other[name].float() - value).detach().abs().max()) < 0.15 * scale + 0.15, name
    for gradient in gradients(model, batch).values():
        assert gradient.isfinite().all()


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
            ValueError, match=rf"input_ids holds the id {wrong}, but this model has 40 genes .vocab_size=42"
        ):
            model(**(batch | {"input_ids": ids}))


def test_queries_beyond_the_vocabulary(exceiver_config):
    for model_class in CLASSES[1:]:
        model = model_class(exceiver_config(num_labels=3))
        batch = make_batch(model)
        batch["query_ids"][1, 2] = 41
        with pytest.raises(ValueError, match="query_ids holds the id 41"):
            model(**batch)


def test_bias_without_background_values_says_how_to_set_them(exceiver_config):
    for model_class in CLASSES:
        model = model_class(exceiver_config(unexpressed_genes="bias", num_labels=3))
        with pytest.raises(ValueError, match="set_background_values"):
            model(**make_batch(model))
        model(**make_batch(model), background_values=torch.zeros(40))
        with pytest.raises(ValueError, match=r"shape \(39,\), the model has 40 genes"):
            model(**make_batch(model), background_values=torch.zeros(39))
    with pytest.raises(ValueError, match=r"shape \(3,\) for a model of 40 genes"):
        ExceiverModel(exceiver_config()).set_background_values(np.zeros(3))


def test_calls_that_miss_something(exceiver_config):
    masked = ExceiverForMaskedExpression(exceiver_config())
    batch = make_batch(masked)
    with pytest.raises(ValueError, match="which genes to predict"):
        masked(batch["input_ids"], batch["expression_values"])
    classifier = ExceiverForSequenceClassification(exceiver_config(num_labels=3))
    batch = make_batch(classifier)
    with pytest.raises(ValueError, match="expression_labels need query_ids"):
        classifier(**(batch | {"query_ids": None}))
    with pytest.raises(ValueError, match="label 3 is none of the model's 3 classes"):
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
        ({"hidden_size": 15}, "hidden_size=15 is no multiple of num_attention_heads=2"),
        ({"gene_embedding_size": 6}, "gene_embedding_size=6 is no multiple of num_cross_attention_heads=4"),
        ({"unexpressed_genes": "ignore"}, "unexpressed_genes='ignore': it is one of 'exclude', 'bias'"),
        ({"pooling": "cls"}, "pooling='cls': it is one of 'flatten', 'mean'"),
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
