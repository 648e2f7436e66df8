"""The page in Chromium: upload, annotate, colour, a cell's genes, download, bad files, scripts in names, a phone."""

import anndata as ad
import pandas as pd
import pytest


SCRIPT = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def hostile(blood, tmp_path_factory):
    """Sixty blood cells with scripts in the names of cells, of labels and of a gene."""
    path = tmp_path_factory.mktemp("upload") / "blood.h5ad"
    cells = blood[:60].copy()
    cells.obs_names = [f"{SCRIPT}{n}" for n in range(60)]
    cells.obs["cell_type"] = pd.Categorical([SCRIPT, "T cell"] * 30)
    cells.var_names = [*cells.var_names[:-1], SCRIPT]
    cells.write_h5ad(path)
    return path


def test_a_visit(served, chromium, give, point_at_a_cell, hostile, tmp_path):
    page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.set_default_timeout(240_000)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served.local_url)
    page.wait_for_selector("#cg-run")

    text = tmp_path / "text.h5ad"
    text.write_text("gene,count")
    give(page, text)
    page.click("#cg-run")
    page.wait_for_selector(".cg-refused")
    assert "text.h5ad is a text file" in page.inner_text(".cg-refused")

    page.click("#cg-files button[aria-label=Clear]")
    page.locator("#cg-files .file-preview").wait_for(state="detached")
    give(page, hostile)
    page.click("#cg-run")
    page.wait_for_selector("#cg-types table")
    assert "60" in page.inner_text(".cg-numbers")
    page.wait_for_selector("#cg-map canvas")

    page.fill(".cg-search input", "cd3")
    page.wait_for_selector(".cg-offers li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cell-plot-ramp")
    assert page.input_value(".cg-search input").startswith("CD3")
    for name in ("confidence", "novelty", "cell type in the file"):
        page.select_option("#cg-map select", label=name)
    page.locator("#cg-map .cell-plot-legend", has_text=SCRIPT).wait_for()

    page.mouse.click(*point_at_a_cell(page, "#cg-map canvas"))
    page.wait_for_selector("#cg-cell .cg-genes li")
    assert SCRIPT in page.inner_text("#cg-cell .cg-name")

    for button, read in (("#cg-h5ad", ad.read_h5ad), ("#cg-csv", pd.read_csv)):
        with page.expect_download() as download:
            page.click(button)
        assert len(read(download.value.path())) == 60

    assert page.title().startswith("blood-exceiver")
    assert not wrong
    assert page.locator("#cg-map img, #cg-types img, #cg-cell img, #cg-summary img").count() == 0
    assert [url for url in asked if not url.startswith((served.local_url, "data:", "blob:"))] == []
    page.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(served, chromium):
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(240_000)
    page.goto(served.local_url)
    page.wait_for_selector("#cg-run")
    page.get_by_role("tab", name="Paste a table").click()
    page.fill("#cg-text textarea", "CD3D\t4\t0\nCD79A\t0\t7\nMS4A1\t0\t9")
    page.click("#cg-run")
    page.wait_for_selector(".cg-headline")
    page.get_by_text("too few for a map").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
