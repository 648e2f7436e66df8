import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch


os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


class _KeepsModules:
    """After a slow collection of garbage, leaves what is alive, which is mostly modules, out of the later ones.

    Every training of transformers collects garbage: half a second where everything is imported.
    """

    began = 0.0

    def __call__(self, phase, info):
        if info["generation"] < 2:
            return
        if phase == "start":
            self.began = time.thread_time()
        elif time.thread_time() - self.began > 0.05:
            gc.freeze()


def pytest_configure(config):
    at_once = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(2 // at_once, 1))
    if at_once > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
    gc.callbacks.append(_KeepsModules())


def reference_folder() -> Path:
    return Path(os.environ.get("CELLGLOT_REFERENCE_DATA", ROOT / ".." / "shared" / "data")).resolve()


# Begun first, with the longest in front, so that at the end no process waits for another that has just begun one.
LONGEST = (
    "modeling/test_every_model.py", "docs/test_pages.py", "hub/test_plain_models.py",
    "model_cards/collection/test_collection_build.py", "model_cards/collection/test_rank_base_build.py",
    "evaluation/benchmark/test_benchmark.py", "model_cards/space/test_browser.py",
    "training/finetuning/test_finetune_methods.py", "hub/test_pipelines.py", "cellglot/test_onnx.py",
    "training/pretraining/test_pretrain_langcell.py", "training/pretraining/test_pretrain_sccello.py",
    "model_cards/endpoint/test_endpoint.py", "model_cards/space/test_bad_cells.py",
    "evaluation/benchmark/test_judged_evaluation.py", "model_cards/test_publish.py", "evaluation/test_plots.py",
    "model_cards/collection/test_base_build.py", "training/runs/test_stopping.py",
    "model_cards/space/test_gradio_browser.py", "training/finetuning/test_adapters.py",
    "training/test_weight_average.py", "training/finetuning/test_finetune_settings.py",
    "model_cards/card/test_cards.py", "model_cards/test_local_hub.py", "evaluation/test_cell_plot.py",
    "tokenization/corpus/test_corpus.py", "tokenization/corpus/test_cluster.py", "tokenization/corpus/test_sources.py",
    "hub/test_clean_environment.py", "tokenization/kernels/test_compiled_encoding.py",
    "evaluation/drug_response/test_response_evaluation.py", "evaluation/perturbation/test_perturbation.py",
    "evaluation/scores/test_clustering.py", "cellglot/test_annotate_command.py",
    "training/finetuning/test_finetune.py", "training/finetuning/test_new_model.py",
    "training/pretraining/test_training_processes.py", "cellglot/test_verbs.py",
    "tokenization/ontology/test_cell_ontology_release.py", "evaluation/test_metrics.py",
    "training/parallel/test_objectives.py", "training/parallel/test_processes.py",
    "training/parallel/test_switches.py", "evaluation/test_parallel_embedding.py", "model_cards/space/test_webgpu.py",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))  # stable: the order of files stays otherwise
    folder = reference_folder()
    if folder.exists():
        return
    skip = pytest.mark.skip(reason=f"the reference data is not there: no folder {folder}")
    for item in items:
        if "reference" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    return reference_folder()


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def blood_log():
    """The 700 blood cells that scanpy ships: scaled in X, log-normalised in raw.X."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.datasets.pbmc68k_reduced()


@pytest.fixture(scope="session")
def blood(blood_log):
    """The same cells with raw counts (computed back) in X, the label in cell_type."""
    from cellglot.tokenization import read_cells

    return read_cells(blood_log, rename={"bulk_labels": "cell_type"}).to_anndata()


@pytest.fixture(scope="session")
def blood_file(blood, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "blood.h5ad"
    blood.write_h5ad(path, compression="gzip")
    return path


@pytest.fixture(scope="session")
def vocabulary(blood):
    """Genes of the blood cells with statistics of all 700 cells."""
    from cellglot.tokenization import GeneVocabulary

    counts = blood.X.toarray().astype(float)
    scaled = counts / counts.sum(1, keepdims=True) * 1e4
    logs = np.log1p(scaled)
    medians = np.array([np.median(c[c > 0]) for c in scaled.T])
    return GeneVocabulary.from_statistics(list(blood.var_names), medians=medians, means=logs.mean(0), stds=logs.std(0))


# Runs code, or a file, where modules that a stranger may not have cannot be imported.
_STRANGER = """
import json, runpy, sys
code, lacking, arguments = json.loads(sys.argv[1])
sys.modules |= dict.fromkeys(["cellglot", *lacking])  # an import of these fails
if code.endswith(".py"):
    sys.path.insert(0, code.rpartition("/")[0])
    sys.argv = [code, *arguments]
    runpy.run_path(code, run_name="__main__")
else:
    exec(code, {"__name__": "__main__", "arguments": arguments})
"""


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Run code, or a file, in a process without cellglot; gives what it printed. Its arguments are `arguments`."""

    def run(code, *arguments, lacking=(), folder=None, **environment):
        folder = folder or tmp_path_factory.mktemp("stranger")
        settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
        given = json.dumps([textwrap.dedent(str(code)), list(lacking), arguments])
        done = subprocess.run(
            [sys.executable, "-c", _STRANGER, given], env=os.environ | settings | environment, cwd=folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


# Headless, and quiet: no look-ups of its own, which a machine without network refuses one by one.
_CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, driven by Playwright: `chromium.new_page(viewport=..., color_scheme=...)`."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "tests of pages need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_CHROMIUM))
        yield browser
        browser.close()


# The pixel of the plot that differs most from its background: within a cell that is not faint.
_DRAWN = """canvas => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    let best = 0, most = 0;
    for (let i = 0; i < data.length; i += 4) {
        const away = Math.abs(data[i] - data[0]) + Math.abs(data[i + 1] - data[1]) + Math.abs(data[i + 2] - data[2]);
        if (away > most) [best, most] = [i / 4, away];
    }
    const ratio = canvas.width / canvas.getBoundingClientRect().width;
    return [(best % canvas.width) / ratio, Math.floor(best / canvas.width) / ratio];
}"""


@pytest.fixture(scope="session")
def point_at_a_cell():
    """Move the pointer onto a cell of a plot, and wait for what is told of it; returns the place on the page."""

    def point(page, canvas: str = "canvas") -> tuple[float, float]:
        plot = page.locator(canvas)
        plot.scroll_into_view_if_needed()
        box, (x, y) = plot.bounding_box(), plot.evaluate(_DRAWN)
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.locator(".cell-plot-tip").wait_for()
        return box["x"] + x, box["y"] + y

    return point


@pytest.fixture
def random_counts():
    """Make sparse counts of a given shape."""

    def make(n_cells: int, n_genes: int, seed: int = 0, density: float = 0.3) -> sp.csr_matrix:
        random = np.random.default_rng(seed)
        counts = random.poisson(2.0, (n_cells, n_genes)) * (random.random((n_cells, n_genes)) < density)
        return sp.csr_matrix(counts.astype(np.float32))

    return make


@pytest.fixture(scope="session")
def exceiver_config():
    """The tiny configuration on which every check of the Exceiver models runs; fields can be changed."""
    from cellglot.modeling import ExceiverConfig

    def make(**changes):
        sizes = {
            "vocab_size": 42,
            "gene_embedding_size": 8,
            "hidden_size": 16,
            "num_latents": 6,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
        }
        return ExceiverConfig(**(sizes | changes))

    return make


@pytest.fixture(scope="session")
def corpus(blood_file, tmp_path_factory):
    """The blood cells as tokens of Exceiver, a fifth held out."""
    from cellglot.tokenization.corpus.tokenize import tokenize_corpus

    folder = tmp_path_factory.mktemp("corpus") / "exceiver"
    return tokenize_corpus([blood_file], folder, validation_fraction=0.2, processes=1, progress=False)


@pytest.fixture(scope="session")
def sccello_config():
    """The tiny configuration on which every check of the scCello models runs; fields can be changed."""
    from cellglot.modeling import ScCelloConfig

    def make(**changes):
        sizes = {
            "vocab_size": 42,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
            "initializer_range": 0.3,
            "tau": 0.1,
            "cell_types": [f"CL:{n:07d}" for n in range(5)],
        }
        return ScCelloConfig(**(sizes | changes))

    return make


@pytest.fixture(scope="session")
def langcell_config():
    """The tiny configuration on which every check of the LangCell models runs; fields, those of towers, can change."""
    from cellglot.modeling import LangCellConfig

    def make(cell=None, text=None, **changes):
        cells = {
            "vocab_size": 42,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 1024,
            "initializer_range": 0.3,
        }
        texts = {
            "vocab_size": 50,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            "initializer_range": 0.3,
            "attention_probs_dropout_prob": 0.0,
        }
        more = {"projection_dim": 8, "initializer_range": 0.3} | changes
        return LangCellConfig(cell_config=cells | (cell or {}), text_config=texts | (text or {}), **more)

    return make


@pytest.fixture(scope="session")
def cell_text_folder(vocabulary, tmp_path_factory) -> Path:
    """A tiny LangCell with random weights, of blood genes and of texts spelt letter by letter, with its processor."""
    from transformers import BertTokenizerFast

    from cellglot.modeling import LangCellConfig, LangCellModel
    from cellglot.tokenization import LangCellProcessor, RankValueTokenizer

    folder = tmp_path_factory.mktemp("langcell")
    signs = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{c}" for c in signs), *":;.,()-+'/"]
    (folder / "vocab.txt").write_text("\n".join(words))
    texts = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=512)
    genes = RankValueTokenizer.from_vocabulary(vocabulary)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    wide = small | {"initializer_range": 0.3}
    torch.manual_seed(0)
    config = LangCellConfig(
        cell_config=wide | {"vocab_size": genes.vocab_size},
        text_config=wide | {"vocab_size": len(texts), "hidden_dropout_prob": 0.0},
        projection_dim=8,
        initializer_range=0.3,
    )
    LangCellModel(config).save_pretrained(folder / "model")
    LangCellProcessor(genes, texts).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Put a folder into a cache of the Hub as a repository; gives the commit."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def put(folder: Path, name: str, commit: str = "0123456789abcdef" * 2 + "01234567", main: bool = True) -> str:
        place = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / commit)
        if main:
            (place / "refs").mkdir(exist_ok=True)
            (place / "refs" / "main").write_text(commit)
        return commit

    return put


@pytest.fixture(scope="session")
def gene_classifiers(vocabulary, tmp_path_factory) -> dict[str, Path]:
    """A tiny scCello with random weights: alone, with a head of four classes, and an adapter of three on the first."""
    from cellglot.modeling import ScCelloConfig, ScCelloForSequenceClassification, ScCelloModel
    from cellglot.tokenization import RankValueTokenizer
    from cellglot.training.finetuning.adapters import put_adapter, save_adapter

    def config(*names, **changes):
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        made = ScCelloConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **sizes, **changes)
        if names:
            made.id2label, made.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        return made

    folder = tmp_path_factory.mktemp("classifiers")
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    folders = {name: folder / name for name in ("base", "classifier", "adapter")}
    torch.manual_seed(0)
    ScCelloModel(config()).save_pretrained(folders["base"])
    types = {"B cell": "CL:0000236", "T cell": "CL:0000084"}
    classifier = config("B cell", "T cell", "monocyte", "odd", label_cl_ids=types)
    ScCelloForSequenceClassification(classifier).save_pretrained(folders["classifier"])
    for name in ("base", "classifier"):
        tokenizer.save_pretrained(folders[name])
    adapted = ScCelloForSequenceClassification.from_pretrained(
        folders["base"], config=config("T cell", "NK", "other", label_cl_ids=types)
    )
    with_adapter = put_adapter(adapted, "lora", ("classifier",))
    for name, weights in with_adapter.named_parameters():
        if weights.requires_grad and "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    save_adapter(with_adapter, folders["adapter"])
    return folders


@pytest.fixture
def no_process(monkeypatch):
    """Let the check of a published copy run in this process, by the installed classes."""
    from cellglot.model_cards import publishing
    from cellglot.model_cards.checks import clean_process

    monkeypatch.setattr(publishing, "visit_as_stranger", clean_process.visit_here)


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.long)])
def either_process(request):
    """Let the check of a published copy run in this process and, which takes long, in one without cellglot."""
    if request.param == "here":
        request.getfixturevalue("no_process")
