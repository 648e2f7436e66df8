"""The table of checks: what holds for every model, run over all records."""

import shutil

import pytest
import torch
from model_records import RECORDS, assert_same, assert_same_gradients, gradients, outputs, padded, without_dropout


def test_eager_is_sdpa(record, model):
    batch, results, grads = record.batch(model), {}, {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        results[implementation], grads[implementation] = outputs(model, batch), gradients(model, batch)
    assert_same(results["eager"], results["sdpa"])
    assert_same_gradients(grads["eager"], grads["sdpa"], tolerance=5e-4)


def test_padded_is_unpadded(record, model):
    rows = {"texts": (5, 5, 5)} if record.family.__name__ == "LangCell" else {}
    batch = record.batch(model, lengths=(13, 13, 13), **rows)
    wider = padded(record, batch, 6)
    narrow, given = outputs(model, batch), outputs(model, wider)

    def cropped(found):
        return {n: v[tuple(map(slice, narrow[n].shape))] for n, v in found.items()}

    assert_same(narrow, cropped(given))
    del wider["attention_mask"]  # padding is known by its id
    assert_same(narrow, cropped(outputs(model, wider)))


def test_batch_is_single(record, model):
    batch = record.batch(model)
    together = outputs(model, batch)
    assert set(record.rows) <= together.keys()
    for row in range(len(batch["input_ids"])):
        alone = outputs(model, {name: value[row : row + 1] for name, value in batch.items()})
        assert_same({n: together[n][row : row + 1] for n in record.rows}, {n: alone[n] for n in record.rows})


def test_saved_is_loaded(record, model, tmp_path):
    batch = record.batch(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(outputs(model, batch), outputs(loaded.eval(), batch), tolerance=0)
    buffers = dict(loaded.named_buffers())
    for name, values in model.named_buffers():  # such as background values and tables of the ontology
        assert torch.equal(buffers[name], values), name


def test_gradient_checkpointing_changes_nothing(record, model):
    batch = record.batch(model)
    model.train()
    plain = gradients(model, batch)
    model.gradient_checkpointing_enable()
    assert_same_gradients(plain, gradients(model, batch), tolerance=1e-5)


# What stands for all in `make test`: background values, queries and masks of several kinds.
COMPILED = next(r for r in RECORDS if str(r) == "ExceiverForMaskedExpression-bias")


@pytest.mark.parametrize(
    "record",
    [pytest.param(r, id=str(r), marks=[] if r is COMPILED else pytest.mark.long) for r in RECORDS],
    indirect=True,
)
def test_compiled_is_eager(record, model):
    batch = record.batch(model)
    without_dropout(model).train()
    expected, grads = outputs(model, batch), gradients(model, batch)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert_same(expected, outputs(compiled, batch))
    assert_same_gradients(grads, gradients(compiled, batch))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is none")
@pytest.mark.long
@pytest.mark.parametrize("record", [r for r in RECORDS if r.compiled], ids=str, indirect=True)
def test_compiled_by_inductor(record, model):
    batch = record.batch(model)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_same(outputs(model, batch), outputs(torch.compile(model), batch))


@pytest.mark.long
def test_loaded_without_cellglot_is_loaded_with_it(request, stranger, tmp_path):
    for record in RECORDS:
        model, folder = record.model(request.getfixturevalue), tmp_path / str(record)
        model.save_pretrained(folder)
        batch = record.batch(model)
        torch.manual_seed(1)
        expected = {n: v.detach() for n, v in model(**batch).items() if isinstance(v, torch.Tensor)}
        torch.save([batch, expected], folder / "expected.pt")
    script = """
        import torch, transformers
        for folder, name, auto in arguments:
            model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
            assert type(model).__module__.startswith("transformers_modules"), type(model)
            assert type(model).__name__ == name
            batch, expected = torch.load(folder + "/expected.pt", weights_only=True)
            torch.manual_seed(1)
            given = model(**batch)
            for field, value in expected.items():
                assert torch.allclose(given[field], value, atol=1e-6), (name, field)
            if name == "LangCellModel":
                assert model.annotate(**batch).scores.shape == (3, 3)
    """
    stranger(script, *([str(tmp_path / str(r)), r.model_class.__name__, r.auto] for r in RECORDS))


def test_bfloat16_is_near_float32(record, model):
    batch = record.batch(model)
    expected = outputs(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = outputs(model, batch)
    model.to(torch.bfloat16)
    if "cell_hidden_states" in batch:
        batch["cell_hidden_states"] = batch["cell_hidden_states"].to(torch.bfloat16)
    half = outputs(model, batch)
    drawn = ("loss", "matching_loss") if "matching_loss" in expected else ()  # other negatives may be drawn
    for name, value in expected.items():
        scale = float(value.detach().abs().max())
        for other in (mixed, half):
            assert other[name].isfinite().all()
            if name not in drawn:
                assert float((other[name].float() - value).detach().abs().max()) < 0.15 * scale + 0.15, name
            if name.endswith("loss"):
                assert other[name].dtype == torch.float32, name
    for gradient in gradients(model.train(), batch).values():
        assert gradient.isfinite().all()
