"""The plots of `gamax lab ablation`: PSNR of every seed, and PSNR against latency and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from gamax.benchmark.plots import COLOURS, MARKERS
from gamax.lab.point_names import log_axis, name_points

DPI = 130

Groups = Mapping[str, Sequence[str]]
"""Names of variants by what they are compared for."""
Summaries = Mapping[str, Mapping[str, Any]]
"""Of `gamax.lab.ablation.summarise`."""


def draw_dots(groups: Groups, rows: Sequence[Mapping[str, Any]], summaries: Summaries, title: str) -> Figure:
    """A line for each variant with a dot for each seed and a bar at their mean; the first variant's mean goes through.

    Args:
        groups: variants from top to bottom; each group has a colour and a marker.
        rows: of trials, with `name` and `psnr` in dB or None.
        summaries: with the mean of every variant that has one.
        title: above the plot.

    """
    figure = Figure((7.5, 1.6 + 0.27 * len(summaries)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontsize=9)
    styles = _styles(groups)
    names = list(styles)
    for place, name in enumerate(names):
        group, style = styles[name]
        psnr = summaries[name]["psnr"]
        if psnr is None:
            axes.annotate("not finite", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
            continue
        seeds = [row["psnr"] for row in rows if row["name"] == name and row["psnr"] is not None]
        label = None if group in axes.get_legend_handles_labels()[1] else group
        axes.plot(seeds, [place] * len(seeds), ls="", ms=5, alpha=0.6, label=label, **style)
        axes.plot(psnr["mean"], place, ls="", marker="|", ms=16, mew=2, color=style["color"])
    reference = summaries[names[0]]["psnr"]
    if reference is not None:
        axes.axvline(reference["mean"], color="grey", ls=":", lw=1, zorder=0)
    for after in _last_places(groups):
        axes.axhline(after + 0.5, color="grey", lw=0.5, alpha=0.5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"PSNR, dB (dots: seeds; bars: means; dotted: mean of {names[0]})")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def draw_quality_against_cost(
    groups: Groups, summaries: Summaries, costs: Mapping[str, Mapping[str, Any]], title: str
) -> Figure | None:
    """PSNR against latency and against memory; None if no variant has both.

    Args:
        groups: variants; each group has a colour and a marker.
        summaries: PSNR of each variant; bars go from its lowest to its highest seed.
        costs: the row of the benchmark of each variant.
        title: above the plots.

    """
    styles = _styles(groups)
    names = [name for name in styles if summaries[name]["psnr"] is not None and "failure" not in costs[name]]
    if not names:
        return None
    figure = Figure((7.5, 10), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(2, 1)
    for axes, key, unit, label in (
        (panels[0], "latency_ms_median", 1, "latency, ms (median; bars: p10 to p90)"),
        (panels[1], "program_bytes", 1e6, "memory of the program, MB"),
    ):
        points = {name: (costs[name][key] / unit, summaries[name]["psnr"]["mean"]) for name in names}
        for name, (x, y) in points.items():
            psnr, cost = summaries[name]["psnr"], costs[name]
            bars = _reach(y, psnr["low"], psnr["high"])
            across = _reach(x, cost["latency_ms_p10"], cost["latency_ms_p90"]) if axes is panels[0] else None
            axes.errorbar(x, y, bars, across, ls="", ms=6, lw=0.8, alpha=0.8, **styles[name][1])
        axes.set_ylabel("PSNR, dB (bars: lowest to highest seed)")
        log_axis(axes, label)
        name_points(axes, points, {name: styles[name][1]["color"] for name in names})
    return figure


def _reach(middle: float, low: float, high: float) -> tuple[list[float], list[float]]:
    # The mean of equal numbers may be off by rounding.
    return [max(middle - low, 0.0)], [max(high - middle, 0.0)]


def _styles(groups: Groups) -> dict[str, tuple[str, dict[str, Any]]]:
    """Group, colour and marker of every variant, in order."""
    looks = zip(groups.items(), COLOURS, MARKERS, strict=False)
    return {
        name: (group, {"color": colour, "marker": mark}) for (group, names), colour, mark in looks for name in names
    }


def _last_places(groups: Groups) -> list[int]:
    """Where each group ends, but for the last one."""
    ends, count = [], 0
    for names in groups.values():
        count += len(names)
        ends.append(count - 1)
    return sorted({end for end in ends if 0 <= end < count - 1})
