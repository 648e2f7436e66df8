"""What both demos share: the cells, the folder, and the last lines."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cellglot.demo.data import DemoData, prepare
from cellglot.demo.sharing import Publisher
from cellglot.outputs import OutputFolder
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.training.progress import no_other_bars


@dataclass
class Demo:
    """One run of a demo.

    Parameters
    ----------
    cells
        File of cells; the 700 blood cells that scanpy ships by default.
    labels
        Column of obs with the classes.
    output
        Folder for everything the demo writes.
    quick
        Train a tenth of the steps.
    publisher
        Writes models to folders as published; without one nothing is published.
    """

    cells: Path | None
    labels: str
    output: Path
    quick: bool = False
    seed: int = 0
    publisher: Publisher | None = None

    @no_other_bars()
    def run(self) -> Path:
        """Run every step, and return the path of the report.

        Raises
        ------
        OutputError
            If results must not be written to the folder; see `OutputFolder`.
        ValueError
            If the file has no such labels.
        """
        console, started = Console(highlight=False, soft_wrap=True), time.monotonic()
        with OutputFolder(self.output, "demo", [self.cells]) as folder:
            source = prepare(self.cells, self.labels, self.output, self.seed, console)
            with read_cells(source, rename={self.labels: "cell_type"}) as cells:
                self.data = DemoData(
                    source, cells, self.labels, self.output, self.quick, self.seed, console, started,
                    self.command().split(),
                )  # fmt: skip
                report = self.steps(cells)
            folder.finish()
        self._say_what_is_there(console, time.monotonic() - started)
        return report

    def command(self) -> str:
        """Return the command of this run, without its output folder."""
        words = ["cellglot demo"]
        if self.cells is not None:
            words.append(f"--cells {self.cells.name} --labels {self.labels}")
        words += ["--full"] if type(self).__name__ == "FullDemo" else []
        return " ".join([*words, *(["--quick"] if self.quick else [])])

    def steps(self, cells: Cells) -> Path:
        """Run every step on the opened cells, and return the path of the report."""
        raise NotImplementedError

    def written(self) -> list[tuple[str, str]]:
        """Return names in the output folder and what they are; those that were not written are not shown."""
        raise NotImplementedError

    def next_commands(self) -> list[str]:
        """Return what to type next."""
        raise NotImplementedError

    def _say_what_is_there(self, console: Console, seconds: float) -> None:
        written = [pair for pair in self.written() if all((self.output / n).exists() for n in pair[0].split(", "))]
        width = max(len(name) for name, _ in written) + 2
        console.print(f"\n[bold]Done after {seconds:.0f} seconds. In {escape(str(self.output))}:[/]")
        for name, what in written:
            console.print(f"  {escape(name.ljust(width))}{escape(what)}")
        console.print("[bold]Next:[/]")
        for command in self.next_commands():
            console.print(f"  {escape(command)}")


def score_columns(score: dict[str, tuple[float, float, float]]) -> list[str]:
    """Return scores and their intervals as texts for a row of a table."""
    columns = []
    for value, low, high in score.values():
        columns += [f"{value:.3f}", f"{low:.3f} to {high:.3f}"]
    return columns


__all__ = ["Demo", "score_columns"]
