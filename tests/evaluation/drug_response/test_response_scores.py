import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from cellglot.evaluation.drug_response import baselines
from cellglot.evaluation.drug_response.fingerprints import morgan_fingerprints, tanimoto_similarity
from cellglot.evaluation.drug_response.folder import read_drug_response
from cellglot.evaluation.drug_response.grid import Grid, line_kernel
from cellglot.evaluation.drug_response.line_expression import standardised
from cellglot.evaluation.drug_response.regressor import KNOWN_LINES, drug_profiles, predict_pairs
from cellglot.evaluation.drug_response.response_task import ResponseTask, score_drug_response
from cellglot.evaluation.drug_response.scores import score_pairs
from cellglot.evaluation.drug_response.splits import PairSplit


@pytest.fixture
def pairs():
    """A grid of 6 drugs and 15 lines with 70 pairs, features of the lines and fingerprints."""
    random = np.random.default_rng(2)
    known = (random.random((6, 15)) < 0.8).astype(float)
    known[:, 14] = 0  # a line without pairs
    values = random.normal(size=(6, 15)) + 3 * random.normal(size=(6, 1))
    fingerprints = (random.random((6, 40)) < 0.3).astype(np.float32)
    return Grid(known, values * known), random.normal(size=(15, 9)), fingerprints


def test_the_regressor_is_kernel_ridge_over_pairs(pairs):
    grid, features, fingerprints = pairs
    similarity = tanimoto_similarity(fingerprints)
    predicted = predict_pairs(grid, features, similarity)
    base = grid.mean + grid.drug_effects()[:, None]
    rest = grid.minus(base)
    w, identity, profiles = KNOWN_LINES, np.eye(6), drug_profiles(rest, grid.known)
    of_features = w.own * identity + w.structure * similarity + w.common + w.profile * profiles
    of_lines = w.line + w.structure_line * similarity + w.profile_line * profiles
    kernel = np.kron(of_features, line_kernel(features, grid.lines)) + np.kron(of_lines, np.eye(15))
    known = np.flatnonzero(grid.known.ravel())
    exact = KernelRidge(alpha=w.noise, kernel="precomputed").fit(kernel[np.ix_(known, known)], rest.ravel()[known])
    expected = base + exact.predict(kernel[:, known]).reshape(6, 15)
    np.testing.assert_allclose(predicted, expected, atol=0.03)


def test_baselines_are_those_of_scikit_learn(pairs):
    grid, features, fingerprints = pairs
    given = grid, features, fingerprints, tanimoto_similarity(fingerprints)
    drug, line = np.nonzero(grid.known)
    rows = np.hstack([fingerprints[drug], standardised(features, grid.lines)[line]])
    ridge = Ridge(alpha=baselines.LINEAR_RIDGE).fit(rows, grid.values[drug, line])
    found = baselines.predict_baseline(baselines.RIDGE, *given)
    np.testing.assert_allclose(found[drug, line], ridge.predict(rows), atol=1e-6)
    kernel = line_kernel(features, grid.lines)
    found = baselines.predict_baseline(baselines.KERNEL, *given)
    mine, base = np.flatnonzero(grid.known[2]), grid.mean + grid.drug_effects()[2]
    one = KernelRidge(alpha=baselines.KERNEL_RIDGE, kernel="precomputed")
    one.fit(kernel[np.ix_(mine, mine)], grid.values[2, mine] - base)
    np.testing.assert_allclose(found[2], base + one.predict(kernel[:, mine]), atol=2e-3)


def test_scores_are_pearson_correlations_and_constant_predictions_have_none(write_response):
    data = read_drug_response(write_response())
    split = PairSplit("lines held out", data.line >= 15, data.line < 15, "15 lines")
    predicted = np.random.default_rng(0).normal(size=(8, 40))
    predicted[3] = 2.0  # constant for one drug
    scores, undefined, details = score_pairs(data, split, predicted, draws=50)
    test = np.flatnonzero(split.test)
    found, true = predicted[data.drug[test], data.line[test]], data.ln_ic50[test]
    of_drugs = [pearsonr(found[data.drug[test] == d], true[data.drug[test] == d])[0] for d in range(8) if d != 3]
    assert scores["pearson"].value == pytest.approx(pearsonr(found, true)[0])
    assert scores["pearson_in_drug"].value == pytest.approx(np.median(of_drugs))
    assert scores["pearson_in_drug"].low < scores["pearson_in_drug"].high
    assert undefined == {"pearson_in_line": "no line has 10 test pairs"} and details["drugs_scored"] == 7
    scores, undefined, _ = score_pairs(data, split, np.full((8, 40), 1.5), draws=5)
    assert not scores and undefined["pearson"] == "the predictions are constant"
    assert undefined["pearson_in_drug"] == "the predictions are constant within every drug"


def test_features_are_matched_by_line_and_tell_what_expression_tells(write_response):
    data = read_drug_response(write_response())
    features = pd.DataFrame(data.expression, index=data.lines)
    found = score_drug_response(features.sample(frac=1, random_state=3), data, draws=5)
    same = ResponseTask(data, draws=5).of_baseline(baselines.PAIR_KERNEL)
    for split, (scores, _, _) in found.items():
        assert {k: s.value for k, s in scores.items()} == pytest.approx(
            {k: s.value for k, s in same[split][0].items()}
        )
    assert found["lines held out"][0]["pearson"].value > 0.8
    shuffled = score_drug_response(features.set_axis(np.roll(data.lines, 7)), data, draws=5)
    assert shuffled["lines held out"][0]["pearson"].value < found["lines held out"][0]["pearson"].value
    with pytest.raises(ValueError, match="1 of 40 lines have no features, such as 'LINE-4'"):
        score_drug_response(features.drop(index="LINE-4"), data)
    with pytest.raises(ValueError, match="'LINE-4' has two rows"):
        score_drug_response(pd.concat([features, features.loc[["LINE-4"]]]), data)
    with pytest.raises(ValueError, match="2 lines have no embedding"):
        score_drug_response(features.reindex(features.index.drop(["LINE-4", "LINE-9"])).reindex(features.index), data)


def test_fingerprints_are_bits_and_equal_structures_are_alike():
    bits = morgan_fingerprints(["CCO", "OCC", "c1ccccc1O"])
    assert bits.shape == (3, 2048) and set(np.unique(bits)) == {0, 1}
    similarity = tanimoto_similarity(bits)
    assert similarity[0, 1] == 1 and 0 < similarity[0, 2] < 0.5
    assert (np.diag(similarity) == 1).all()


@pytest.mark.reference
def test_real_lines_are_predicted_better_than_by_means(reference_data, tmp_path):
    """A part of the real tables: 150 lines, 40 drugs."""
    source = reference_data / "drug_response" / "deepcdr"
    expression = pd.read_parquet(source / "expression.parquet").iloc[:150]
    drugs = pd.read_csv(source / "drugs.tsv", sep="\t", dtype=str).iloc[:44]
    response = pd.read_csv(source / "response.tsv.gz", sep="\t", dtype=str)
    kept = response.cell_line.isin(expression.cell_line) & response.gdsc_drug_id.isin(drugs.gdsc_drug_id)
    expression.to_parquet(tmp_path / "expression.parquet")
    drugs.to_csv(tmp_path / "drugs.tsv", sep="\t", index=False)
    response[kept].to_csv(tmp_path / "response.tsv.gz", sep="\t", index=False)
    (tmp_path / "cell_lines.tsv").write_bytes((source / "cell_lines.tsv").read_bytes())
    data = read_drug_response(tmp_path)
    assert len(data.lines) == 150 and len(set(data.structures)) < len(data.drugs)
    task = ResponseTask(data, draws=5)
    ours, means = task.of_baseline(baselines.PAIR_KERNEL), task.of_baseline(baselines.MEANS)
    assert ours["random pairs"][0]["pearson"].value > means["random pairs"][0]["pearson"].value > 0.7
    assert ours["lines held out"][0]["pearson_in_drug"].value > 0.1
    assert means["lines held out"][1] == {"pearson_in_drug": "the predictions are constant within every drug"}
