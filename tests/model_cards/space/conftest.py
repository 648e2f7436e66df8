from contextlib import suppress
from functools import cache, partial

import numpy as np
import pytest

from cellglot.model_cards.space.gradio import page as page_module
from cellglot.model_cards.space.gradio.annotator import Annotator
from cellglot.model_cards.space.gradio.limits import Limits
from cellglot.model_cards.space.gradio.page import Page
from cellglot.model_cards.space.gradio.visits import Visits


@pytest.fixture(scope="session", autouse=True)
def packed_once():
    """Pack the files that the page in the browser takes from packages once for all pages: it takes seconds."""
    from cellglot.model_cards.space.browser import build

    packed = cache(build.page_files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "page_files", lambda: dict(packed()))
        yield


@pytest.fixture(scope="session")
def blood_annotator():
    """The shipped model behind a page that annotates at most 60 cells of a file."""
    return Annotator("blood-exceiver", Limits(cells=60, file_bytes=1 << 20))


@pytest.fixture(scope="session")
def served():
    """The page of the shipped model on this machine; it takes files of at most 9 MB."""
    from cellglot.model_cards.space.gradio import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "Limits", partial(Limits, file_bytes=9 << 20))
        page = serve.serve("blood-exceiver", most_cells=60, block=False)
    yield page
    page.close()


@pytest.fixture(scope="session")
def give():
    """Choose a file on the page, and wait until the page has it.

    A page that is still being set up can miss the choice; like a visitor, choose the file again then.
    """
    from playwright.sync_api import TimeoutError as Missed

    def choose(page, file, shown=None):
        shown = shown or page.locator("#cg-files .file-preview").filter(has_text=file.stem)  # after the upload
        for _ in range(12):
            with suppress(Missed):  # while a file is uploaded there is no input
                page.set_input_files("#cg-files input[type=file]", file, timeout=5_000)
            with suppress(Missed):
                return shown.wait_for(timeout=5_000)
        raise AssertionError(f"the page did not take {file.name}")

    return choose


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """Make the page of a model; its map is the first two numbers of the embedding."""

    def quick_map(result):
        if len(result.found) < 4:
            return None
        result.coordinates = np.array(result.found.embedding[:, :2])
        return result.coordinates

    monkeypatch.setattr(page_module, "draw_map", quick_map)

    def make(annotator, model="blood-exceiver"):
        return Page(annotator, Visits(tmp_path / "visits"), model)

    return make


@pytest.fixture
def visit_of():
    """Let a visitor annotate; returns the visit and what the page shows in the end."""

    def annotate(page, files=None, text="", session="visitor", **options):
        visit = page.visits.remember(session, files or [])
        shown = {}
        for part in page.annotate(visit, None if files is None else [str(f) for f in files], text, **options):
            shown |= part
        return visit, shown

    return annotate
