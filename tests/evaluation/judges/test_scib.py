import sys

import anndata as ad
import numpy as np
import pytest

from cellglot.evaluation.judges.names import BATCH, BIO, HEADINGS, TOTALS, check_judges
from cellglot.evaluation.judges.scib import scib_scores


@pytest.fixture(scope="module")
def embedded():
    """150 cells of two types in two batches, in six dimensions."""
    random = np.random.default_rng(0)
    types = np.array(["B cell", "T cell"], dtype=object)[np.arange(150) % 2]
    batches = np.array(["one", "two"], dtype=object)[np.arange(150) // 80]
    values = random.normal(size=(150, 6)) + 2.5 * (types == "B cell")[:, None] + 0.8 * (batches == "one")[:, None]
    return values.astype(np.float32), types, batches


@pytest.mark.long
def test_scores_are_those_of_its_own_benchmarker(embedded):
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation
    from scib_metrics.nearest_neighbors import NeighborsResults

    from cellglot.evaluation.metrics.cell_embedding_quality.cell_embedding_quality import nearest_neighbors

    values, types, batches = embedded
    before = values + np.where(batches == "one", 1, 0)[:, None].astype(np.float32)
    some = values.copy()
    some = np.vstack([some, np.full((1, 6), np.nan), values[:2]]).astype(np.float32)
    done = scib_scores(
        some, np.array([*types, "B cell", None, "B cell"], dtype=object),
        np.array([*batches, "one", "one", None], dtype=object), np.vstack([before, before[:3]]),
    )  # fmt: skip
    assert done.details["cells"] == 150 and done.details["package"].startswith("scib-metrics 0.")
    left_out = {name: done.details[f"cells_without_{name}"] for name in ("embedding", "label", "batch")}
    assert left_out == {"embedding": 1, "label": 1, "batch": 1}
    assert done.undefined == {} and set(done.metrics) == {*BIO, *BATCH, *TOTALS}
    adata = ad.AnnData(
        obs={"label": types.astype(str), "batch": batches.astype(str)}, obsm={"x": values, "pre": before}
    )
    theirs = Benchmarker(
        adata, "batch", "label", ["x"], BioConservation(nmi_ari_cluster_labels_leiden=True), BatchCorrection(),
        pre_integrated_embedding_obsm_key="pre", progress_bar=False,
    )  # fmt: skip
    theirs.prepare(lambda x, n: NeighborsResults(*nearest_neighbors(x, n)))
    theirs.benchmark()
    table = theirs.get_results(clean_names=True).loc["x"]
    names = BIO | {name: shown for name, shown in BATCH.items() if name != "silhouette_batch"} | TOTALS
    found = {shown.lower(): done.metrics[name].value for name, shown in names.items()}
    assert found == pytest.approx({name.lower(): float(value) for name, value in table.items()}, abs=1e-5)


def test_undefined_scores_have_their_reason(embedded):
    values, types, batches = embedded
    done = scib_scores(values[:20], None, None)
    assert not done.metrics and done.undefined["clisi"] == "no cell types were given"
    assert done.undefined["ilisi"] == done.undefined["pcr"] == "no batches were given"
    assert done.undefined["total"] == "no cell types were given"
    one = np.array(["one"] * 20, dtype=object)
    done = scib_scores(values[:20], one, one)
    assert done.undefined["silhouette_label"] == "the cells have 1 cell type: at least two are needed"
    assert done.undefined["bras"].startswith("the cells have 1") and not done.metrics
    done = scib_scores(values[:20], types[:20], types[:20], values[:20])
    assert done.undefined["kbet"] == done.undefined["bras"] == "no cell type has cells of several batches"
    assert done.undefined["clisi"] == "20 cells are fewer than the 90 neighbours of scib-metrics"
    assert "silhouette_label" in done.metrics and done.metrics["pcr"].value == pytest.approx(0, abs=1e-6)


def test_the_package_is_asked_for_where_it_is_missing(monkeypatch, embedded):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'cellglot\[judges\]'"):
        scib_scores(*embedded)


def test_judges_are_named():
    assert check_judges(["cz-benchmarks", " scib-metrics"]) == ["scib-metrics", "cz-benchmarks"]
    with pytest.raises(ValueError, match="unknown judge 'scib': judges are scib-metrics, cz-benchmarks"):
        check_judges(["scib"])
    assert len(set(HEADINGS.values())) == len(HEADINGS)
