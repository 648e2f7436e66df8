"""Paths of a machine in texts: of any root, on any system; and what looks like them and is none."""

import json

import h5py
import pytest

from cellglot.model_cards.checks.local_paths import find_paths
from cellglot.model_cards.content_scan import Cleaned, UnsafeContentError, clean_json, scan_folder, scan_text
from cellglot.model_cards.prepare.staging import stage_code


PATHS = {
    "cells of /cluster/work/ada/patients.h5ad": "cells of patients.h5ad",
    "see ~/private/labels.csv.": "see labels.csv.",
    "/lustre01/rrg/x.h5ad, /gpfs2/ada/b.h5ad": "x.h5ad, b.h5ad",
    "--cells=/fsx/ada/x.zarr --out=(/p/home/ada)": "--cells=x.zarr --out=(ada)",
    "login:/storage/ada/x": "login:x",
    "read '/Volumes/My Disk/ada/x y.csv'": "read 'x y.csv'",
    r"from C:\Users\Ada\x.h5ad": "from x.h5ad",
    "from D:/data/ada/x": "from x",
    r"on \\server\share\ada\x.txt": "on x.txt",
    "open file:///mnt/ada/x now": "open x now",
    "$SCRATCH/ada/x and ${HOME}/y": "x and y",
    "at /x.h5ad": "at x.h5ad",
    "made in /home/ada": "made in home",
}
OTHERS = [
    "and/or", "CD4/CD8", "CD4 /CD8/CD3", "HLA-A/B", "T/NK cell", "n/a", "1/2", "2024/05/06", " 06/05/2024", "+/- 3",
    "https://host.org:80/data/ada/x?y=/a/b", "s3://bucket/a/b", "hf://datasets/a/b", "//cdn.host.org/a/b.js",
    "application/json", "text/html; q=1", "GET /v1/models", "POST /api/v2/embed", "</p></b>", "owner/name",
    "./data/x.csv", "../a/b.csv", "#!/usr/bin/env python", "2>/dev/null", "10.1101/2024.01.01/v1", "~50/50", "km/h",
    "http://purl.obolibrary.org/obo/CL_0000084", "git@host.org:owner/name.git", "a / b / c",
]  # fmt: skip


@pytest.mark.parametrize("text", PATHS)
def test_paths_of_any_root_are_found_and_shortened(text):
    cleaned = Cleaned()
    assert clean_json({"x": [text]}, "a.json", cleaned) == {"x": [PATHS[text]]}
    assert cleaned.number == len(find_paths(text))
    assert scan_text(text, "a.md") and not scan_text(PATHS[text], "a.md")


@pytest.mark.parametrize("text", OTHERS)
def test_what_looks_like_a_path_and_is_none(text):
    assert find_paths(text) == [] and scan_text(text, "a.md") == []
    assert clean_json(text, "a.json", Cleaned()) == text


@pytest.mark.parametrize("name", ["a.md", "b.yaml", "c.ipynb", "d.json", "e.txt", "f.h5ad", "LICENSE"])
def test_every_kind_of_file_is_looked_at(tmp_path, name):
    path, leak = tmp_path / name, "read from /cluster/ada/x.csv"
    if name.endswith(".h5ad"):
        with h5py.File(path, "w") as file:
            file["uns/log"] = leak
    else:
        path.write_text(json.dumps({"cells": [{"source": leak}]}) if name.endswith(("json", "ipynb")) else leak)
    with pytest.raises(UnsafeContentError, match=r"/cluster/ada/x\.csv"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "some/body--modeling_x.X"}},
        {"auto_map": {"AutoModel": "../modeling_x.X"}},
        {"custom_pipelines": {"x": {"impl": "a/b--pipeline_x.X"}}},
        {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
    ],
)
def test_code_that_is_not_ours_is_not_published(tmp_path, config):
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json names the"):
        stage_code(tmp_path)
