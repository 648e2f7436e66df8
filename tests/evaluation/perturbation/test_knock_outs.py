"""Deletions beside real knock-outs: planted effects, the task of an evaluation, its row on a card."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from typer.testing import CliRunner

import cellglot
from cellglot.cli import app
from cellglot.evaluation.benchmark.knock_out_components import compare_components
from cellglot.evaluation.perturbation.compare import compare_model
from cellglot.evaluation.perturbation.knock_outs import choose_knock_outs
from cellglot.evaluation.perturbation.measured_genes import MeasuredGenes
from cellglot.model_cards.card.evaluation import read_evaluation
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.tokenization.reading.cells import read_cells


N_GENES, MODULE = 45, slice(2, 12)  # the genes that the first one regulates


@pytest.fixture(scope="module")
def screen(blood):
    """Cells in which gene 0 regulates a module, and cells in which it is knocked out; so is gene 1, without effect."""
    random, names = np.random.default_rng(0), list(blood.var_names[:N_GENES])
    states = np.repeat(["control", names[0], names[1], names[20], "unmeasured", "two+genes"], [60, 20, 20, 12, 12, 4])
    counts = random.poisson(4, (len(states), N_GENES)) + 1
    regulator = random.poisson(6, len(states))
    counts[:, 0] = regulator
    counts[:, MODULE] = random.poisson(4 * regulator[:, None], (len(states), 10))  # too many counts to be its controls
    knocked = states == names[0]
    counts[knocked, 0] = 0
    counts[knocked, MODULE] = random.poisson(0.2, (knocked.sum(), 10))
    counts[states == names[1], 1] = 0
    counts[states == "control", 20] = 0
    obs = pd.DataFrame({"perturbation": states}, index=[f"cell {i}" for i in range(len(states))])
    return anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture(scope="module")
def model(vocabulary, screen):
    """A scCello to which the regulator and its module look the same, and the other genes are alike."""
    from cellglot.modeling import ScCelloConfig, ScCelloModel
    from cellglot.tokenization import RankValueTokenizer

    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary.with_special_tokens(last=["<cls>"]))
    torch.manual_seed(0)
    config = ScCelloConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, num_cell_types=0, initializer_range=0.3,
    )  # fmt: skip
    network = ScCelloModel(config).eval()
    places = tokenizer.vocabulary.resolve(list(screen.var_names)).token_ids
    with torch.no_grad():
        weights = network.get_input_embeddings().weight
        weights[places] = weights[places[1]] + 0.1 * weights[places]
        weights[places[[0, *range(2, 12)]]] = -weights[places[1]]
        network.embeddings.position_embeddings.weight.zero_()
    return LoadedModel("model", network, tokenizer)


def chosen_of(screen, **options):
    opened = read_cells(screen)
    measured = MeasuredGenes.of(opened)
    return opened, measured, choose_knock_outs(measured, "perturbation", **options)


def test_knock_outs_are_chosen_by_the_column(screen):
    _, measured, chosen = chosen_of(screen, most_cells=20, seed=1)
    names = list(screen.var_names)
    assert list(chosen.targets) == sorted(names[:2]) and len(chosen.start) == 20
    assert {len(numbers) for numbers in chosen.targets.values()} == {20}
    assert (screen.obs["perturbation"].iloc[chosen.start] == "control").all()
    assert chosen.left_out[names[20]] == "expressed in no control cell"
    assert chosen.left_out["unmeasured"] == chosen.left_out["two+genes"] == "not the name of one gene of the file"
    logs = measured.log_counts(np.array([3, 5]))
    counts = screen.X[[3, 5]].toarray()
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logs[:, measured.places(names)].toarray(), expected, rtol=1e-5)


def test_a_planted_effect_is_found_and_another_is_not(screen, model):
    opened, measured, chosen = chosen_of(screen)
    regulator, other = screen.var_names[:2]
    for rows in (
        compare_model(model, opened, chosen, permutations=50, device="cpu", progress=False),
        compare_components(measured, chosen, permutations=50),
    ):
        found = {row["state"]: row for row in rows}
        assert found[regulator]["without_own_verdict"] == "yes" and found[regulator]["without_own_less"] == 1
        assert found[regulator]["without_own_p_value"] < 0.05 < found[other]["without_own_rank"]
        assert found[other]["without_own_verdict"] == "no" and found[regulator]["controls"] >= 19
        assert found[regulator]["cells"] == (screen.X[chosen.start, 0].toarray() > 0).sum()
        assert found[regulator]["target_cells"] == 20


def test_the_movement_is_that_of_perturb(screen, model):
    opened, _, chosen = chosen_of(screen)
    row = next(r for r in compare_model(model, opened, chosen, all_genes=True, permutations=5, progress=False))
    table = cellglot.perturb(
        screen, model, delete=[row["gene"]], column="perturbation", cell_type="control", towards=row["state"],
        controls=0, device="cpu",
    ).table()  # fmt: skip
    np.testing.assert_allclose(row["progress"], table["progress"].iloc[0], rtol=1e-4)
    assert row["cells"] == table["cells"].iloc[0] and row["rank_among_all"] is not None


def test_a_model_without_the_gene_moves_nothing(screen, model):
    renamed = screen.copy()
    renamed.var_names = ["ENSG99999999999" if i == 1 else name for i, name in enumerate(screen.var_names)]
    renamed.obs["perturbation"] = renamed.obs["perturbation"].replace(screen.var_names[1], "ENSG99999999999")
    opened, _, chosen = chosen_of(renamed)
    rows = {row["state"]: row for row in compare_model(model, opened, chosen, permutations=5, progress=False)}
    assert rows["ENSG99999999999"]["verdict"] == "not in the model or not expressed"
    evaluated = cellglot.evaluate(
        [_evaluated(model)], renamed, tasks=["perturbation"], perturbations="perturbation", baselines=False
    )
    result = evaluated.results["perturbation"]["model"]
    assert result.metrics["right_direction"].value == 0.5 and result.details["knock_outs"] == 2


def _evaluated(model):
    from cellglot.evaluation.benchmark.models import EvaluatedModel

    return EvaluatedModel("model", model.network, model.tokenizer, device="cpu")


def test_the_command_writes_a_row_and_a_card_has_it(screen, model, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    output = tmp_path / "out"
    given = [
        "evaluate", f"mine={tmp_path / 'model'}", "--cells", str(tmp_path / "screen.h5ad"), "--tasks", "perturbation",
        "--perturbations", "perturbation", "--perturbation-cells", "30", "--device", "cpu", "-o", str(output),
    ]  # fmt: skip
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    table = (output / "evaluation.md").read_text()
    assert "| perturbation: knock-outs that the deletion moves towards (chance 0.5) |" in table
    assert "| perturbation: share of these genes that move less, median |" in table and "log counts + PCA" in table
    assert "the gene of each of 2 real knock-outs is deleted in the same 30 control cells" in table
    assert "Left out: 3 (" in table
    card = read_evaluation(output / "evaluation.json", "mine", "lab/mine")
    values = {result.metric: result.value for result in card.results if result.task == "perturbation"}
    assert set(values) == {"right_direction", "beyond_controls", "controls_that_move_less"}
    assert values["beyond_controls"] == 0.5
    again = CliRunner().invoke(app, given, catch_exceptions=False)
    assert again.exit_code == 0 and "perturbation is already evaluated" in again.output + (again.stderr or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'perturbation' needs the column of obs with the knocked-out gene"),
        ({"perturbations": "guide"}, "no column 'guide' in obs"),
        ({"perturbations": "perturbation", "control": "contrl"}, "no cells of the state 'contrl'; did you mean"),
        ({"perturbations": "perturbation", "perturbation_cells": 3}, "3 cells of a perturbation: at least 10"),
        (
            {"perturbations": "perturbation", "control": "unmeasured"},
            r"no perturbation in 'perturbation' can be compared.*'?control'?.*names of genes",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_computed(screen, model, options, message):
    few = screen[np.isin(screen.obs["perturbation"], ["control", "unmeasured", "two+genes"])]
    cells = few if options.get("control") == "unmeasured" else screen
    with pytest.raises(ValueError, match=message):
        cellglot.evaluate([_evaluated(model)], cells, tasks=["perturbation"], **options)


@pytest.mark.reference
def test_real_knock_outs(reference_data):
    path = reference_data / "perturbation" / "thp1_crispr_papalexi.h5ad"
    done = cellglot.evaluate(
        ["blood-sccello"], path, tasks=["perturbation"], perturbations="perturbation", perturbation_cells=20,
        device="cpu",
    )  # fmt: skip
    for result in done.results["perturbation"].values():
        assert result.details["knock_outs"] >= 5 and "IRF1" in result.details["left_out"]
        assert all(0 <= score.value <= 1 for score in result.metrics.values()) and len(result.metrics) == 3
        assert {"STAT1", "JAK2"} <= {row["state"] for row in result.details["rows"]}
