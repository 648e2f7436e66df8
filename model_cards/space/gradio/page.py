"""The page: what a visitor sees, and what happens on a click."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from cellglot.evaluation.cell_plot import page as cell_plot
from cellglot.inputs.errors import InputError
from cellglot.model_cards.space.gradio import views
from cellglot.model_cards.space.gradio.annotator import Annotated, Annotator, draw_map, example_cells
from cellglot.model_cards.space.gradio.limits import MEGABYTE
from cellglot.model_cards.space.gradio.pasted import EXAMPLE, read_pasted
from cellglot.model_cards.space.gradio.reading import VisitorCells, read_files, read_table
from cellglot.model_cards.space.gradio.running import Running
from cellglot.model_cards.space.gradio.visits import Visit, Visits
from cellglot.model_cards.space.gradio.words import refusal
from cellglot.modeling.collection import CollectionModel, read_collection


ENDINGS = [".h5ad", ".h5", ".loom", ".mtx", ".gz", ".tsv"]
SPECIES = [("human", "human"), ("mouse (read as human orthologs)", "mouse")]
CANDIDATES = "B cell, T cell, natural killer cell, CD14-positive monocyte, dendritic cell"
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}


class Page:
    """A page that annotates cells of visitors with one model.

    Parameters
    ----------
    annotator
        The model.
    visits
        Where files and results of visitors are kept.
    model
        The name that the model was loaded by, to find its example cells and what is known of it.
    """

    def __init__(self, annotator: Annotator, visits: Visits, model: str | os.PathLike):
        self.annotator, self.visits, self.model = annotator, visits, model
        self.facts = _facts(annotator)

    # -------------------------------------------------------------------- what happens

    def annotate(
        self,
        visit: Visit,
        files: Sequence[str] | None,
        text: str = "",
        *,
        example: bool = False,
        species: str = "human",
        candidates: str = "",
        branch: str = "",
        leaves_only: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Annotate the cells of a visitor step by step.

        Yields
        ------
        dict
            Part of the page -> its content: ``progress``, ``summary``, ``types``, ``map``, ``cell``, ``files``.
        """
        visit.result = None
        files = list(files or [])
        empty = {"summary": "", "types": "", "map": "", "cell": "", "files": None}
        try:
            yield empty | {"progress": views.progress(0)}
            cells = self._read(visit, files, text, example, species)
            chosen: dict[str, Any] = {"candidates": candidates, "branch": branch, "leaves_only": leaves_only}
            kind = "mouse" if species == "mouse" and not example else None
            work = Running(lambda report: self.annotator.annotate(cells, species=kind, progress=report, **chosen))
            yield {"progress": views.progress(1, 0, cells.adata.n_obs)}
            for done, total in work.watch():
                yield {"progress": views.progress(1, done, total or cells.adata.n_obs)}
            result = work.result()
            yield from self._results(visit, result)
        except Exception as error:  # noqa: BLE001  whatever the cells are, the visitor gets a sentence
            yield empty | {"progress": "", "summary": views.refused(refusal(error, [*files, visit.folder]))}

    def _read(self, visit: Visit, files: list[str], text: str, example: bool, species: str) -> VisitorCells:
        limits = self.annotator.limits
        if example:
            source, name = example_cells(self.model)
            table = isinstance(source, os.PathLike)
            cells = read_files([source], visit.folder, limits) if table else read_table(source, limits)
            cells.name = name
            return cells
        if files and text.strip():
            raise InputError("There are a file and a pasted table: remove one of them")
        if files:
            return read_files(files, visit.folder, limits, species if species == "mouse" else None)
        if not text.strip():
            raise InputError("Drop a file of cells, paste a table, or try the example cells")
        limits.check_text(text)
        return read_table(read_pasted(text, self.annotator.known_genes), limits)

    def _results(self, visit: Visit, result: Annotated) -> Iterator[dict[str, Any]]:
        """Yield the table at once, the map and the files when they are there."""
        visit.result = result
        yield {
            "progress": views.progress(2),
            "summary": views.summary(result),
            "types": views.types(result),
            "cell": views.no_cell(),
        }
        drawing = Running(lambda report: draw_map(result))
        for _ in drawing.watch():
            yield {}
        drawn = drawing.result() is not None
        yield {
            "progress": views.progress(3),
            "map": views.cell_map(result, visit.key) if drawn else views.no_map(result),
        }
        written = result.write(visit.folder)
        yield {"progress": views.progress(4), "files": tuple(map(str, written))}

    def explain(self, visit: Visit, number: Any) -> str:
        """Return what is said of a cell of a visitor, by its number."""
        result = visit.result
        if result is None or type(number) is not int or not 0 <= number < len(result.found):
            return views.no_cell()
        try:
            return views.cell(result, number, self.annotator.reasons(result, number))
        except Exception as error:  # noqa: BLE001
            return views.cell(result, number, None, refusal(error))

    def complete(self, asked: dict[str, str]) -> list[str]:
        """Return genes of a visitor's file whose names begin with a text; ``asked``: ``visit``, ``text``."""
        visit = self.visits.by_key(str(asked.get("visit", "")))
        if visit is None or visit.result is None:
            return []
        return visit.result.genes.complete(str(asked.get("text", ""))[:100])

    def gene(self, asked: dict[str, str]) -> dict[str, Any] | None:
        """Return a gene of a visitor's file as a colouring of the map; ``asked``: ``visit``, ``gene``."""
        visit = self.visits.by_key(str(asked.get("visit", "")))
        if visit is None or visit.result is None:
            return None
        return views.gene_colouring(visit.result, str(asked.get("gene", ""))[:200])

    # -------------------------------------------------------------------- what is seen

    def build(self) -> gr.Blocks:
        """Return the page for Gradio."""
        idle = self.annotator.limits.idle_seconds
        with gr.Blocks(
            title=f"{self.annotator.name}: which cells are these?", analytics_enabled=False, delete_cache=(300, idle)
        ) as page:
            gr.HTML(views.hero(self.annotator, self.facts))
            with gr.Row(elem_classes="cg-columns"):
                with gr.Column(scale=3, min_width=300, elem_classes="cg-left"):
                    given, buttons = self._inputs()
                with gr.Column(scale=7, min_width=320, elem_classes="cg-right"):
                    parts = self._outputs()
            gr.HTML(views.about(self.annotator, self.facts))
            self._connect(page, given, buttons, parts)
        return page

    def _inputs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        given: dict[str, Any] = {}
        with gr.Tabs():
            with gr.Tab("Files"):
                given["files"] = gr.File(
                    label="Raw counts",
                    file_count="multiple", file_types=ENDINGS, height=170, elem_id="cg-files",
                )  # fmt: skip
                gr.HTML(views.formats())
            with gr.Tab("Paste a table"):
                given["text"] = gr.Textbox(
                    label="Genes and counts", placeholder=EXAMPLE, lines=8, max_lines=14, elem_id="cg-text",
                    info="A line for each gene: its name, then a count for each cell. Cells in lines work too.",
                )  # fmt: skip
        if self.annotator.by_texts:
            given["candidates"] = gr.Textbox(
                label="Cell types to choose from", value=CANDIDATES, lines=3, elem_id="cg-candidates",
                info="Names, synonyms or ids of the Cell Ontology, between commas; other words are their own text.",
            )  # fmt: skip
            given["branch"] = gr.Dropdown(
                label="Or all types of a branch", choices=_branches(), value="", allow_custom_value=True,
                elem_id="cg-branch", info="All types of the Cell Ontology below this one.",
            )  # fmt: skip
            given["leaves_only"] = gr.Checkbox(label="Only types without subtypes", value=False)
        with gr.Accordion("Options", open=False):
            given["species"] = gr.Radio(SPECIES, value="human", label="Genes of", elem_id="cg-species")
        buttons = {"run": gr.Button("Annotate", variant="primary", size="lg", elem_id="cg-run")}
        with gr.Row():
            buttons["example"] = gr.Button("Try example cells", size="md", elem_id="cg-example")
            buttons["stop"] = gr.Button("Stop", size="md", elem_id="cg-stop", variant="secondary")
        return given, buttons

    def _outputs(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"progress": gr.HTML(views.waiting(), elem_id="cg-progress")}
        parts["summary"] = gr.HTML("", elem_id="cg-summary")
        with gr.Row(visible=False, elem_id="cg-shelf") as shelf:
            parts["h5ad"] = gr.DownloadButton("Download .h5ad", elem_id="cg-h5ad", variant="primary", size="md")
            parts["csv"] = gr.DownloadButton("Download table (.csv)", elem_id="cg-csv", size="md")
        parts["shelf"] = shelf

        def complete(asked: dict[str, str]) -> list[str]:
            return self.complete(asked)

        def gene(asked: dict[str, str]) -> dict[str, Any] | None:
            return self.gene(asked)

        parts["map"] = gr.HTML(
            "", html_template='<div class="cg-map"></div>', js_on_load=views.asset("page.js"), elem_id="cg-map",
            server_functions=[complete, gene],
        )  # fmt: skip
        with gr.Row(elem_classes="cg-below"):
            parts["types"] = gr.HTML("", elem_id="cg-types", min_width=320, scale=5, apply_default_css=False)
            parts["cell"] = gr.HTML("", elem_id="cg-cell", min_width=290, scale=3, apply_default_css=False)
        return parts

    def _connect(self, page: gr.Blocks, given: dict[str, Any], buttons: dict[str, Any], parts: dict[str, Any]) -> None:
        names, inputs = list(given), list(given.values())
        shown = [parts[name] for name in ("progress", "summary", "map", "types", "cell", "shelf", "h5ad", "csv")]

        def run(example: bool) -> Any:
            def annotate(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
                options: dict[str, Any] = dict(zip(names, values, strict=True))
                options = {name: "" if value is None else value for name, value in options.items()}
                files = options.pop("files")
                visit = self.visits.remember(_session(request), files or [])
                for found in self.annotate(visit, files, options.pop("text"), example=example, **options):
                    yield _updates(found)

            return annotate

        common = {"inputs": inputs, "outputs": shown, "show_progress": "hidden", "api_visibility": "private"}
        events = [
            buttons["run"].click(run(False), **common, **ONE_AT_A_TIME),
            buttons["example"].click(run(True), **common, **ONE_AT_A_TIME),
        ]
        buttons["stop"].click(
            lambda: "", outputs=parts["progress"], cancels=events, show_progress="hidden", api_visibility="private"
        )

        def keep(files: Any, request: gr.Request) -> None:
            self.visits.remember(_session(request), files or [])

        given["files"].upload(
            keep, inputs=given["files"], show_progress="hidden", api_visibility="private", queue=False
        )

        def explain(request: gr.Request, event: gr.EventData) -> str:
            return self.explain(self.visits.of(_session(request)), event._data.get("cell"))

        parts["map"].select(
            explain, outputs=parts["cell"], show_progress="minimal", api_visibility="private", **ONE_AT_A_TIME
        )

        def leave(request: gr.Request) -> None:
            self.visits.end(_session(request))

        page.unload(leave)


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _updates(found: dict[str, Any]) -> tuple[Any, ...]:
    """Return what changes, in the order of the page's outputs."""
    same = gr.skip()
    kept = [found.get(name, same) for name in ("progress", "summary", "map", "types", "cell")]
    if "files" not in found:
        return (*kept, same, same, same)
    if found["files"] is None:
        return (*kept, gr.update(visible=False), None, None)
    return (*kept, gr.update(visible=True), *found["files"])


def _facts(annotator: Annotator) -> CollectionModel | None:
    """Return what is known of the model, if it is one of the collection."""
    folder = Path(annotator.loaded.name)
    return next((model for model in read_collection() if Path(model.path) == folder), None)


def _branches() -> list[str]:
    return ["", "leukocyte", "T cell", "B cell", "myeloid cell", "hematopoietic cell", "epithelial cell", "neuron"]


def head(most_bytes: int) -> str:
    """Return scripts for the head of the page; larger files than `most_bytes` are refused before they are uploaded."""
    size = views.asset("size.js").replace("BYTES_OF_A_VISIT", str(most_bytes))
    return (
        f"<script>{cell_plot.script()}</script><script>{size.replace('BYTES_OF_A_MEGABYTE', str(MEGABYTE))}</script>"
    )


def style() -> str:
    """Return the style of the page."""
    return f"{cell_plot.style()}\n{views.asset('style.css')}"


def theme() -> gr.themes.Base:
    """Return colours and fonts; nothing is loaded from elsewhere."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    return gr.themes.Base(
        primary_hue="blue", secondary_hue="slate", neutral_hue="slate", radius_size="lg", font=fonts,
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "monospace"),
    ).set(
        button_primary_background_fill="#1f5fa8", button_primary_background_fill_hover="#174a85",
        button_primary_background_fill_dark="#2c6fbb", button_primary_background_fill_hover_dark="#3a80cf",
        button_primary_text_color="#ffffff", body_background_fill="#ffffff", body_background_fill_dark="#0c1117",
        block_background_fill_dark="#121922",
    )  # fmt: skip


__all__ = ["Page", "head", "style", "theme"]
