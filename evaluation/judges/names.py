"""Names of the judges and of their scores."""

from collections.abc import Iterable


SCIB, CZ = "scib-metrics", "cz-benchmarks"
JUDGES = (SCIB, CZ)

# scib-metrics: names of its functions -> names as its Benchmarker writes them, in its order.
BIO = {
    "isolated_labels": "isolated labels",
    "leiden_nmi": "Leiden NMI",
    "leiden_ari": "Leiden ARI",
    "kmeans_nmi": "KMeans NMI",
    "kmeans_ari": "KMeans ARI",
    "silhouette_label": "silhouette label",
    "clisi": "cLISI",
}
BATCH = {
    "silhouette_batch": "silhouette batch",
    "bras": "BRAS",
    "ilisi": "iLISI",
    "kbet": "kBET",
    "graph_connectivity": "graph connectivity",
    "pcr": "PCR comparison",
}
TOTALS = {"bio": "bio conservation", "batch": "batch correction", "total": "total"}

# cz-benchmarks: our name -> (task, metric of that task, name in tables).
CZ_SCORES = {
    "clustering_ari": ("clustering", "adjusted_rand_index", "clustering: ARI"),
    "clustering_nmi": ("clustering", "normalized_mutual_info", "clustering: NMI"),
    "silhouette": ("embedding", "silhouette_score", "embedding: silhouette label"),
    "accuracy": ("label_prediction", "mean_fold_accuracy", "label prediction: accuracy"),
    "f1": ("label_prediction", "mean_fold_f1", "label prediction: F1"),
    "precision": ("label_prediction", "mean_fold_precision", "label prediction: precision"),
    "recall": ("label_prediction", "mean_fold_recall", "label prediction: recall"),
    "auroc": ("label_prediction", "mean_fold_auroc", "label prediction: AUROC"),
    "entropy": ("integration", "entropy_per_cell", "integration: entropy per cell"),
    "silhouette_batch": ("integration", "batch_silhouette", "integration: silhouette batch"),
}

HEADINGS = {(SCIB, name): f"{SCIB}: {shown}" for name, shown in (BIO | BATCH | TOTALS).items()} | {
    (CZ, name): f"{CZ}: {shown}" for name, (_, _, shown) in CZ_SCORES.items()
}


def check_judges(names: Iterable[str]) -> list[str]:
    """Return the named judges in the order of `JUDGES`.

    Raises
    ------
    ValueError
        If a judge does not exist.
    """
    given = [name.strip() for name in names if name.strip()]
    unknown = [name for name in given if name not in JUDGES]
    if unknown:
        raise ValueError(f"unknown judge {', '.join(map(repr, unknown))}: judges are {', '.join(JUDGES)}")
    return [name for name in JUDGES if name in given]


__all__ = ["BATCH", "BIO", "CZ", "CZ_SCORES", "HEADINGS", "JUDGES", "SCIB", "TOTALS", "check_judges"]
