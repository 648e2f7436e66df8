"""What computes in the page: WebGPU where a graphics processor gives the same scores sooner, else WebAssembly."""

import os
import shutil
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.model_cards.space.browser.build import WEBGPU
from cellglot.model_cards.space.browser.serve import served


PROCESSOR, GRAPHICS = "Computed by WebAssembly, on the processor", "Computed by WebGPU, on the graphics processor"

# In place of the runtime of WebGPU: another session of WebAssembly, which does something else with a batch, or with a
# session.
RUNTIME = """
import * as ort from "./ort.wasm.bundle.min.mjs";
const device = new EventTarget();
device.lost = new Promise((resolve) => (device.lose = () => resolve({ message: "it was unplugged" })));
const clock = performance.now.bind(performance);
let late = 0, batches = 0;
performance.now = () => clock() + late;
export const Tensor = ort.Tensor;
export const env = { wasm: {}, webgpu: { device } };
export const InferenceSession = {
  async create(graph) {
    SESSION
    while (!ort.env.wasm.wasmBinary) await new Promise((resolve) => setTimeout(resolve, 5)); // WebAssembly starts, too
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    const { inputNames, outputNames } = session;
    return { inputNames, outputNames, async run(feeds) {
      const found = await session.run(feeds), batch = batches++;
      late += MILLISECONDS;
      BATCH
      return found;
    } };
  },
};
"""
# Before the worker's own code: an adapter, and one thread of WebAssembly, for a tiny model.
ADAPTER = """
Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => (ANSWER) } });
Object.defineProperty(navigator, "hardwareConcurrency", { value: 1 });
"""
WAIT = 600_000  # milliseconds; a busy machine compiles shaders for long
N_CELLS = 130
FASTER, SLOWER = -1e6, 1e6  # milliseconds


@pytest.fixture(scope="module")
def site(space_in_browser, tmp_path_factory):
    """The page of a tiny model, which draws no map."""
    folder = tmp_path_factory.mktemp("page") / "site"
    shutil.copytree(space_in_browser, folder)
    (folder / "umap_worker.js").write_text("")
    return folder


@pytest.fixture(scope="module")
def cells(blood, tmp_path_factory):
    """A file of cells that makes three batches."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    blood[:N_CELLS].copy().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def expected(gene_classifiers, blood):
    network, tokenizer = load_classifier(gene_classifiers["adapter"])
    return classify_cells(network, tokenizer, blood[:N_CELLS], progress=False)


@pytest.fixture
def changed(site, tmp_path):
    """Serve the page with an adapter of WebGPU, as JavaScript, and with another runtime of it."""

    @contextmanager
    def serve(adapter: str = "{}", batch: str = "", milliseconds: float = FASTER, session: bool = True):
        parts = {"BATCH": batch, "MILLISECONDS": str(milliseconds)}
        parts["SESSION"] = "" if session else "throw new Error('unsupported operator');"
        runtime = reduce(lambda text, name: text.replace(name, parts[name]), parts, RUNTIME)
        folder = tmp_path / "changed"
        shutil.copytree(site, folder, copy_function=os.link)
        for path, content in (
            (WEBGPU[0], runtime),
            ("worker.js", ADAPTER.replace("ANSWER", adapter) + (site / "worker.js").read_text()),
        ):
            (folder / path).unlink()
            (folder / path).write_text(content)
        with served(folder) as address:
            yield address
        shutil.rmtree(folder)

    return serve


class Visit:
    """A visitor's page, and the files of WebGPU that it asked for."""

    def __init__(self, browser, address: str, keeps: bool = False):
        """Open a page; with `keeps`, the browser keeps its files for use without a network."""
        self.context = browser.new_context(service_workers="allow" if keeps else "block")
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.ready()

    def ready(self):
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")

    @property
    def webgpu(self) -> set[str]:
        return {path for path in WEBGPU if any(path in url for url in self.asked)}

    def says(self, line: str) -> None:
        self.page.locator("#compute-line").filter(has_text=line).wait_for()

    def table(self, cells: Path) -> pd.DataFrame:
        self.page.evaluate("document.documentElement.dataset.shown = ''")
        self.page.set_input_files("#file", cells)
        done = "html[data-shown=result], html[data-shown*=problem]"
        self.page.wait_for_selector(done, state="attached")
        assert self.page.is_visible("#result"), self.page.inner_text("#problem-text")
        with self.page.expect_download() as download:
            self.page.click("#download")
        return pd.read_csv(download.value.path(), index_col="cell_id", keep_default_na=False)

    def kept(self) -> set[str]:
        """Return the files of WebGPU that are kept for use without a network."""
        code = """async (paths) => {
            await navigator.serviceWorker.ready;
            const found = await Promise.all(paths.map((path) => caches.match(path)));
            return paths.filter((_, i) => found[i]);
        }"""
        return set(self.page.evaluate(code, list(WEBGPU)))

    def without_network(self, address: str) -> None:
        self.context.set_offline(True)
        self.asked.clear()
        self.page.goto(address)
        self.ready()


def assert_same(table: pd.DataFrame, expected, most: float = 1e-3) -> None:
    labels = np.array([label or "" for label in expected.predicted])
    assert (table["cellglot_cell_type"].to_numpy() == labels).mean() >= 0.995
    scores = pd.to_numeric(table["cellglot_score_uncalibrated"])
    np.testing.assert_allclose(scores, expected.scores.max(axis=1), atol=most)


def test_without_an_adapter_nothing_of_webgpu_is_loaded(chromium, site, changed, cells, expected):
    none = f"{PROCESSOR}: the browser offers no graphics processor."
    for place, line in (
        (served(site), none),
        (changed("null"), none),
        (changed("{ info: { isFallbackAdapter: true } }"), f"{PROCESSOR}: the browser's WebGPU is software"),
    ):
        with place as address:
            visit = Visit(chromium, address, keeps=True)
            visit.says(line)
            assert_same(visit.table(cells), expected)
            assert not visit.webgpu and not visit.kept()
            visit.context.close()


def test_the_address_of_the_page_forces_webassembly(chromium, changed, cells, expected):
    with changed() as address:
        visit = Visit(chromium, f"{address}?compute=wasm")
        visit.says(f"{PROCESSOR}: as the page was told.")
        assert_same(visit.table(cells), expected)
        assert not visit.webgpu
        visit.page.click("#compute-other")  # "Use the graphics processor if it is faster"
        visit.says("while the graphics processor gets ready")
        assert visit.webgpu == set(WEBGPU)
        visit.page.click("#compute-other")  # "Use the processor only"
        visit.says("as the page was told")
        visit.context.close()


LOSE = "if (batch > 1) { device.lose(); %s }"  # the third batch: the first compiles, the second is compared
FAIL = """if (batch > 1) {
    device.dispatchEvent(Object.assign(new Event("uncapturederror"), { error: new Error("out of memory") }));
    found.logits.data.fill(0);
}"""
FAILING = {  # adapter, what a batch does in place of its result, milliseconds that it takes more, the reason
    "an adapter that fails": ("Promise.reject(new Error('no driver'))", "", 0, "failed: no driver"),
    "no session": ("{}", None, 0, "failed: unsupported operator"),
    "no first batch": ("{}", "throw new Error('no memory')", 0, "failed: no memory"),
    "slower": ("{}", "", SLOWER, "the graphics processor took longer"),
    "other scores": ("{}", "found.logits.data.reverse()", FASTER, "gave other scores"),
    "not numbers": ("{}", "found.logits.data.fill(NaN)", FASTER, "gave other scores"),
    "lost in the middle": ("{}", LOSE % "found.logits.data.fill(0)", FASTER, "failed: it was unplugged"),
    "a batch that never ends": ("{}", LOSE % "return new Promise(() => {})", FASTER, "failed: it was unplugged"),
    "an error that no call returns": ("{}", FAIL, FASTER, "failed: out of memory"),
}


# Failures at the start, in the first batches and in the middle; the others are of the same kinds.
QUICK = ("no session", "other scores", "an error that no call returns")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in FAILING])
def test_webassembly_computes_what_webgpu_cannot(chromium, changed, cells, expected, name):
    adapter, batch, milliseconds, reason = FAILING[name]
    with changed(adapter, batch or "", milliseconds, session=batch is not None) as address:
        visit = Visit(chromium, address)
        for _ in range(2):  # ready at the second file at the latest
            assert_same(visit.table(cells), expected)
        visit.says(reason)
        assert visit.page.inner_text("#compute-line").startswith(PROCESSOR)
        visit.context.close()


def test_a_faster_webgpu_computes_and_works_without_a_network(chromium, changed, cells, expected):
    with changed() as address:
        visit = Visit(chromium, address, keeps=True)
        for _ in range(2):  # ready at the second file at the latest
            assert_same(visit.table(cells), expected)
        visit.says(f"{GRAPHICS}.")
        assert visit.webgpu == set(WEBGPU)
        visit.page.wait_for_function(
            "async (paths) => (await Promise.all(paths.map((path) => caches.match(path)))).every(Boolean)",
            arg=list(WEBGPU),
        )
        visit.without_network(f"{address}?compute=webgpu")
        assert_same(visit.table(cells), expected)
        visit.says(f"{GRAPHICS}.")
        visit.without_network(f"{address}?compute=wasm")
        assert_same(visit.table(cells), expected)
        visit.says("as the page was told")
        visit.context.close()
