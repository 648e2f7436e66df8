import os
import subprocess
import sys
import textwrap

import pytest
import torch
from model_records import (
    ANCESTORS,
    LEVELS,
    RECORDS,
    ScCello,
    assert_same,
    assert_same_gradients,
    gradients,
    outputs,
    without_dropout,
)

from cellglot.modeling import (
    ScCelloConfig,
    ScCelloForPreTraining,
    ScCelloForSequenceClassification,
    ScCelloModel,
)


LOSSES = ("masked_gene_loss", "relational_alignment_loss", "coherence_loss", "regularization_loss")
make_batch = ScCello.batch


@pytest.fixture(params=[record for record in RECORDS if record.family is ScCello], ids=str)
def record(request):
    return request.param


# -------------------------------------------------------------------- encoder


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_cells_are_padded_cells(model, implementation):
    without_dropout(model).set_attn_implementation(implementation)
    batch = make_batch(model)
    kept = batch["attention_mask"].bool()
    packed = {name: v[kept][None] if v.ndim == 2 else v for name, v in batch.items() if name != "attention_mask"}
    packed["position_ids"] = torch.cat([torch.arange(n) for n in kept.sum(1).tolist()])[None]
    for pooling in ("cls", "mean"):
        model.config.pooling = pooling
        for training in (False, True):
            model.train(training)
            padded, given = outputs(model, batch), outputs(model, packed)
            for name in ("last_hidden_state", "logits"):
                if name in padded and padded[name].ndim == 3:
                    padded[name] = padded[name][kept][None]
            shared = given.keys() & padded.keys()
            assert_same({n: padded[n] for n in shared}, {n: given[n] for n in shared})


def test_packed_cells_in_several_rows_or_with_a_mask_are_refused(sccello_config):
    model = ScCello.make(ScCelloModel, sccello_config)
    cells = torch.tensor([[41, 5, 6, 41, 7, 8, 9]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    assert len(model(cells, position_ids=positions).pooler_output) == 2
    for rows, mask, said in ((1, torch.ones_like(cells), "1 rows with"), (2, None, "2 rows without")):
        message = (
            f"again at 0 within row 0, but packed cells have to be in a single row without attention_mask: got {said}"
        )
        with pytest.raises(ValueError, match=message):
            model(cells.expand(rows, -1), mask, positions)
    padded = torch.tensor([[41, 5, 6, 0, 0], [41, 7, 8, 9, 5]])
    positions = torch.tensor([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]])  # padding may stand at 0
    for mask in (None, (padded != 0).long()):
        given = model(padded, mask, positions).pooler_output
        torch.testing.assert_close(given, model(padded).pooler_output)


def test_pooling(sccello_config):
    model = ScCello.make(ScCelloModel, sccello_config)
    batch = make_batch(model, lengths=(6, 4, 1))
    batch["input_ids"][0, 2] = 1
    states = model(**batch)
    assert torch.equal(states.pooler_output, states.last_hidden_state[:, 0])
    model.config.pooling = "mean"
    means = model(**batch).pooler_output
    hidden = states.last_hidden_state
    assert torch.allclose(means[0], hidden[0, [1, 3, 4, 5]].mean(0), atol=1e-6)
    assert torch.allclose(means[1], hidden[1, 1:4].mean(0), atol=1e-6)
    assert torch.equal(means[2], hidden[2, 0])


def test_requested_outputs(sccello_config):
    model = ScCello.make(ScCelloForPreTraining, sccello_config)
    model.set_attn_implementation("eager")
    batch = make_batch(model)
    for training in (False, True):
        result = model.train(training)(**batch, output_hidden_states=True, output_attentions=True)
        assert [h.shape for h in result.hidden_states] == [(4, 24, 16)] * 3
        assert [a.shape for a in result.attentions] == [(4, 2, 24, 24)] * 2
        assert result.last_hidden_state.shape == (4, 24, 16)
    with torch.no_grad():
        unlabelled = model.eval()(batch["input_ids"], batch["attention_mask"])
    assert unlabelled.loss is None
    assert unlabelled.logits.shape == ((batch["input_ids"] == 1).sum(), 42)


def test_a_row_of_padding_does_no_harm(model):
    batch = make_batch(model)
    batch["attention_mask"][1] = 0
    batch["input_ids"][1] = 0
    for name, value in batch.items():
        if name in ("labels", "cell_type_ids"):
            value[1] = -100
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for gradient in gradients(model.train(), batch).values():
            assert gradient.isfinite().all()


# -------------------------------------------------------------------- objectives


def test_the_shorter_way_of_training_gives_the_same(sccello_config):
    model = without_dropout(ScCello.make(ScCelloForPreTraining, sccello_config)).train()
    batch = make_batch(model)
    short, complete = gradients(model, batch), gradients(model, batch | {"return_states": True})
    assert_same_gradients(short, complete)
    result = model(**batch)
    assert result.logits is None
    assert result.last_hidden_state is None
    for mask in (batch["labels"] != -100, torch.zeros(4, 24, dtype=torch.bool)):
        labels = batch["labels"].masked_fill(~mask, -100)
        ours, other = (model(**(batch | {"labels": labels, "return_states": s})) for s in (False, True))
        assert_same({n: ours[n] for n in LOSSES}, {n: other[n] for n in LOSSES})


def test_the_noised_pass_is_one_batch_with_the_first(sccello_config, monkeypatch):
    model = ScCello.make(ScCelloForPreTraining, sccello_config, hidden_dropout_prob=0.3).train()
    batch, rows = make_batch(model), []
    model.sccello.embeddings.register_forward_hook(lambda module, given, states: rows.append(len(states)))
    for short in (False, True):
        torch.manual_seed(1)
        result = model(**batch, return_states=not short)
        assert result.cell_representation.shape == (4, 16)
        result.loss.backward()
    model(**(batch | {"cell_type_ids": None}))
    model.eval()(**batch)
    model.config.relational_alignment_weight = 0
    assert model.train()(**batch).relational_alignment_loss is None
    assert rows == [8, 8, 4, 4, 4]


def test_objectives_are_switched_off_and_weighed(sccello_config):
    model = ScCello.make(ScCelloForPreTraining, sccello_config)
    batch = make_batch(model)
    whole = model(**batch)
    assert torch.allclose(whole.loss, sum(whole[name] for name in LOSSES))
    for off in LOSSES:
        other = ScCello.make(ScCelloForPreTraining, sccello_config, **{off.replace("_loss", "_weight"): 0})(**batch)
        assert getattr(other, off) is None
        assert torch.allclose(other.loss, whole.loss - whole[off], atol=1e-5)
    model.config.coherence_weight = 0.5
    assert torch.allclose(model(**batch).loss, whole.loss - whole.coherence_loss / 2, atol=1e-5)


def test_cells_without_a_type_train_the_gene_objective_alone(sccello_config):
    model = without_dropout(ScCello.make(ScCelloForPreTraining, sccello_config)).train()
    batch = make_batch(model)
    types = batch["cell_type_ids"].clone()
    types[1] = -100
    mixed = model(**(batch | {"cell_type_ids": types}))
    known = model(**{n: v[[0, 2, 3]] for n, v in batch.items()})
    for name in LOSSES[1:]:
        assert torch.allclose(mixed[name], known[name], atol=1e-5), name
    assert torch.allclose(mixed.masked_gene_loss, model(**batch).masked_gene_loss)
    none = gradients(model, batch | {"cell_type_ids": torch.full((4,), -100)})
    genes = gradients(model, batch | {"cell_type_ids": None})
    assert_same_gradients(genes, {n: g for n, g in none.items() if n in genes})
    assert not any(g.any() for n, g in none.items() if n not in genes)


@pytest.mark.parametrize("types", [[2, 2, 2, 2], [-100] * 4])
def test_batches_with_little_to_learn_from(sccello_config, types):
    model = ScCello.make(ScCelloForPreTraining, sccello_config).train()
    batch = make_batch(model, cell_type_ids=torch.tensor(types))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    for part in (batch, {n: v[:1] for n, v in batch.items()}):
        result = model(**part)
        assert result.masked_gene_loss == 0
        assert result.relational_alignment_loss == 0
        assert result.loss.requires_grad
        for gradient in gradients(model, part).values():
            assert gradient.isfinite().all()


def test_parts_of_a_step_add_up(sccello_config):
    """Each batch counts by its share of the labels of the step, or of its cells where there are none."""
    model = ScCello.make(ScCelloForPreTraining, sccello_config)
    a, b = make_batch(model), make_batch(model, seed=5)
    first, second = (int((batch["labels"] != -100).sum()) for batch in (a, b))
    items = torch.tensor(first + second)
    alone, parts = (
        (model(**a), model(**b)),
        (model(**a, num_items_in_batch=items), model(**b, num_items_in_batch=items)),
    )
    for name in ("loss", *LOSSES):
        mean = (first * alone[0][name] + second * alone[1][name]) / items
        assert torch.allclose(parts[0][name] + parts[1][name], mean, atol=1e-6)
    del a["labels"]
    assert torch.allclose(model(**a, num_items_in_batch=16).coherence_loss, model(**a).coherence_loss / 4)


PROCESS = """
    import sys, torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from cellglot.modeling import ScCelloForPreTraining
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(ScCelloForPreTraining.from_pretrained(folder).train())
    batch = torch.load(folder + f"/batch{rank}.pt", weights_only=True)
    found = {}
    for mode, items in (("plain", None), ("trainer", int(sys.argv[3]))):
        model.zero_grad()
        result = model(**batch, num_items_in_batch=items)
        (result.loss * (1 if items is None else 2)).backward()
        found[mode] = {
            "losses": {n: v.detach() for n, v in result.items() if n.endswith("loss")},
            "gradients": {n: p.grad.clone() for n, p in model.module.named_parameters()},
        }
    torch.save(found, folder + f"/found{rank}.pt")
    dist.destroy_process_group()
"""


@pytest.mark.long
def test_two_processes_are_one(sccello_config, tmp_path):
    model = without_dropout(ScCello.make(ScCelloForPreTraining, sccello_config, hidden_dropout_prob=0.0)).train()
    batch = make_batch(model, lengths=(17, 9, 24, 13, 20, 6))
    batch["cell_type_ids"][4] = -100
    model.save_pretrained(tmp_path)
    for rank, cells in enumerate(([0, 1, 2, 3], [4, 5])):  # unequal numbers of cells
        torch.save({n: v[cells] for n, v in batch.items()}, tmp_path / f"batch{rank}.pt")
    command = [sys.executable, "-c", textwrap.dedent(PROCESS)]
    items = str(2 * int((batch["labels"] != -100).sum()))  # as if there were another such batch
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), items], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    expected, grads = outputs(model, batch), gradients(model, batch)
    found = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in expected.items():
        if name.endswith("loss"):
            for process in found:  # every process sees the joined batch's loss
                assert torch.allclose(process["plain"]["losses"][name], value, rtol=1e-5), name
            total = sum(process["trainer"]["losses"][name] for process in found)
            assert torch.allclose(total, value / 2, rtol=1e-5), name
    for process in found:
        assert_same_gradients(grads, process["plain"]["gradients"])
        assert_same_gradients(grads, {n: 2 * g for n, g in process["trainer"]["gradients"].items()})


# -------------------------------------------------------------------- cell types


def test_add_cell_types(sccello_config, tmp_path):
    model = ScCello.make(ScCelloForPreTraining, sccello_config)
    batch, before = make_batch(model), model.prototypes.weight.detach().clone()
    levels, ancestors = torch.ones(7, 7, dtype=torch.long), torch.eye(7, dtype=torch.bool)
    levels[:5, :5], ancestors[:5, :5] = LEVELS, ANCESTORS
    levels[5, :5] = torch.tensor([1, 4, 1, 4, 2])
    levels[6, :5] = torch.tensor([1, 1, 6, 1, 1])
    unknown = batch | {"cell_type_ids": torch.tensor([0, 5, 6, 1])}
    with pytest.raises(
        ValueError, match=r"cell_type_ids contains 5, 6, but this model has 5 cell types.*add_cell_types"
    ):
        model(**unknown)
    with pytest.raises(ValueError, match=r"1 of 2 cell types are not among the 5.*CL:0000099.*add_cell_types"):
        model.config.cell_type_ids(["CL:0000001", "CL:0000099"])
    model.add_cell_types(["CL:0000099", None], levels.numpy(), ancestors.tolist())
    assert model.config.cell_type_ids(["CL:0000099", "CL:0000001"]) == [5, 1]
    assert torch.equal(model.prototypes.weight[:5], before)
    assert torch.allclose(model.prototypes.weight[5], before[[1, 3]].mean(0))
    assert torch.equal(model.prototypes.weight[6], before[2])
    result = model(**unknown)
    result.loss.backward()
    assert model.prototypes.weight.grad[5:].any()
    model.save_pretrained(tmp_path)
    loaded = ScCelloForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.cell_types[5:] == ["CL:0000099", None]
    assert torch.allclose(loaded(**unknown).loss, result.loss)
    with pytest.raises(ValueError, match="already has CL:0000099"):
        model.add_cell_types(["CL:0000099"], levels, ancestors)
    with pytest.raises(ValueError, match=r"similarity_levels has shape \(7, 7\) for 8 cell types"):
        model.add_cell_types(["CL:0000100"], levels, ancestors)


def test_prototypes_from_none(sccello_config, tmp_path):
    torch.manual_seed(0)
    model = ScCelloForPreTraining(sccello_config(cell_types=None)).eval()
    model.save_pretrained(tmp_path)
    model = ScCelloForPreTraining.from_pretrained(tmp_path)
    batch = make_batch(model)
    with pytest.raises(ValueError, match="this model has 0 cell types"):
        model(**batch)
    assert model(**(batch | {"cell_type_ids": None})).loss > 0
    model.add_cell_types([f"CL:{n}" for n in range(5)], LEVELS, ANCESTORS)
    assert model(**batch).coherence_loss > 0


def test_ontology_tables_are_asked_for_and_looked_at(sccello_config):
    torch.manual_seed(0)
    model = ScCelloForPreTraining(sccello_config()).eval()
    batch = make_batch(model)
    with pytest.raises(ValueError, match=r"model.set_ontology.*relational_alignment_weight = 0"):
        model(**batch)
    model.config.relational_alignment_weight = 0
    assert model(**batch).relational_alignment_loss is None
    model.set_ontology(LEVELS, ANCESTORS, [f"CL:{n}" for n in range(5)])
    assert model.config.cell_types[2] == "CL:2"
    for levels, ancestors, message in (
        (LEVELS[:4], ANCESTORS, r"similarity_levels has shape \(4, 5\) for 5 cell types"),
        (LEVELS - 2, ANCESTORS, "negative level"),
        (LEVELS, ~ANCESTORS, "an ancestor of itself"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_ontology(levels, ancestors)


# -------------------------------------------------------------------- starting weights, bad input


def test_heads_are_made_anew_and_the_encoder_is_loaded(sccello_config, tmp_path):
    pretrained = ScCello.make(ScCelloForPreTraining, sccello_config)
    pretrained.save_pretrained(tmp_path)
    classifier, info = ScCelloForSequenceClassification.from_pretrained(
        tmp_path, num_labels=4, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert torch.equal(classifier.sccello.layers[1].fc2.weight, pretrained.sccello.layers[1].fc2.weight)
    embedder, info = ScCelloModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    published = ScCelloForPreTraining(ScCelloConfig(vocab_size=3000, cell_types=["CL:1", "CL:2"]))
    assert published.sccello.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (published.similarity_levels == -1).all()
    assert not published.cell_head.fc1.bias.any()


def test_cells_that_do_not_fit(model):
    batch = make_batch(model)
    for wrong in (42, 99, -1):
        ids = batch["input_ids"].clone()
        ids[0, 3] = wrong
        with pytest.raises(ValueError, match=rf"input_ids contains {wrong}, but this model has vocab_size=42"):
            model(**(batch | {"input_ids": ids}))
    longer = {n: torch.nn.functional.pad(v, (0, 9), value=2) if v.ndim == 2 else v for n, v in batch.items()}
    with pytest.raises(ValueError, match=r"33 tokens, but this model has positions for 32.*max_length=32"):
        model(**longer)
    with pytest.raises(ValueError, match="has no tokens"):
        model(torch.empty(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="position_ids contains 32"):
        model(torch.full((1, 33), 5), position_ids=torch.arange(33)[None])
    with pytest.raises(ValueError, match="position_ids contains -1"):
        model(torch.full((1, 3), 5), position_ids=torch.arange(3)[None] - 1)
    if "labels" in batch:
        with pytest.raises(ValueError, match="labels contains 77, but this model has"):
            model(**(batch | {"labels": batch["labels"].masked_fill(batch["labels"] >= 0, 77)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 15}, "hidden_size=15 is not a multiple of num_attention_heads=2"),
        ({"pooling": "max"}, "pooling='max': it has to be 'cls' or 'mean'"),
        ({"tau": 0}, "tau=0"),
        ({"vocab_size": 3}, "vocab_size=3"),
        ({"num_cell_types": 4}, "cell_types names 5 cell types, num_cell_types=4"),
        ({"cell_types": ["CL:1", "CL:1"]}, "cell_types contains CL:1 more than once"),
    ],
)
def test_configurations_that_cannot_be(sccello_config, changes, message):
    with pytest.raises(Exception, match=message):
        sccello_config(**changes)


def test_the_configuration_names_every_auto_class(sccello_config, tmp_path):
    sccello_config(cell_types=["CL:1", None]).save_pretrained(tmp_path)
    loaded = ScCelloConfig.from_pretrained(tmp_path)
    assert set(loaded.auto_map) == {"AutoConfig", *(record.auto for record in RECORDS if record.family is ScCello)}
    assert loaded.cell_types == ["CL:1", None]
    assert (loaded.num_genes, loaded.num_cell_types, loaded.cls_token_id) == (39, 2, 41)
    for name in set(ScCelloConfig.__annotations__) - {"auto_map", "model_type"}:
        assert name in ScCelloConfig.__doc__, f"{name} is not documented"
