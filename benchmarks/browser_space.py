"""The page in the browser: a dropped file to the table of types, and to the map.

python benchmarks/browser_space.py --cells FILE.h5ad

Chromium, headless, opens the page of blood-exceiver and is given the file. Seconds are those that a visitor waits;
processor seconds are those of all processes of Chromium, and do not depend on other work of the machine. Target: 2,700
cells x 13,700 genes in 20 s, page and model below 25 MB.
"""

import shutil
import tempfile
import time
from pathlib import Path

import psutil
from measure import parser, report
from playwright.sync_api import Page, sync_playwright

import cellglot
from cellglot.model_cards.space.browser.build import stage_page
from cellglot.model_cards.space.browser.serve import served


FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
WAIT = 600_000  # milliseconds


def processor_seconds() -> float:
    """Return the processor time of Chromium's processes."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def measured(page: Page, cells: str) -> list[dict[str, float | str]]:
    """Return what a visitor waits for, in two rows."""
    before, began = processor_seconds(), time.perf_counter()
    page.set_input_files("#file", cells)
    rows: list[dict[str, float | str]] = []
    for until, selector in (("table", "html[data-shown=result]"), ("map", "html[data-mapped=yes]")):
        page.wait_for_selector(selector, timeout=WAIT, state="attached")
        seconds = time.perf_counter() - began
        rows.append({"until": until, "seconds": seconds, "processor seconds": processor_seconds() - before})
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cells", required=True, help="File of cells.")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stage_page(cellglot.model_path("blood-exceiver"), Path(folder), name="blood-exceiver")
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        with served(folder) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("html[data-ready=yes]", timeout=WAIT, state="attached")
            rows = measured(page, given.cells)
            browser.close()
    seconds, megabytes = float(rows[0]["seconds"]), size / 1e6
    targets = [("seconds until the table", 20.0, seconds, seconds <= 20), ("MB", 25.0, megabytes, megabytes <= 25)]
    report(given, rows, targets)


if __name__ == "__main__":
    main()
