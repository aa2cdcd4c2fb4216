"""Pictures of benchmark rows: latency, memory and PSNR against what they depend on.

Every function takes rows of `gamax.benchmark.latency.measure`, writes a PNG, and returns the figure that it drew.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gamax.blocks.mixers import check_trusted
from gamax.errors import UserError
from gamax.evaluation.compare import load_result
from gamax.files import replace_atomically
from gamax.interop.weights import find_weights, load_weights, sha256
from gamax.models import create_model

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by the colour-blind (Okabe and Ito); markers say the same once more."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

MILLISECONDS, GIGA_MULTIPLY_ADDS = "latency, ms (median; bars: p10 to p90)", "multiply-adds, G"

PROGRAM_MEMORY = "arguments, results and temporaries that the compiled program of JAX plans for"
"""How `program_bytes` of a row is found."""

PUBLISHED_SIDD = {
    **{"nafnet_sidd_w32": 39.9672, "nafnet_sidd_w64": 40.3045, "restormer_denoising": 40.02},
    **{"baseline_sidd_w32": 39.8857, "baseline_sidd_w64": 40.2970, "plainnet_sidd_w32": 39.29},
}
"""PSNR in dB on SIDD that the authors of a network state for it, where that is confirmed; the full text is in
`gamax.models.VARIANTS`."""

Row = Mapping[str, Any]


def latency_against_multiply_adds(rows: Sequence[Row], path: Path) -> Figure:
    """Latency against multiply-adds, a series for each backend."""
    figure, axes = _figure(rows)
    for style, backend, group in _styled(rows, "backend"):
        _points(axes, [row["multiply_adds"] / 1e9 for row in group], group, label=backend, **style)
    _name_points(axes, rows, lambda row: (row["multiply_adds"] / 1e9, row["latency_ms_median"]))
    _finish(axes, GIGA_MULTIPLY_ADDS, MILLISECONDS)
    return _save(figure, path)


def memory_against_parameters(rows: Sequence[Row], path: Path) -> Figure:
    """Peak memory against the number of parameters, a series for each backend."""
    figure, axes = _figure(rows, memory=_joined(rows, "peak_memory_method"))
    for style, backend, group in _styled(rows, "backend"):
        parameters = [row["parameters"] / 1e6 for row in group]
        axes.plot(parameters, [row["peak_memory_bytes"] / 1e6 for row in group], ls="", label=backend, **style)
    _name_points(axes, rows, lambda row: (row["parameters"] / 1e6, row["peak_memory_bytes"] / 1e6))
    _finish(axes, "parameters, millions", "peak memory, MB")
    return _save(figure, path)


def latency_against_psnr(
    rows: Sequence[Row],
    path: Path,
    results: Sequence[Path] = (),
    published: Mapping[str, float] = PUBLISHED_SIDD,
) -> Figure:
    """PSNR against latency, as in the first figure of the GAMA-IR paper (arXiv 2404.00807).

    Filled markers are networks whose weights were evaluated here, hollow ones what the authors of a network state for
    it, on SIDD; rows without a number are left out.

    Args:
        rows: the rows.
        path: the PNG.
        results: files of `eval.py`, all under one protocol; their weight files must still be where they were.
        published: PSNR in dB on SIDD by the name of the network. They are drawn where there are no results, or where
            these are under a protocol for SIDD.

    Raises:
        UserError: if results are under different protocols, if a weight file has gone or changed, or if no row has a
            number.

    """
    protocol, evaluated = _evaluated(results)
    if protocol and not protocol.startswith("sidd"):
        published = {}
    figure, axes = _figure(rows)
    shown = []
    for style, backend, group in _styled(rows, "backend"):
        own = [(row, value) for row in group if (value := _find(evaluated, row)) is not None]
        stated = [(row, published[row["model"]]) for row in group if row["model"] in published and not row["overrides"]]
        for pairs, fill, source in ((own, "full", protocol), (stated, "none", "SIDD, published by its authors")):
            if pairs:
                latencies = [row["latency_ms_median"] for row, _ in pairs]
                values = [value for _, value in pairs]
                axes.plot(latencies, values, ls="", fillstyle=fill, label=f"{backend}: {source}", **style)
                shown += [{**row, "psnr": value} for row, value in pairs]
    if not shown:
        raise UserError("no row has a PSNR to draw; give result files of eval.py for the networks that were measured")
    _name_points(axes, shown, lambda row: (row["latency_ms_median"], row["psnr"]))
    _finish(axes, "latency, ms (median)", "PSNR, dB", log_y=False)
    return _save(figure, path)


def scaling_with_pixels(rows: Sequence[Row], path: Path) -> Figure:
    """Latency of one image against its pixels, a line for each network and backend."""
    figure, axes = _figure(rows)
    _lines(
        axes,
        rows,
        lambda row: row["height"] * row["width"] / 1e6,
        lambda row: row["latency_ms_median"] / row["batch"],
    )
    _finish(axes, "pixels, millions", "latency of one image, ms (median)")
    return _save(figure, path)


def correlation_scatter(rows: Sequence[Row], path: Path, pairs: Sequence[tuple[str, str]]) -> Figure:
    """Panels of one figure of a row against another, on logarithmic axes, a colour for each family.

    Args:
        rows: as `gamax.benchmark.correlation` writes them, with a `family`.
        path: the PNG.
        pairs: keys of the horizontal and the vertical axis of each panel, from `AXES`.

    """
    columns = min(len(pairs), 2)
    figure, panels = _figure(rows, -(-len(pairs) // columns), columns, memory=PROGRAM_MEMORY)
    for axes, (key, target) in zip(np.ravel(panels), pairs, strict=True):
        for style, family, group in _styled(rows, "family"):
            x, y = ([row[name] / AXES[name][1] for row in group] for name in (key, target))
            axes.plot(x, y, ls="", alpha=0.8, label=f"{family} ({len(group)})", **style)
        _finish(axes, AXES[key][0], AXES[target][0])
    return _save(figure, path)


AXES = {
    "multiply_adds": (GIGA_MULTIPLY_ADDS, 1e9),
    "parameters": ("parameters, millions", 1e6),
    "activations": ("elements written by products, millions", 1e6),
    "product_bytes": ("bytes moved by products, MB", 1e6),
    "depth": ("convolutions and matrix products that run", 1),
    "latency_ms_median": ("latency, ms (median)", 1),
    "program_bytes": ("memory of the program, MB", 1e6),
}
"""What an axis says, and what a value is divided by."""


def scaling_panels(sweeps: Mapping[str, Sequence[Row]], path: Path) -> Figure:
    """Latency above and memory below, a column for each sweep, a line for each network.

    Args:
        sweeps: for the label of a horizontal axis, its rows; a row says where it is on that axis under `along`.
        path: the PNG.

    """
    figure, panels = _figure(list(chain(*sweeps.values())), 2, len(sweeps), memory=PROGRAM_MEMORY)
    for column, (label, rows) in zip(np.reshape(panels, (2, -1)).T, sweeps.items(), strict=True):
        for axes, key in zip(column, ("latency_ms_median", "program_bytes"), strict=True):
            name, unit = AXES[key]
            _lines(axes, rows, lambda row: row["along"], lambda row, key=key, unit=unit: row[key] / unit)
            _finish(axes, label, name)
    return _save(figure, path)


def _figure(rows: Sequence[Row], height: int = 1, width: int = 1, *, memory: str = "") -> tuple[Figure, Any]:
    if not rows:
        raise UserError("there are no rows to draw; measure some first")
    figure = Figure((3 + 4.8 * width, 0.8 + 4.4 * height), dpi=110, layout="constrained")
    packages = ("gamax", "jax", "torch")
    found = {name: {row["versions"][name] for row in rows if name in row["versions"]} for name in packages}
    versions = [f"{name} {', '.join(sorted(values))}" for name, values in found.items() if values]
    title = f"{_joined(rows, 'device')}; {_joined(rows, 'precision')}; {', '.join(versions)}"
    notes = [title, f"Memory: {memory}"] if memory else [title]
    characters = int(13 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(note, characters) for note in notes), fontsize=9)
    return figure, figure.subplots(height, width)


def _joined(rows: Sequence[Row], key: str) -> str:
    return ", ".join(dict.fromkeys(str(row[key]) for row in rows))


def _by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _styled(rows: Sequence[Row], key: str) -> Iterator[tuple[dict[str, Any], str, list[Row]]]:
    """The rows by what they have under `key`, each group with its colour and marker and its name."""
    styles = cycle(zip(COLOURS, MARKERS, strict=True))
    for (colour, marker), (name, group) in zip(styles, _by(rows, key).items(), strict=False):
        yield {"color": colour, "marker": marker}, name, group


def _points(axes: Axes, x: Sequence[float], rows: Sequence[Row], **style: Any) -> None:
    median, p10, p90 = (
        np.array([row[f"latency_ms_{name}"] for row in rows], float) for name in ("median", "p10", "p90")
    )
    axes.errorbar(x, median, (median - p10, p90 - median), ls="", capsize=2, **style)


def _lines(axes: Axes, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> None:
    """A line for each network, dashed for another backend than the first."""
    dashes = dict(zip(_by(rows, "backend"), cycle(("-", "--", ":", "-.")), strict=False))
    for style, model, group in _styled(rows, "model"):
        for backend, line in _by(group, "backend").items():
            points = sorted((x(row), y(row)) for row in line)
            label = f"{model}, {backend}" if len(dashes) > 1 else model
            axes.plot(*zip(*points, strict=True), ls=dashes[backend], label=label, **style)


def _name_points(axes: Axes, rows: Sequence[Row], place: Callable[[Row], tuple[float, float]]) -> None:
    """Writes the name of each network at its points: above the highest and below the lowest in turn, from the left."""
    points = {name: [place(row) for row in group] for name, group in _by(rows, "model").items()}
    for number, (name, group) in enumerate(sorted(points.items(), key=lambda item: min(item[1]))):
        above = number % 2 == 0
        # Slanted, so that those of neighbours pass each other.
        axes.annotate(
            name,
            (max if above else min)(group, key=lambda point: point[1]),
            xytext=(2, 6) if above else (-2, -6),
            textcoords="offset points",
            ha="left" if above else "right",
            va="baseline" if above else "top",
            rotation=60,
            rotation_mode="anchor",
            fontsize=7,
        )


def _finish(axes: Axes, x_label: str, y_label: str, *, log_y: bool = True) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale))[: 2 if log_y else 1]:
        scale("log")
        low, high = axes.get_xlim() if axis is axes.xaxis else axes.get_ylim()
        # Numbers rather than powers of ten, and few of them.
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)))
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(NullFormatter())


def _evaluated(results: Sequence[Path]) -> tuple[str | None, list[tuple[nn.Module, float]]]:
    """The protocol of result files, and every network in them with its PSNR."""
    protocols, evaluated = set(), []
    for path in results:
        result = load_result(path)
        weights = find_weights(result["weights"])
        if sha256(weights) != result["weights_sha256"]:
            raise UserError(f"the weights '{weights}' are not those of '{path}' any more: evaluate them once more")
        model, _ = load_weights(weights, dtype="float32")
        protocols.add(result["protocol"])
        evaluated.append((model, result["psnr"]))
    if len(protocols) > 1:
        raise UserError(f"results are under different protocols ({', '.join(sorted(protocols))}): draw one at a time")
    return next(iter(protocols), None), evaluated


def _find(evaluated: Sequence[tuple[nn.Module, float]], row: Row) -> float | None:
    """The best PSNR of the network of a row."""
    check_trusted("a row", row["overrides"].get("mixer"))
    model = create_model(row["model"], **{**row["overrides"], "dtype": "float32"})
    return max((value for other, value in evaluated if other == model), default=None)


def _save(figure: Figure, path: Path) -> Figure:
    found = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    # Beside the panels, where it hides no point.
    figure.legend(list(found.values()), list(found), loc="outside right center", fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    replace_atomically(path, content.getvalue())
    return figure
