import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from cellglot.modeling import LangCellForPreTraining
from cellglot.modeling.cell_text_losses import (
    HardNegatives,
    cell_cell_loss,
    cell_text_loss,
    draw_hard_negatives,
    gather_texts,
    matching_loss,
    number_texts,
    pairs_to_match,
)


LOSSES = ("masked_gene_loss", "cell_cell_loss", "cell_text_loss", "matching_loss")
TAU = 0.1


def embeddings(number, size=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(number, size, generator=random), dim=-1)


# -------------------------------------------------------------------- one loss at a time


def test_cell_cell_loss_is_infonce():
    cells, noised = embeddings(5), embeddings(5, seed=1)
    everyone = torch.ones(5, dtype=torch.bool)
    expected = nn.functional.cross_entropy(cells @ noised.T / TAU, torch.arange(5))
    assert torch.allclose(cell_cell_loss(cells, everyone, TAU, noised).mean(), expected)
    some = torch.tensor([True, False, True, True, False])
    expected = nn.functional.cross_entropy(cells[some] @ noised[some].T / TAU, torch.arange(3))
    assert torch.allclose(cell_cell_loss(cells, some, TAU, noised).mean(), expected)


def test_cell_text_loss_with_a_text_a_cell_is_that_of_clip():
    cells, texts = embeddings(5), embeddings(5, seed=1)
    logits, target = cells @ texts.T / TAU, torch.arange(5)
    expected = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(cell_text_loss(cells, texts, torch.arange(5), TAU).mean(), expected)


def test_texts_that_cells_share_are_positives_of_all_of_them():
    cells, texts, ids = embeddings(5), embeddings(5, seed=1), torch.tensor([3, 7, 3, -100, 3])
    known = [0, 1, 2, 4]
    total = 0.0
    for a, b in ((cells, texts), (texts, cells)):
        for row in known:
            logs = (a[row] @ b[known].T / TAU).log_softmax(0)
            positives = [n for n, other in enumerate(known) if ids[other] == ids[row]]
            total = total - logs[positives].mean() / 2
    terms = cell_text_loss(cells, texts, ids, TAU)
    assert torch.allclose(terms.total, total)
    assert int(terms.count) == 4


def test_losses_are_float32_under_autocast():
    cells, texts = embeddings(4).bfloat16(), embeddings(4, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = [
            cell_cell_loss(cells, torch.ones(4, dtype=torch.bool), TAU, texts),
            cell_text_loss(cells, texts, torch.arange(4), TAU),
            matching_loss(torch.randn(4, 2).bfloat16(), torch.tensor([1, 0, 1, 0])),
        ]
    assert all(t.total.dtype == torch.float32 for t in terms)


def test_identical_texts_have_the_same_number():
    tokens = torch.tensor([[2, 7, 3, 9], [2, 7, 3, 0], [2, 7, 3, 5], [2, 8, 3, 9], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    numbers = number_texts(gather_texts(tokens, mask).tokens).tolist()
    assert numbers[0] == numbers[1]
    assert len({*numbers[1:4]}) == 3
    assert numbers[4] == -100


# -------------------------------------------------------------------- hard negatives


def test_hard_negatives_are_drawn_in_proportion_to_similarity():
    cells, texts, ids = embeddings(4), embeddings(4, seed=1), torch.tensor([0, 1, 0, 2])
    torch.manual_seed(0)
    many = cells.repeat(1000, 1), texts.repeat(1000, 1), ids.repeat(1000)
    drawn = draw_hard_negatives(*many, 0.5)
    allowed = ids[:, None] != ids
    for logits, found in ((cells @ texts.T / 0.5, drawn.texts), (texts @ cells.T / 0.5, drawn.cells)):
        expected = logits.masked_fill(~allowed, -torch.inf).softmax(1)
        for row in range(4):
            shares = torch.bincount(found[row::4] % 4, minlength=4) / 1000
            assert (shares[~allowed[row]] == 0).all()
            assert torch.allclose(shares, expected[row], atol=0.06)


def test_hard_negatives_repeat_with_the_seed():
    cells, texts, ids = embeddings(32), embeddings(32, seed=1), torch.arange(32)
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(draw_hard_negatives(cells, texts, ids, TAU))
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


def test_there_are_no_hard_negatives_where_all_share_a_text():
    cells, texts = embeddings(4), embeddings(4, seed=1)
    drawn = draw_hard_negatives(cells, texts, torch.tensor([5, 5, 5, -100]), TAU)
    assert drawn.texts.tolist() == drawn.cells.tolist() == [-1] * 4
    pairs = pairs_to_match(drawn, torch.tensor([5, 5, 5, -100]), 0)
    assert pairs.matches.tolist() == [1, 1, 1]


def test_every_pair_falls_to_one_process():
    negatives = HardNegatives(torch.tensor([3, 2, -1, 0, 1]), torch.tensor([4, 2, 1, 0, -1]))
    ids = torch.tensor([0, 1, 2, 3, 4])
    parts = [pairs_to_match(negatives, ids[:3], 0), pairs_to_match(negatives, ids[3:], 3)]
    found = sorted(
        (first + c, t, m)
        for first, part in zip((0, 3), parts, strict=True)
        for c, t, m in zip(*(x.tolist() for x in part), strict=True)
    )
    whole = pairs_to_match(negatives, ids, 0)
    assert found == sorted(zip(*(x.tolist() for x in whole), strict=True))
    assert len(found) == 5 + 4 + 4


# -------------------------------------------------------------------- pretraining


def make_model(langcell_config, **changes):
    torch.manual_seed(0)
    return LangCellForPreTraining(langcell_config(**changes)).train()


def make_batch(number=6, seed=0):
    """Cells, of which the third shares the text of the first, and masked genes."""
    random = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, 41, (number, 12), generator=random)
    input_ids[:, 0] = 41
    input_ids[1, 8:] = 0
    masked = (torch.rand(input_ids.shape, generator=random) < 0.3) & (input_ids > 1) & (input_ids < 41)
    texts = torch.randint(5, 50, (number, 7), generator=random)
    texts[:, 0] = 2
    texts[2] = texts[0]
    texts[-1, 5:] = 0
    return {
        "input_ids": input_ids.masked_fill(masked, 1),
        "attention_mask": (input_ids != 0).long(),
        "labels": input_ids.masked_fill(~masked, -100),
        "text_input_ids": texts,
        "text_attention_mask": (texts != 0).long(),
    }


def test_losses_are_what_their_parts_say(langcell_config):
    model, batch = make_model(langcell_config, cell_text_weight=0.5).eval(), make_batch()
    torch.manual_seed(4)
    result = model(**batch)
    cells, texts = result.pooler_output, model.get_text_features(batch["text_input_ids"], batch["text_attention_mask"])
    ids = torch.tensor([0, 1, 0, 3, 4, 5])
    tau = model.config.tau
    assert torch.allclose(result.text_features, texts, atol=1e-6)
    expected = nn.functional.cross_entropy(cells @ cells.T / tau, torch.arange(6))
    assert torch.allclose(result.cell_cell_loss, expected, atol=1e-6)
    assert torch.allclose(result.cell_text_loss, cell_text_loss(cells, texts, ids, tau).mean(), atol=1e-5)
    masked = batch["labels"] != -100
    head, words = model.gene_head, model.cell_model.embeddings.word_embeddings.weight
    states = head.norm(head.activation(head.dense(result.last_hidden_state[masked])))
    logits = states @ words.T + head.bias
    assert torch.allclose(result.logits, logits, atol=1e-5)
    assert torch.allclose(
        result.masked_gene_loss, nn.functional.cross_entropy(logits, batch["labels"][masked]), atol=1e-6
    )
    torch.manual_seed(4)
    drawn = draw_hard_negatives(cells, texts, ids, tau)
    matching = model.match(**{n: v for n, v in batch.items() if n != "labels"})
    wrong = [*((c, t) for c, t in enumerate(drawn.texts)), *((c, t) for t, c in enumerate(drawn.cells))]
    terms = [matching[c, c].log() for c in range(6)] + [(1 - matching[c, t]).log() for c, t in wrong]
    assert torch.allclose(result.matching_loss, -torch.stack(terms).mean(), atol=1e-5)
    assert int(result.hard_negatives) == 12
    total = sum(result[name] * (0.5 if name == "cell_text_loss" else 1) for name in LOSSES)
    assert torch.allclose(result.loss, total)


def test_scores_are_not_kept_in_training(langcell_config):
    model, batch = make_model(langcell_config, cell={"hidden_dropout_prob": 0.0}), make_batch()
    torch.manual_seed(1)
    assert model(**batch).logits is None
    torch.manual_seed(1)
    without = model(**batch).masked_gene_loss
    assert torch.allclose(model(**batch, return_logits=True).masked_gene_loss, without, atol=1e-6)


def test_cells_are_encoded_twice_while_there_is_dropout(langcell_config):
    batch = make_batch()
    noisy = make_model(langcell_config, cell={"hidden_dropout_prob": 0.3})
    same = noisy.eval()(**batch).cell_cell_loss
    assert not torch.allclose(noisy.train()(**batch).cell_cell_loss, same)
    assert noisy(**batch).last_hidden_state.shape == (6, 12, 16)


def test_stages(langcell_config, tmp_path):
    model, batch = make_model(langcell_config, stage=1), make_batch()
    result = model(**batch)
    assert result.cell_text_loss is None and result.matching_loss is None
    result.loss.backward()
    learns = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert learns == {"cell_model", "gene_head"}
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {
        "text_model",
        "matching_head",
    }
    cells = {n: v for n, v in batch.items() if not n.startswith("text")}
    assert torch.isfinite(model(**cells).loss)
    model.set_stage(2)
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="stage 3"):
        model.set_stage(3)


def test_objectives_of_weight_0_are_not_computed(langcell_config):
    for name in LOSSES:
        model = make_model(langcell_config, **{name.replace("_loss", "_weight"): 0})
        result = model(**make_batch())
        assert [n for n in LOSSES if getattr(result, n) is None] == [name]


def test_frozen_towers(langcell_config):
    model = make_model(langcell_config)
    model.freeze_cell_encoder()
    model.freeze_text_encoder()
    model(**make_batch()).loss.backward()
    learns = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n.split(".")[0] for n in learns} == {"cell_model", "text_model", "matching_head", "gene_head"}
    assert all("projection" in n for n in learns if n.startswith("cell_model"))
    assert all("projection" in n or "cross_att" in n for n in learns if n.startswith("text_model"))
    model.freeze_text_encoder(projection=True, cross_attention=True)
    assert not any(p.requires_grad for p in model.text_model.parameters())
    model.freeze_text_encoder(False)
    model.freeze_cell_encoder(False)
    assert all(p.requires_grad for p in model.parameters())


def test_a_batch_that_shares_one_text(langcell_config, monkeypatch):
    from cellglot.modeling import modeling_langcell

    said = []
    monkeypatch.setattr(modeling_langcell.logger, "warning_once", said.append)
    model, batch = make_model(langcell_config).eval(), make_batch()
    model(**batch)
    assert not said
    result = model(**batch, text_ids=torch.zeros(6, dtype=torch.long))
    assert int(result.hard_negatives) == 0
    assert "All 6 cells of a batch share one text" in said[0]
    matching = model.match(**{n: v for n, v in batch.items() if n != "labels"})
    assert torch.allclose(result.matching_loss, -matching.diagonal().log().mean(), atol=1e-5)


def test_cells_without_a_text_and_rows_that_fill_up(langcell_config):
    model, batch = make_model(langcell_config).eval(), make_batch()
    fewer = {n: v[:4] for n, v in batch.items()}
    torch.manual_seed(2)
    expected = model(**fewer)
    for name, value in batch.items():  # the last rows hold nothing
        value[4:] = -100 if name == "labels" else 0
    torch.manual_seed(2)
    given = model(**batch)
    for name in LOSSES:
        assert torch.allclose(given[name], expected[name], atol=1e-5), name
    ids = torch.tensor([0, 1, -100, 2])
    assert int(model(**fewer, text_ids=ids).hard_negatives) == 6
    model.train()(**batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_bad_batches(langcell_config):
    model, batch = make_model(langcell_config), make_batch()
    texts = {n: v[:2] for n, v in batch.items() if n.startswith("text")}
    with pytest.raises(ValueError, match="2 texts for 6 cells"):
        model(**(batch | texts))
    with pytest.raises(ValueError, match="labels contains 99"):
        model(**(batch | {"labels": torch.full_like(batch["labels"], 99)}))


# -------------------------------------------------------------------- several processes


PROCESS = """
    import sys, torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from cellglot.modeling import LangCellForPreTraining
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(LangCellForPreTraining.from_pretrained(folder).train())
    batch = torch.load(folder + f"/batch{rank}.pt", weights_only=True)
    found = {}
    for mode, items in (("plain", None), ("trainer", int(sys.argv[3]))):
        model.zero_grad()
        torch.manual_seed(7 + rank)
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
def test_two_processes_are_one(langcell_config, tmp_path):
    still = {"hidden_dropout_prob": 0.0}
    model, batch = make_model(langcell_config, cell=still, text=still), make_batch()
    model.save_pretrained(tmp_path)
    for rank, cells in enumerate(([0, 1, 2, 3], [4, 5])):  # unequal numbers of cells, texts of unequal lengths
        part = {n: v[cells] for n, v in batch.items()}
        if rank:
            part |= {n: torch.nn.functional.pad(part[n], (0, 3)) for n in ("text_input_ids", "text_attention_mask")}
        torch.save(part, tmp_path / f"batch{rank}.pt")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", textwrap.dedent(PROCESS)]
    items = str(2 * int((batch["labels"] != -100).sum()))  # as if there were another such batch
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), items], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    torch.manual_seed(7)
    result = model(**batch)
    result.loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    found = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("loss", *LOSSES):
        for process in found:  # every process sees the joined batch's loss
            assert torch.allclose(process["plain"]["losses"][name], result[name], rtol=1e-5), name
        total = sum(process["trainer"]["losses"][name] for process in found)
        assert torch.allclose(total, result[name] / 2, rtol=1e-5), name
    largest = max(float(g.abs().max()) for g in grads.values())
    for process in found:
        for name, gradient in grads.items():
            scale = max(float(gradient.abs().max()), 0.01 * largest)
            for mode, factor in (("plain", 1), ("trainer", 2)):
                given = process[mode]["gradients"][name] * factor
                assert torch.allclose(given, gradient, rtol=1e-4, atol=1e-4 * scale), name
