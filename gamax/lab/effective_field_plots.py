"""Pictures of effective receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke

from gamax.benchmark.plots import COLOURS

COLUMNS = 4
"""Panels in a row of the sheet."""
LOWEST = 1e-4
"""In multiples of energy spread evenly; what is below has the darkest colour."""
LONGEST_NAME = 34
"""Characters; of longer paths the end is shown."""
LINES = ("-", "--", ":", "-.")
MARK = {"lw": 1.2, "path_effects": [withStroke(linewidth=2.6, foreground="black")]}
"""Lines that are seen on dark and light pixels."""
BLUE = COLOURS[5]

Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def field_sheet(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A panel for each network: the energy of pixels in multiples of energy spread evenly, on one logarithmic scale.

    Args:
        rows: each with `name`, `energy` `[H, W]` that sums to 1, `radius_50` and `radius_95` of all images in pixels,
            and `theoretical`, pixels or None.
        title: the settings.

    """
    columns = min(len(rows), COLUMNS)
    lines = -(-len(rows) // columns)
    figure = Figure((1.5 + 3.1 * max(columns, 2), 1.1 + 3.5 * lines), dpi=110, layout="constrained")
    figure.suptitle(f"Effective receptive fields of the centre pixel\n{title}", fontsize=10)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    maps = [np.asarray(row["energy"], np.float64) * np.size(row["energy"]) for row in rows]
    scale = LogNorm(LOWEST, max(energy.max() for energy in maps))
    for axes, row, energy in zip(panels, rows, maps, strict=False):
        height, width = energy.shape
        extent = (-(width // 2) - 0.5, width - width // 2 - 0.5, height - height // 2 - 0.5, -(height // 2) - 0.5)
        shown = axes.imshow(np.maximum(energy, LOWEST), norm=scale, cmap="magma", extent=extent, interpolation="none")
        half, most = np.mean(row["radius_50"]), np.mean(row["radius_95"])
        axes.add_patch(Circle((0, 0), half, fill=False, color="white", **MARK))
        axes.add_patch(Circle((0, 0), most, fill=False, color="white", ls="--", **MARK))
        field = row["theoretical"]
        if field is not None and field < min(height, width):
            axes.add_patch(Rectangle((-field / 2, -field / 2), field, field, fill=False, color=BLUE, **MARK))
        axes.set(xlim=extent[:2], ylim=extent[2:])
        axes.tick_params(labelsize=7)
        theory = f"{field} px" if field else "whole image"
        numbers = f"50 %: {half:.1f} px, 95 %: {most:.1f} px\ntheoretical: {theory}"
        axes.set_title(f"{shorten(row['name'])}\n{numbers}", fontsize=8)
    for axes in panels[len(rows) :]:
        axes.remove()
    bar = figure.colorbar(shown, ax=list(panels[: len(rows)]), shrink=0.8, extend="min")
    bar.set_label("energy, in multiples of energy spread evenly", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    marks = [
        Line2D([], [], color="white", label="50 % within", **MARK),
        Line2D([], [], color="white", ls="--", label="95 % within", **MARK),
        Line2D([], [], color=BLUE, label="theoretical field, where smaller than the image", **MARK),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def within_curves(curves: Mapping[str, Curve], even: Curve, title: str) -> Figure:
    """The share of the energy within a distance of the centre, a line for each network.

    Args:
        curves: distances in pixels and shares, by the names of networks.
        even: that of energy spread evenly.
        title: the settings.

    """
    figure = Figure((8.5, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"Energy within a distance of the centre pixel\n{title}", fontsize=10)
    for number, (name, (distances, shares)) in enumerate(curves.items()):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        axes.step(distances[1:], shares[1:], where="post", color=colour, ls=line, label=shorten(name))
    axes.plot(even[0][1:], even[1][1:], color="gray", ls=(0, (1, 2)), label="spread evenly")
    for share in (0.5, 0.95):
        axes.axhline(share, color="gray", lw=0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.95], ["0 %", "25 %", "50 %", "75 %", "95 %"])
    axes.set(
        xlabel="distance from the centre, pixels", ylabel="share of the energy, without the centre", ylim=(0, 1.02)
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def shorten(name: str) -> str:
    """The end of a long path."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
