"""Without gradients, keys and values of genes come from a table: the same cells, also after a change of weights."""

import copy

import peft
import pytest
import torch
from model_records import Exceiver
from torch import nn

from cellglot.modeling import ExceiverModel, modeling_exceiver
from cellglot.modeling.gene_projections import GeneProjections


@pytest.fixture
def model(exceiver_config):
    torch.manual_seed(0)
    model = ExceiverModel(exceiver_config(unexpressed_genes="exclude", num_cross_attention_heads=4)).eval()
    with torch.no_grad():
        for module in (model.encoder.norm_key_value, model.encoder.cross_attn.k_proj, model.encoder.cross_attn.v_proj):
            module.bias.normal_()
        model.encoder.norm_key_value.weight.normal_()
    return model


@pytest.fixture
def made(monkeypatch):
    """Count the tables that are made."""
    calls = []

    class Counted(GeneProjections):
        def __init__(self, *arguments):
            calls.append(len(calls))
            super().__init__(*arguments)

    monkeypatch.setattr(modeling_exceiver, "GeneProjections", Counted)
    return calls


def latents(model, batch, gradients=False):
    with torch.set_grad_enabled(gradients):
        return model(**batch).last_hidden_state.detach()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_table_gives_what_the_layers_give(model, made, implementation):
    model.set_attn_implementation(implementation)
    batch = Exceiver.batch(model, lengths=(17, 1, 40, 30, 0))
    for changed in (False, True):
        if changed:  # also behind the back of version counters
            model.gene_embedding.weight.data[3] += 1.0
        expected = latents(model, batch, gradients=True)
        assert len(made) == changed
        assert torch.allclose(latents(model, batch), expected, atol=2e-5)
        with torch.inference_mode():
            assert torch.allclose(model(**batch).last_hidden_state, expected, atol=2e-5)
        latents(model, batch)
        made[:] = [0] * (changed + 1)
    copied = copy.deepcopy(model)
    assert copied.encoder.gene_memory.kept is None and torch.equal(latents(copied, batch), latents(model, batch))


def test_few_genes_and_changed_layers_are_computed_by_the_layers(model, made):
    few = Exceiver.batch(model, lengths=(5, 3))
    assert torch.equal(latents(model, few), latents(model, few, gradients=True)) and not made
    batch = Exceiver.batch(model, lengths=(40, 30))
    seen = []
    hook = model.encoder.cross_attn.k_proj.register_forward_hook(lambda *given: seen.append(given))
    latents(model, batch)
    hook.remove()
    assert len(seen) == 1 and not made
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch)
    latents(copy.deepcopy(model).double(), batch | {"expression_values": batch["expression_values"].double()})
    assert not made
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["v_proj"]))
    nn.init.normal_(adapted.base_model.model.encoder.cross_attn.v_proj.lora_B["default"].weight)
    assert torch.equal(latents(adapted, batch), latents(adapted, batch, gradients=True)) and not made


def test_requested_weights_of_attention_are_returned(model, made):
    model.set_attn_implementation("eager")
    batch = Exceiver.batch(model, lengths=(40, 30))
    before = latents(model, batch)
    assert len(made) == 1
    with torch.no_grad():
        found = model(**batch, output_attentions=True)
    assert found.cross_attentions[0].shape[-1] == 40 and torch.allclose(found.last_hidden_state, before, atol=2e-5)
