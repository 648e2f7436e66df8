"""`embed` in two processes: the embeddings of one, a run that lost a process, and one that resumes."""

import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from cellglot.evaluation.embed_file import embed_file
from cellglot.evaluation.parallel_embedding import SharedEmbedding
from cellglot.outputs import OutputError, write_json


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# The second process is killed after its first block.
KILLED = """
import os, signal, sys
from cellglot import cli
from cellglot.evaluation import parallel_embedding

embed = parallel_embedding.SharedEmbedding._embed_block
def embed_and_end(self, *args):
    embed(self, *args)
    if self.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

parallel_embedding.SharedEmbedding._embed_block = embed_and_end
cli.main()
"""


def start(command, *arguments):
    return subprocess.run(
        [*TWO, *command, "embed", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def cells(blood, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "some.h5ad"
    blood[:300].write_h5ad(path)
    return path


@pytest.mark.long
def test_two_processes_give_the_embeddings_of_one(model_folders, cells, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    output = tmp_path / "embedding.h5ad"
    given = model_folders["model"], cells, "-o", output, "--batch-size", 1, "--device", "cpu"  # blocks of 64 cells
    done = start([str(script)], *given)
    assert done.returncode != 0
    assert "another of the 2 processes ended before its cells were embedded" in done.stderr or "SIGKILL" in done.stderr
    assert not output.exists()
    unfinished = tmp_path / "embedding.h5ad.unfinished"
    kept = {path.name: path.stat().st_mtime_ns for path in unfinished.glob("block-*.npz")}
    assert "block-000003.npz" in kept and len(kept) < 5

    done = start(["-m", "cellglot"], *given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("300 cells x 48") == 1  # the first process alone prints
    assert (
        f"by 2 processes; embedded by an earlier run: {sum(64 if '4' not in name else 44 for name in kept)} cells"
        in done.stdout
    )
    assert not unfinished.exists()
    alone = embed_file(
        model_folders["model"], cells, tmp_path / "one.h5ad", batch_size=1, progress=False, device="cpu"
    )
    one, two = (ad.read_h5ad(tmp_path / name) for name in ("one.h5ad", "embedding.h5ad"))
    assert one.obs.equals(two.obs)
    assert np.allclose(one.X, two.X, rtol=1e-5, atol=1e-6)
    assert set(alone.splitlines()[1:-1]) <= set(done.stdout.splitlines())  # the report of genes and counts


def test_blocks_of_another_run_are_refused(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "embedding.npy"
    with pytest.raises(KeyError), SharedEmbedding(output, {"cells": "a"}) as first:
        write_json(first.folder / "note.json", {})
        np.savez(first.folder / "block-000000.npz", embedding=np.zeros(2))
        raise KeyError
    with pytest.raises(OutputError, match=r"unfinished has embeddings of a run with other cells"):
        SharedEmbedding(output, {"cells": "b"}).__enter__()
    assert (first.folder / "block-000000.npz").exists()
    with SharedEmbedding(output, {"cells": "b"}, overwrite=True):
        assert not (first.folder / "block-000000.npz").exists()
    assert [path.name for path in first.folder.iterdir()] == ["note.json"]  # not one of the run's files
