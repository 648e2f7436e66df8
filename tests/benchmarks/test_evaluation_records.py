"""Records of evaluations that keep the models that did not change."""

import json

import evaluation_records
import pytest
from evaluation_records import to_compute, with_kept, write_record


SCORE = {"metrics": {"nmi": {"value": 0.5, "low": 0.4, "high": 0.6}}, "undefined": {}, "details": {}}


def content(*models, sha="abc", value=0.5):
    score = SCORE | {"metrics": {"nmi": {"value": value, "low": 0.4, "high": 0.6}}}
    return {
        "data": {"sha256": sha, "source": "/somewhere"}, "models": {name: {} for name in models}, "finished": {},
        "results": {"clustering": dict.fromkeys((*models, "log counts + PCA"), score)}, "seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Records of two models, and a function that changes the weights of one."""
    weights = {"human-exceiver": "one", "blood-exceiver": "two"}

    def checksums(models):
        return {name: {"file_sha256": weights[name]} for name in models if name in weights}

    monkeypatch.setattr(evaluation_records, "checksums", checksums)
    write_record(tmp_path, "judges", "cells", "Title", "command", "summary", content(*weights))
    return tmp_path, weights


def test_only_models_with_other_weights_are_computed_again(records):
    folder, weights = records
    names = list(weights)
    assert to_compute(folder, "cells", names, add=True) == []
    assert to_compute(folder, "cells", names, add=False) == names
    assert to_compute(folder, "other cells", names, add=True) == names
    weights["human-exceiver"] = "three"
    assert to_compute(folder, "cells", names, add=True) == ["human-exceiver"]


def test_models_of_the_record_stay_beside_those_that_were_computed(records):
    folder, weights = records
    weights["human-exceiver"] = "three"
    found = with_kept(content("human-exceiver", value=0.7), folder, "cells")
    assert set(found.columns) == {"human-exceiver", "blood-exceiver", "log counts + PCA"}
    values = {name: result.metrics["nmi"].value for name, result in found.results["clustering"].items()}
    assert values == {"human-exceiver": 0.7, "blood-exceiver": 0.5, "log counts + PCA": 0.7}
    write_record(folder, "judges", "cells", "Title", "command", "summary", found.content)
    kept = json.loads((folder / "cells.json").read_text())
    assert kept["models"]["human-exceiver"] == {"file_sha256": "three"} and "blood-exceiver" in kept["models"]
    weights["blood-exceiver"] = "four"  # its scores are of other weights now
    assert with_kept(content("human-exceiver"), folder, "cells").columns == ["human-exceiver", "log counts + PCA"]
    assert with_kept(content("human-exceiver"), folder, "none").columns == ["human-exceiver", "log counts + PCA"]


def test_a_record_of_other_cells_is_refused(records):
    folder, _ = records
    with pytest.raises(ValueError, match="cells.json is of data with a different sha256: run without --add"):
        with_kept(content("human-exceiver", sha="other"), folder, "cells")
