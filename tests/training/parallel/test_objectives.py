"""Steps of parts, of several processes, and of both have the loss and the gradients of the whole batch."""

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from cellglot.modeling import (
    ExceiverConfig,
    ExceiverForMaskedExpression,
    LangCellForPreTraining,
    ScCelloForPreTraining,
)
from cellglot.training.arguments import CellTrainingArguments
from cellglot.training.trainer import CellTrainer


SCRIPT = Path(__file__).with_name("objectives.py")
CELLS, AT_ONCE = 12, 3
LEVELS = torch.tensor([[6, 4, 2, 1, 1], [4, 6, 2, 1, 1], [2, 2, 6, 3, 1], [1, 1, 3, 6, 2], [1, 1, 1, 2, 6]])


def make_batch(family):
    """Cells of unequal lengths with masked genes; one without a type or text, the third with the text of the first."""
    random = torch.Generator().manual_seed(3)
    input_ids = torch.randint(2, 39, (CELLS, 14), generator=random)
    input_ids[:, 0] = 41
    for row in range(CELLS):
        input_ids[row, 14 - row % 5 :] = 0
    masked = (torch.rand(input_ids.shape, generator=random) < 0.3) & (input_ids > 1) & (input_ids < 41)
    batch = {
        "input_ids": input_ids.masked_fill(masked, 1),
        "attention_mask": (input_ids != 0).long(),
        "labels": input_ids.masked_fill(~masked, -100),
    }
    if family == "sccello":
        return batch | {"cell_type_ids": torch.tensor([0, 1, 2, 3, 4, 0, 1, -100, 2, 4, 3, 1])}
    texts = torch.randint(5, 50, (CELLS, 7), generator=random)
    texts[:, 0] = 2
    texts[2] = texts[0]
    texts[4, 5:] = 0
    ids = torch.tensor([0, 1, 0, 3, 4, 5, 6, -100, 8, 9, 10, 11])
    return batch | {"text_input_ids": texts, "text_attention_mask": (texts != 0).long(), "text_ids": ids}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("objectives", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(sccello_config, langcell_config, tmp_path):
    """Both models without dropout, and their batches."""
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sccello = ScCelloForPreTraining(sccello_config(**still))
    sccello.set_ontology(LEVELS, torch.eye(5, dtype=torch.bool))
    models = {"sccello": sccello, "langcell": LangCellForPreTraining(langcell_config(cell=still, text=still))}
    for family, model in models.items():
        model.save_pretrained(tmp_path / family)
        torch.save(make_batch(family), tmp_path / f"{family}.pt")
    return tmp_path


def assert_same_step(given, expected, tolerance):
    assert given["parts"].keys() == expected["parts"].keys()
    for name, part in expected["parts"].items():
        assert torch.allclose(given["parts"][name], part, rtol=tolerance), name
    assert torch.allclose(given["loss"], expected["loss"], rtol=tolerance)
    largest = max(float(g.abs().max()) for g in expected["gradients"].values())
    for name, gradient in expected["gradients"].items():
        assert torch.allclose(given["gradients"][name], gradient, rtol=tolerance, atol=tolerance * largest), name


@pytest.mark.parametrize("family", ["sccello", "langcell"])
@pytest.mark.parametrize("at_once", [3, 5])
def test_cached_gradients_are_those_of_the_whole_batch(script, folder, family, at_once):
    whole, parts = script.step(folder, family, "", 0, like=at_once), script.step(folder, family, "", at_once)
    assert len(whole["parts"]) == 4
    assert_same_step(parts, whole, 1e-6)


@pytest.mark.parametrize("family", ["sccello", "langcell"])
@pytest.mark.parametrize("weights", [0.0, 1.0])
def test_objectives_can_be_off(script, folder, family, weights):
    between = {"sccello": ["relational_alignment_weight"], "langcell": ["cell_cell_weight", "cell_text_weight"]}
    within = {
        "sccello": ["masked_gene_weight", "coherence_weight"],
        "langcell": ["masked_gene_weight", "matching_weight"],
    }
    off = [(name, 0.0) for name in (between if weights else within)[family]]
    assert_same_step(script.step(folder, family, "", 3, off), script.step(folder, family, "", 0, off), 1e-6)


MODES = [f"{f}:{w}:{n}" for f in ("sccello", "langcell") for w in ("ddp", "fsdp2") for n in (0, AT_ONCE)]


@pytest.mark.long
def test_processes_and_parts_are_one_on_the_joined_batch(script, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), *MODES], capture_output=True, text=True, check=False, timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one = {family: script.step(folder, family, "", 0, like=6) for family in ("sccello", "langcell")}
    for rank in range(2):
        found = torch.load(folder / f"found-{rank}.pt", weights_only=True)
        assert found.keys() == set(MODES)
        for mode, step in found.items():
            assert_same_step(step, one[mode.split(":")[0]], 1e-6)


class Held:
    """A tensor that the backward pass needs, and the bytes of all of them."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        size = tensor.numel() * tensor.element_size()
        Held.now += size
        Held.most = max(Held.most, Held.now)
        weakref.finalize(self, Held.release, size)

    @staticmethod
    def release(size):
        Held.now -= size


@pytest.mark.parametrize("family", ["sccello", "langcell"])
def test_memory_is_that_of_a_part(script, folder, family):
    kept = {}
    for at_once in (0, AT_ONCE):
        gc.collect()
        Held.now = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            script.step(folder, family, "", at_once)
        kept[at_once] = Held.most
    assert kept[AT_ONCE] < 0.5 * kept[0]


@pytest.mark.parametrize("family", ["sccello", "langcell"])
def test_both_passes_have_the_same_noise(folder, family, tmp_path):
    dropout = {"hidden_dropout_prob": 0.2}
    model_class = {"sccello": ScCelloForPreTraining, "langcell": LangCellForPreTraining}[family]
    changes = dropout if family == "sccello" else {}
    model = model_class.from_pretrained(folder / family, **changes)
    if family == "langcell":
        for part in model.modules():
            if hasattr(part, "p"):
                part.p = 0.2
        model.config.cell_config.hidden_dropout_prob = 0.2
    arguments = CellTrainingArguments(tmp_path / "run", use_cpu=True, grad_cache=AT_ONCE, report_to="none")
    trainer = CellTrainer(model=model, args=arguments, data_collator=list)
    seen = []
    encoder = model.sccello if family == "sccello" else model.cell_model
    encoder.register_forward_hook(lambda module, given, output: seen.append(output.pooler_output.detach()))
    batch = torch.load(folder / f"{family}.pt", weights_only=True)
    before = torch.get_rng_state()
    trainer.training_step(model, batch, (batch["labels"] != -100).sum())
    parts = CELLS // AT_ONCE
    assert len(seen) == 2 * parts and len(seen[0]) == 2 * AT_ONCE  # every cell twice
    assert all(torch.equal(a, b) for a, b in zip(seen[:parts], seen[parts:], strict=True))
    assert not torch.allclose(seen[0][:AT_ONCE], seen[0][AT_ONCE:])
    assert not torch.equal(before, torch.get_rng_state())


def test_models_without_objectives_between_cells_are_refused(tmp_path):
    model = ExceiverForMaskedExpression(ExceiverConfig(vocab_size=42))
    arguments = CellTrainingArguments(tmp_path, use_cpu=True, grad_cache=4, report_to="none")
    with pytest.raises(ValueError, match=r"grad_cache 4: ExceiverForMaskedExpression .*gradient_accumulation_steps"):
        CellTrainer(model=model, args=arguments, data_collator=list)
    with pytest.raises(ValueError, match="grad_cache 0: it is a number of cells"):
        CellTrainingArguments(tmp_path, grad_cache=0)
