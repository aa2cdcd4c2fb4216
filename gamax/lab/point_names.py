"""Plots of quality against cost: a logarithmic axis, and names beside points that may lie close together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

LABEL_GAP = 0.055
"""The least distance of two names, as a part of the height of the plot."""


def log_axis(axes: Axes, label: str) -> None:
    """A logarithmic horizontal axis with numbers rather than powers of ten."""
    axes.set_xlabel(label)
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def name_points(axes: Axes, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Writes the names in a column beside the plot, a line from each to its point: points may lie on one another."""
    low, high = axes.get_ylim()
    # The limits are those of now, whatever the lines to the labels would make of them.
    axes.set_ylim(low, high)
    axes.set_xlim(*axes.get_xlim())
    names = sorted(points, key=lambda name: points[name][1])
    places = spread_out([(points[name][1] - low) / (high - low) for name in names], min(LABEL_GAP, 1 / len(names)))
    for name, place in zip(names, places, strict=True):
        axes.annotate(
            name,
            points[name],
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colours[name],
            arrowprops={"arrowstyle": "-", "lw": 0.5, "alpha": 0.7, "color": colours[name], "relpos": (0, 0.5)},
        )


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Rising places in [0, 1], moved as little as is simple for them to be `gap` apart and to stay inside."""
    raised: list[float] = []
    for place in places:
        raised.append(max(place, raised[-1] + gap) if raised else place)
    shift = sum(raised) / len(raised) - sum(places) / len(places)
    moved: list[float] = []
    for index, place in enumerate(raised):
        moved.append(max(place - shift, index * gap))
    return [min(place, 1 - gap * (len(moved) - 1 - index)) for index, place in enumerate(moved)]
