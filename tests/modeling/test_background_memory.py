"""What the background comes to is kept while nothing changes, and never longer."""

import copy
import io

import peft
import pytest
import torch

from cellglot.modeling import ExceiverModel, modeling_exceiver
from cellglot.modeling.background_attention import BackgroundMemory


@pytest.fixture
def model(exceiver_config):
    torch.manual_seed(0)
    model = ExceiverModel(exceiver_config(unexpressed_genes="bias")).eval()
    model.set_background_values(torch.randn(40))
    with torch.no_grad():
        model.encoder.cross_attn.v_proj.bias.normal_()
    return model


@pytest.fixture
def computed(monkeypatch):
    """Count how often sums of the background are computed without gradients."""
    calls = []
    compute = modeling_exceiver.background_sums

    def counted(*arguments):
        calls.append(len(calls))
        return compute(*arguments)

    monkeypatch.setattr(modeling_exceiver, "background_sums", counted)
    return calls


def cells(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(40, generator=random)[:12] for _ in range(n)])
    return ids, 1 + torch.randn(n, 12, generator=random)


def embed(model, batch):
    with torch.no_grad():
        return model(*batch).last_hidden_state


def anew(model, batch):
    """Embed by a model that keeps nothing."""
    return model(*batch).last_hidden_state.detach()


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_batches_share_what_is_computed_once(model, computed, without_gradients):
    with without_gradients():
        for seed, n in enumerate((3, 1, 5)):
            found = model(*cells(n, seed)).last_hidden_state
            with torch.inference_mode(False), torch.enable_grad():
                expected = anew(model, cells(n, seed))
            assert torch.allclose(found, expected, atol=1e-6)
    assert len(computed) == 1


CHANGES = {
    "a step of training": lambda m: m.encoder.cross_attn.k_proj.weight.mul_(-3.0),
    "data that no version counts": lambda m: m.encoder.cross_attn.v_proj.bias.data.add_(0.5),
    "another parameter": lambda m: setattr(m.encoder.norm_key_value, "bias", torch.nn.Parameter(torch.randn(8))),
    "a parameter less": lambda m: setattr(m.encoder.cross_attn.v_proj, "bias", None),
    "a number": lambda m: setattr(m.encoder.norm_key_value, "eps", 1.0),
    "embeddings": lambda m: m.gene_embedding.weight[:20].neg_(),
    "queries": lambda m: m.latent_queries.mul_(2.0),
    "background values": lambda m: m.set_background_values(torch.randn(40)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n", [1, 4])
def test_every_change_is_noticed(model, computed, change, n):
    before = embed(model, cells(n))
    with torch.no_grad():
        CHANGES[change](model)
    after = embed(model, cells(n))
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(after, anew(model, cells(n)), atol=1e-6)
    assert len(computed) == 2


def test_background_values_of_a_call_are_taken(model):
    batch, other = cells(2), torch.randn(40)
    embed(model, batch)
    with torch.no_grad():
        given = model(*batch, background_values=other).last_hidden_state
    model.set_background_values(other)
    assert torch.allclose(given, anew(model, batch), atol=1e-6)


def test_adapters_and_hooks_are_not_passed_over(model, computed):
    batch, seen = cells(2), []
    plain = embed(model, batch)
    handle = model.encoder.cross_attn.v_proj.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    for _ in range(2):
        embed(model, batch)
    handle.remove()
    assert seen == [12, 40] * 2
    settings = peft.LoraConfig(target_modules=["k_proj", "v_proj"], init_lora_weights=False, r=2)
    adapted = peft.get_peft_model(model, settings).eval()
    with_adapter = embed(adapted, batch)
    with adapted.disable_adapter():
        assert torch.allclose(embed(adapted, batch), plain, atol=1e-6)
    assert not torch.allclose(with_adapter, plain, atol=1e-4)
    assert torch.allclose(embed(adapted, batch), with_adapter)
    assert len(computed) == 1


def test_nothing_is_kept_with_gradients_nor_in_copies(model, computed):
    batch, memory = cells(2), model.encoder.background_memory
    anew(model, batch)
    assert memory.kept is None and not computed
    expected = embed(model, batch)
    assert memory.kept is not None
    written = io.BytesIO()
    torch.save(model, written)
    written.seek(0)
    for other in (copy.deepcopy(model), torch.load(written, weights_only=False)):
        assert other.encoder.background_memory.kept is None
        assert torch.equal(embed(other, batch), expected)
    assert not any("memory" in name for name in model.state_dict())


def test_other_types_and_shapes_are_others():
    memory, computed = BackgroundMemory(), []
    for tensor in (torch.ones(3), torch.ones(3), torch.ones(3, 1), torch.ones(3).half(), torch.ones(3).half()):
        memory([tensor], lambda: computed.append(1))
    assert len(computed) == 3
