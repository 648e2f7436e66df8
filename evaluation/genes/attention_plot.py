"""Plot of the strongest attention between genes."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import FancyArrowPatch

from cellglot.evaluation.plots import ACCENT, INK, style


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cellglot.evaluation.genes.attention import GeneEdges


SHOWN = 40


def attention_plot(found: "GeneEdges", title: str, number: int = SHOWN) -> "Figure":
    """Draw the strongest pairs as arrows between genes on a circle, lines for attention without direction.

    Parameters
    ----------
    found
        The edges.
    number
        Of the pairs that are drawn.
    """
    from matplotlib.figure import Figure

    edges = found.edges.head(number)
    pairs = list(zip(edges["from_symbol"], edges["to_symbol"], edges["weight"], strict=True))
    names = _connected_order(pairs)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / max(len(names), 1)
    places = dict(zip(names, np.stack([np.cos(angles), np.sin(angles)], axis=1), strict=True))
    figure = Figure(figsize=(7.6, 7.6), layout="constrained")
    axes = figure.add_subplot()
    style(axes)
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    largest = float(edges["weight"].max()) if len(edges) else 1.0
    for source, target, weight in pairs:
        share = weight / largest
        axes.add_patch(
            FancyArrowPatch(
                places[source],
                places[target],
                connectionstyle="arc3,rad=0.12",
                arrowstyle="-" if found.symmetric else "-|>",
                mutation_scale=9,
                linewidth=0.5 + 2.5 * share,
                color=ACCENT,
                alpha=0.25 + 0.6 * share,
                shrinkA=5,
                shrinkB=5,
            )
        )
    for name, angle in zip(names, angles, strict=True):
        x, y = (float(part) for part in places[name])
        axes.scatter(x, y, s=26, color=INK, zorder=3)
        turn = np.degrees(angle)
        left = np.cos(angle) < -1e-9
        axes.text(
            1.06 * x,
            1.06 * y,
            name,
            rotation=turn + 180 if left else turn,
            rotation_mode="anchor",
            ha="right" if left else "left",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set(xlim=(-1.42, 1.42), ylim=(-1.42, 1.42), aspect="equal", xticks=[], yticks=[])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _connected_order(pairs: list[tuple[str, str, float]]) -> list[str]:
    """Return the genes of pairs in an order in which connected ones are near: depth first, strongest first."""
    partners: dict[str, list[str]] = {}
    for source, target, _ in pairs:  # the strongest first
        partners.setdefault(source, []).append(target)
        partners.setdefault(target, []).append(source)
    found: dict[str, None] = {}
    for first in partners:
        waiting = [first]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = None
                waiting += reversed(partners[name])
    return list(found)


__all__ = ["attention_plot"]
