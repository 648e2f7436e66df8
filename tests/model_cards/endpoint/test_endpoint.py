"""Published models over HTTP: loaded as Inference Endpoints load them, with good and with hostile requests."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from transformers import pipeline

import cellglot
from cellglot.model_cards.endpoint.endpoint_limits import Limits, RequestError
from cellglot.model_cards.endpoint.endpoint_request import PARAMETERS
from cellglot.model_cards.endpoint.staging import stage_endpoint
from cellglot.model_cards.prepare.staging import stage_code
from cellglot.modeling import CellEmbeddingPipeline


HERE = Path(__file__).parent
MIB = 1 << 20
MOST_BYTES = 2 * MIB
ENVIRONMENT = {
    "CELLGLOT_MAX_BYTES": str(MOST_BYTES), "CELLGLOT_MAX_DECOMPRESSED_BYTES": str(24 * MIB),
    "CELLGLOT_MAX_CELLS": "900", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


class Served:
    """A running endpoint."""

    def __init__(self, process, port):
        self.process, self.address = process, f"http://127.0.0.1:{port}/"

    def post(self, body, kind="application/json"):
        """Send a body; gives the status and the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = urllib.request.Request(self.address, data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(asked, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def memory(self):
        """Bytes of memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """The blood model that ships with cellglot, served without cellglot."""
    folder = tmp_path_factory.mktemp("endpoint")
    environment = os.environ | ENVIRONMENT | {"HF_MODULES_CACHE": str(folder / "modules")}
    with open(folder / "errors", "w") as errors:
        command = [sys.executable, str(HERE / "emulated_endpoint.py"), str(cellglot.model_path("blood-exceiver"))]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=folder, text=True
        ) as process:
            try:
                served = Served(process, int(process.stdout.readline()))
                with urllib.request.urlopen(f"{served.address}health", timeout=300) as answer:
                    assert answer.read() == b"Ok"
                yield served
            finally:
                process.terminate()


@pytest.fixture(scope="module")
def cells(blood):
    """Twelve blood cells as an AnnData with symbols of genes."""
    return blood[:12].copy()


def named(adata):
    """The cells as {gene: count}."""
    rows = adata.X.toarray()
    return [{g: int(c) for g, c in zip(adata.var_names, row, strict=True) if c} for row in rows]


def in_base64(file):
    return {"inputs": {"h5ad": base64.b64encode(file).decode()}}


def written(adata, change=None):
    """Bytes of an h5ad, changed by h5py."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        anndata.io.write_elem(opened, "/", adata)
        if change is not None:
            change(opened)
    return file.getvalue()


def without(parts, name, values, **options):
    del parts[name]
    return parts.create_dataset(name, data=values, **options)


# -------------------------------------------------------------------- answers


def test_answers_are_those_of_the_pipelines(endpoint, cells):
    folder = cellglot.model_path("blood-exceiver")
    annotate = pipeline("cell-type-annotation", model=str(folder))
    embed = CellEmbeddingPipeline(annotate.model, annotate.tokenizer)
    # cellglot's table of genes knows more names than the vocabulary of the model, which the endpoint has alone
    names = set(annotate.tokenizer.vocabulary.symbols.values())
    inputs = [{gene: count for gene, count in cell.items() if gene in names} for cell in named(cells)]
    expected, vectors = annotate(inputs, set_coverage=0.8), embed(inputs)
    body = {
        "inputs": [*inputs, {"CD3E": 0}],
        "parameters": {"set_coverage": 0.8, "outputs": ["labels", "embeddings"]},
    }
    status, answer = endpoint.post(body)
    assert status == 200 and answer["cells"] == 13 and answer["genes"]["counts_covered"] > 0.9
    for found, wanted in zip(answer["labels"], expected, strict=False):
        numbers = [name for name, value in wanted.items() if isinstance(value, float)]
        assert {name: found[name] for name in numbers} == pytest.approx({n: wanted[n] for n in numbers}, abs=1e-3)
        assert all(found[name] == value for name, value in wanted.items() if name not in numbers)
    assert {"label", "cell_type_ontology_term_id", "prediction_set", "novelty", "reason"} <= set(answer["labels"][0])
    np.testing.assert_allclose(answer["embeddings"][:12], vectors, atol=1e-4)
    assert answer["embeddings"][12] is None and answer["labels"][12]["score"] is None
    assert answer["warnings"][0] == "1 of 13 cells express no gene of the model"
    status, best = endpoint.post({"inputs": named(cells)[0], "parameters": {"top_k": 2}})
    assert status == 200 and [len(of_cell) for of_cell in best["labels"]] == [2]


def test_files_give_the_same_whatever_their_layout(endpoint, cells):
    status, expected = endpoint.post(in_base64(written(cells)))
    labels = [cell["label"] for cell in expected["labels"]]
    csc, dense, layer, raw = (cells.copy() for _ in range(4))
    csc.X = sp.csc_matrix(csc.X)
    dense.X = dense.X.toarray()
    layer.layers["counts"] = layer.X.copy()
    layer.X = np.sqrt(layer.X.toarray()) - 0.4
    raw.raw = raw.copy()
    raw = raw[:, :50].copy()
    raw.X = np.sqrt(raw.X.toarray()) - 0.4
    category = cells.copy()
    category.var["feature_name"] = cells.var_names.astype("category")
    category.var_names = [str(number) for number in range(cells.n_vars)]
    places = {"csr": "X", "csc": "X", "dense": "X", "layer": "layers['counts']", "raw": "raw.X", "category": "X"}
    for (name, place), adata in zip(places.items(), (cells, csc, dense, layer, raw, category), strict=True):
        status, answer = endpoint.post(in_base64(written(adata)))
        assert status == 200, f"{name}: {answer}"
        assert [cell["label"] for cell in answer["labels"]] == labels, name
        assert answer["names"] == list(cells.obs_names) and answer["genes"]["counts_in"].startswith(place)
    status, answer = endpoint.post(written(cells), "audio/wav")  # the emulator's name for bytes
    assert status == 200 and answer["cells"] == 12


def test_antibodies_are_left_out(endpoint, cells):
    both = cells.copy()
    both.var["feature_types"] = ["Antibody Capture"] * 3 + ["Gene Expression"] * (cells.n_vars - 3)
    status, answer = endpoint.post(in_base64(written(both)))
    assert status == 200
    assert "left out features that are not genes: 3 Antibody Capture" in answer["warnings"]


# -------------------------------------------------------------------- hostile requests


def hostile_files(cells):
    """What is wrong -> (file, words of the answer)."""
    few = cells[:, :20].copy()
    whole = written(few)

    def renamed(names):
        other = cells.copy()
        other.var_names = names
        return written(other)

    def changed(change):
        return written(few, change)

    def of_values(values):
        other = few.copy()
        other.X = values
        return written(other)

    def shape(rows, columns):
        def change(file):
            file["X"].attrs["shape"] = [rows, columns]

        return change

    def huge(file):
        del file["X"]
        made = file.create_dataset("X", (800, 1_000_000), "f4", chunks=(1, 1000), compression="gzip")
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def zeros(file):
        without(file["X"], "data", np.zeros(8 * MIB, "f4"), compression="gzip", chunks=(MIB,))

    def chunk(file):
        data = file["X/data"][()]
        without(file["X"], "data", data, maxshape=(None,), chunks=(1 << 23,), compression="gzip", fillvalue=0)

    def link(file):
        del file["obs"]
        file["obs"] = h5py.ExternalLink("/etc/passwd", "/obs")

    def behind(file):
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
        del file["var"]
        file["var"] = h5py.SoftLink("/elsewhere/var")

    def outside(file):
        size = len(file["X/data"])
        del file["X/data"]
        file["X"].create_dataset("data", (size,), "f4", external=[("/etc/passwd", 0, size * 4)])

    def virtual(file):
        size = len(file["X/data"])
        layout = h5py.VirtualLayout((size,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "data", (size,))
        del file["X/data"]
        file["X"].create_virtual_dataset("data", layout)

    def bad_indptr(file):
        indptr = file["X/indptr"][()]
        indptr[3] = 1 << 30
        file["X/indptr"][...] = indptr

    def bad_indices(file):
        file["X/indices"][0] = 10_000

    def tenx(file):
        for name in list(file):
            del file[name]
        file.create_group("matrix")

    nan = few.X.toarray()
    nan[1, 1] = np.nan
    log = np.log1p(few.X.toarray()) * 0.37
    mouse = [name.capitalize() for name in cells.var_names]
    return {
        "text": (b"gene\tcell\n" * 50, "is not an h5ad .HDF5.: it begins with b'gene"),
        "a zip file": (b"PK\x03\x04" + whole, "it is a zip file"),
        "nothing": (b"", "it is empty"),
        "cut short": (whole[: len(whole) // 2], "may be damaged or cut short"),
        "cut a little": (whole[:-200], "damaged|cut short|missing"),
        "normalised": (of_values(log), "not whole numbers"),
        "negative": (of_values(few.X.toarray() - 1.0), "negative values"),
        "NaN": (of_values(nan), "missing .NaN."),
        "mouse genes": (renamed(mouse), "named as in mouse: this model reads human genes"),
        "mouse ids": (renamed([f"ENSMUSG{n:011d}" for n in range(cells.n_vars)]), "named as in mouse"),
        "no known gene": (renamed([f"<script>alert({n})</script>" for n in range(cells.n_vars)]), "covers no gene"),
        "300,000 cells": (changed(shape(300_000, 20)), "has 300,000 cells, but 900 is the limit"),
        "many genes": (changed(shape(12, 1 << 40)), "which is impossible"),
        "huge shape": (changed(huge), "when it is decompressed .up to X., but 25,165,824 is the limit"),
        "bomb": (changed(zeros), "when it is decompressed .up to X/data., but 25,165,824 is the limit"),
        "chunk bomb": (changed(chunk), "67,108,864 bytes or more when it is decompressed"),
        "external link": (changed(link), "/obs is a link to another file"),
        "link behind a link": (changed(behind), "/elsewhere is a link to another file"),
        "external bytes": (changed(outside), "the data of /X/data are in another file"),
        "virtual": (changed(virtual), "the data of /X/data are in another file"),
        "bad offsets": (changed(bad_indptr), "damaged sparse matrix"),
        "bad indices": (changed(bad_indices), "indices from 0 to 10,000|indices from"),
        "10x": (changed(tenx), "this is a 10x .h5 file"),
        "over the limit": (whole + b"\0" * MOST_BYTES, "the file has .* bytes, but 2,097,152 is the limit"),
    }  # fmt: skip


def hostile_bodies():
    """Body or bytes -> words of the answer."""
    cell = {"CD3E": 3, "CD4": 1}
    return [
        ({"inputs": {}}, "cell 0 has no genes"),
        ({"inputs": []}, "an empty list"),
        ({"inputs": "CD3E"}, "of the type str; inputs are one cell"),
        ({"inputs": [cell, 5]}, "cell 1 is of the type int"),
        ({"inputs": {"CD3E": None}}, "has None for the gene 'CD3E', which is not a count"),
        ({"inputs": {"CD3E": True}}, "has True for the gene"),
        ({"inputs": {"CD3E": "3"}}, "has '3' for the gene"),
        ({"inputs": {"CD3E": float("nan")}}, "has NaN for the gene"),
        ({"inputs": {"CD3E": float("inf")}}, "has inf for the gene"),
        ({"inputs": {"CD3E": 10**400}}, "which is not a count"),
        ({"inputs": {"CD3E": 1.5, "CD4": 2.25}}, "not whole numbers"),
        ({"inputs": {"CD3E": -1}}, "negative values"),
        ({"inputs": {"Cd3e": 3, "Ms4a1": 2, "Cd79a": 2}}, "named as in mouse"),
        ({"inputs": {"\ud800": 1}}, "covers no gene"),
        ({"inputs": {"h5ad": "?"}}, "h5ad is not base64"),
        ({"inputs": {"h5ad": "A" * 3 * MOST_BYTES}}, "bytes, but 2,097,152 is the limit"),
        ({"inputs": [{"CD3E": 1}] * 901}, "has 901 cells, but 900 is the limit"),
        ({"inputs": [{str(n): 1 for n in range(1000)}] * 200}, "more than 174,762 counts"),
        ({"inputs": cell, "parameters": []}, "parameters is of the type list"),
        ({"inputs": cell, "parameters": {"topk": 3}}, "'topk' is unknown; there are outputs"),
        ({"inputs": cell, "parameters": {"top_k": 0}}, "top_k is 0, not a whole number from 1"),
        ({"inputs": cell, "parameters": {"top_k": True}}, "top_k is True"),
        ({"inputs": cell, "parameters": {"outputs": []}}, "outputs is .., not a list of"),
        ({"inputs": cell, "parameters": {"outputs": ["embeddings"], "top_k": 1}}, "top_k is for labels"),
        ({"inputs": cell, "parameters": {"set_coverage": 0.1}}, "calibrated for"),
        ({"inputs": cell, "parameters": {"candidate_labels": ["B cell"]}}, "is a classifier of"),
        ({"inputs": cell, "parameters": {"layer": "counts"}}, "layer is for an h5ad"),
        ({"inputs": cell, "parameters": {"max_cells": 1e6}}, "is the limit of this endpoint; .* CELLGLOT_MAX_CELLS"),
        ({"inputs": cell, "parameters": {"max_seconds": "long"}}, "not a number above 0"),
        ({"inputs": [cell] * 600, "parameters": {"max_seconds": 0.01}}, "took more than 0.01 seconds"),
        ({"inputs": cell, "input": cell}, "has 'input', which is unknown"),
        ({"parameters": {}}, "inputs key"),
        (b"[" * 100_000, "."),
        (b'{"inputs": ', "."),
        (b"\xff\xfe", "."),
    ]


def test_every_hostile_request_is_answered_with_a_sentence(endpoint, cells):
    asked = [(name, in_base64(file), words) for name, (file, words) in hostile_files(cells).items()]
    asked += [(str(body)[:60], body, words) for body, words in hostile_bodies()]
    wrong = []
    for name, body, words in asked:
        status, answer = endpoint.post(body)
        if status != 400 or not re.search(words, answer.get("error", "")):
            wrong.append(f"{name}: {status} {str(answer)[:300]}")
        elif "Traceback" in answer["error"] or "/site-packages/" in answer["error"]:
            wrong.append(f"{name}: {answer['error'][:300]}")
    assert not wrong, "\n".join(wrong)
    assert endpoint.post({"inputs": named(cells)[0]})[0] == 200
    for kind in ("text/csv", "image/png", "application/x-unknown"):
        assert endpoint.post(b"x", kind)[0] == 400


def test_two_hundred_requests_sixteen_at_once(endpoint, cells):
    one = named(cells)
    labels = endpoint.post({"inputs": one})[1]["labels"]
    of_file = endpoint.post(in_base64(written(cells)))[1]["labels"]  # genes that the file lacks are imputed
    hostile = [body for body, _ in hostile_bodies() if isinstance(body, dict) and len(str(body)) < 1000]
    files = [in_base64(written(cells)), in_base64(b"\x89HDF\r\n\x1a\n" + b"\1" * 5000)]
    asked = []
    for number in range(200):
        kind = number % 10
        if kind < 7:
            asked.append(({"inputs": one[number % 12]}, [labels[number % 12]["label"]]))
        elif kind < 9 or number % 50 != 9:
            asked.append((hostile[number % len(hostile)], None))
        else:
            asked.append((files[0], [cell["label"] for cell in of_file]) if number % 100 == 9 else (files[1], None))
    for body, _ in asked[:50]:
        endpoint.post(body)
    before = endpoint.memory()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(endpoint.post, [body for body, _ in asked]))
    for (body, expected), (status, answer) in zip(asked, answers, strict=True):
        assert status == (400 if expected is None else 200), f"{str(body)[:100]}: {answer}"
        if expected is not None:
            assert [cell["label"] for cell in answer["labels"]] == expected
    assert len(answers) == 200 and endpoint.memory() - before < 25 * MIB


# -------------------------------------------------------------------- other models


AS_THE_TOOLKIT = """
import importlib.util, json, sys
answers = {}
for name, folder, bodies in json.loads(arguments[0]):
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    handler, answers[name] = module.EndpointHandler(folder), []
    for body in bodies:
        try:
            answers[name].append(handler(body))
        except Exception as error:
            answers[name].append(str(error))
print(json.dumps(answers, allow_nan=False))
"""


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.long)])
def as_the_toolkit(request, stranger, capsys):
    """Answer requests as the toolkit of endpoints does, here and, which takes long, where there is no cellglot."""

    def here(jobs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "handler.EndpointHandler", None)  # set by the code, and removed afterwards
            exec(AS_THE_TOOLKIT, {"__name__": "__main__", "arguments": [jobs]})
        return capsys.readouterr().out

    def process(jobs):
        return stranger(AS_THE_TOOLKIT, jobs, lacking=["anndata", "scipy"])

    answer = here if request.param == "here" else process
    return lambda jobs: json.loads(answer(json.dumps(jobs)).splitlines()[-1])


def test_adapters_encoders_and_models_of_texts(as_the_toolkit, gene_classifiers, cell_text_folder, cells, tmp_path):
    inputs = named(cells)[:3]
    both = {"outputs": ["labels", "embeddings"]}
    candidates = {"candidate_labels": ["B cell", "T cell"], "template": "a {name}"}
    bodies = {
        "adapter": [{}, both],
        "base": [{}, both],
        "text": [{}, candidates | both, both, {"candidate_labels": {"B": ["b", "b cell"], "T": "t"}}],
    }
    jobs = []
    for name, source in (("adapter", gene_classifiers["adapter"]), ("base", gene_classifiers["base"]),
                         ("text", cell_text_folder)):  # fmt: skip
        shutil.copytree(source, tmp_path / name)
        stage_code(tmp_path / name)
        names = stage_endpoint(tmp_path / name)
        assert all((tmp_path / name / file).exists() for file in names)
        needs_peft = "peft" in (tmp_path / name / "requirements.txt").read_text()
        assert needs_peft == (name == "adapter")
        jobs.append((name, str(tmp_path / name), [{"inputs": inputs, "parameters": p} for p in bodies[name]]))
    answers = as_the_toolkit(jobs)
    adapted = pipeline(
        "cell-type-annotation", model=str(gene_classifiers["base"]), adapter=gene_classifiers["adapter"]
    )
    expected = adapted(inputs)
    assert [c["label"] for c in answers["adapter"][0]["labels"]] == [c["label"] for c in expected]
    assert "embeddings" not in answers["adapter"][0] and len(answers["adapter"][1]["embeddings"][0]) == 16
    assert len(answers["base"][0]["embeddings"]) == 3
    assert answers["base"][1].startswith("this model has no cell types, it embeds cells")
    embedded, labelled, refused, described = answers["text"]
    assert "labels" not in embedded and embedded["embeddings"] == labelled["embeddings"]
    assert {cell["label"] for cell in labelled["labels"]} <= {"B cell", "T cell"}
    assert refused == "this model labels cells by texts: name the cell types in parameters, candidate_labels"
    assert {cell["label"] for cell in described["labels"]} <= {"B", "T"}


# -------------------------------------------------------------------- limits and documents


def test_limits_come_from_the_environment_and_can_be_lowered():
    limits = Limits.of_environment({"CELLGLOT_MAX_CELLS": "50", "CELLGLOT_MAX_SECONDS": "2.5"})
    assert (limits.max_cells, limits.max_seconds, limits.max_bytes) == (50, 2.5, Limits.max_bytes)
    assert limits.lowered({"max_cells": 10, "top_k": 3}).max_cells == 10
    with pytest.raises(RequestError, match="51, but 50 is the limit"):
        limits.lowered({"max_cells": 51})
    for wrong in ("many", "0", "nan", "inf", "-1"):
        with pytest.raises(ValueError, match=f"CELLGLOT_MAX_BYTES is '{wrong}', not a number above 0"):
            Limits.of_environment({"CELLGLOT_MAX_BYTES": wrong})


def test_the_schema_lists_what_the_endpoint_takes():
    path = HERE.parents[2] / "docs" / "guides" / "endpoint_openapi.yaml"
    schemas = yaml.safe_load(path.read_text())["components"]["schemas"]
    assert set(schemas["Parameters"]["properties"]) == set(PARAMETERS)
    for name in ("max_bytes", "max_decompressed_bytes", "max_cells", "max_seconds"):
        described = schemas["Parameters"]["properties"][name]
        assert described["default"] == getattr(Limits, name) and f"CELLGLOT_{name.upper()}" in described["description"]
