"""The plot of `gamax lab landscape`: PSNR against latency and memory, with Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from gamax.benchmark.plots import COLOURS, MARKERS
from gamax.lab.point_names import log_axis, name_points


def draw_landscape(
    summaries: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Mapping[str, Any]], title: str
) -> Figure | None:
    """PSNR against latency and against memory, the networks on each Pareto front joined; None if none has both.

    Args:
        summaries: of `gamax.lab.landscape.summarise`; bars are standard deviations over seeds.
        costs: the row of the benchmark of each network.
        title: above the panels.

    """
    names = [name for name, found in summaries.items() if found["psnr"] and "failure" not in costs[name]]
    if not names:
        return None
    figure = Figure((14, 5.2), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, key, unit, front, label in zip(
        figure.subplots(1, 2),
        ("latency_ms_median", "program_bytes"),
        (1, 1e6),
        ("latency_front", "memory_front"),
        ("latency, ms (median; bars: p10 to p90)", "memory of the program, MB"),
        strict=True,
    ):
        points = {name: (costs[name][key] / unit, summaries[name]["psnr"]["mean"]) for name in names}
        for index, (name, (x, y)) in enumerate(points.items()):
            cost = costs[name]
            across = None
            if key == "latency_ms_median":
                across = ([x - cost["latency_ms_p10"]], [cost["latency_ms_p90"] - x])
            # Eleven networks: colours and markers repeat, but not both of them together.
            style = {"color": COLOURS[index % 7], "marker": MARKERS[(index + index // 7) % 7]}
            axes.errorbar(x, y, summaries[name]["psnr"]["std"], across, ls="", ms=7, lw=0.8, capsize=2, **style)
        best = sorted(points[name] for name in names if summaries[name][front])
        axes.step(*zip(*best, strict=True), where="post", ls="--", lw=1, color="grey", zorder=0)
        axes.set_ylabel("PSNR, dB")
        log_axis(axes, label)
        name_points(axes, points, {name: COLOURS[index % 7] for index, name in enumerate(points)})
    return figure
