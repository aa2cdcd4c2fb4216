"""Do multiply-adds or parameters predict latency and memory? The study of Figure 2 of GAMA-IR (arXiv 2404.00807).

Its networks are not published; the families, widths and depths here are ours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gamax.benchmark.case import Case, Precision
from gamax.benchmark.comparison import measure_groups
from gamax.benchmark.plots import correlation_scatter
from gamax.benchmark.report import file_stem
from gamax.errors import UserError
from gamax.files import replace_atomically, write_json
from gamax.models import VARIANTS

PREDICTORS = ("multiply_adds", "parameters", "activations", "product_bytes", "depth")
TARGETS = ("latency_ms_median", "peak_memory_bytes")

SMALLEST_FAMILY = 3
"""Networks that a correlation takes at least; with two it is always 1 or -1."""
RESAMPLES = 2000
"""Of the bootstrap."""

ALL = "all"
"""The name of the group of all families."""

PLOTTED = tuple((predictor, target) for target in TARGETS for predictor in ("multiply_adds", "parameters"))
"""What the four plots show, as in the paper's figure."""

COLUMNS = (
    *("family", "network", "latency_ms_median", "latency_ms_p10", "latency_ms_p90", "peak_memory_bytes"),
    *(*PREDICTORS, "roofline_fraction", "compile_cold_seconds", "height", "width", "precision", "device"),
)
"""Of the CSV file."""

_GAMA_IR = (
    # Width, depth, levels, blocks on each level.
    *((16, 8, 3, 1), (16, 40, 4, 2), (32, 6, 2, 1), (32, 24, 3, 2)),
    *((48, 12, 2, 1), (64, 18, 4, 2), (96, 9, 4, 1)),
)
_NAFNET = (
    # Width, blocks of the encoder, of the middle and of the decoder.
    (16, (1, 1, 1, 1), 1, (1, 1, 1, 1)),
    (16, (2, 2, 4, 8), 12, (2, 2, 2, 2)),
    (24, (1, 1, 1, 28), 1, (1, 1, 1, 1)),
    (32, (1, 1, 1), 3, (1, 1, 1)),
    (32, (2, 2), 4, (2, 2)),
    (48, (1, 1, 1, 1), 1, (1, 1, 1, 1)),
    (48, (2, 2, 4, 8), 12, (2, 2, 2, 2)),
    (64, (1, 1, 2), 4, (1, 1, 1)),
    (96, (1, 1), 2, (1, 1)),
)
_RESTORMER = (
    # Width, blocks on the four levels, refinement blocks.
    (8, (4, 6, 6, 8), 4),
    (16, (1, 1, 1, 1), 1),
    (16, (2, 3, 3, 4), 2),
    (16, (4, 6, 6, 8), 4),
    (24, (1, 2, 2, 4), 1),
    (24, (2, 3, 3, 4), 2),
    (32, (1, 1, 2, 2), 1),
)
_UNET_WIDTHS = (8, 16, 24, 32, 40, 48, 64)


def population(height: int, width: int, precision: Precision = "fp32-strict", repeats: int = 10) -> list[Case]:
    """The networks of the study, family by family: 51, from 0.9 to 55 G multiply-adds at 256x256."""
    networks: list[tuple[str, dict[str, Any]]] = [
        (
            "gama_ir_s",
            {"mixer": mixer, "width": channels, "depth": depth, "levels": levels, "blocks_per_level": blocks},
        )
        for mixer in ("none", "squeeze_excite", "sca", "gama")
        for channels, depth, levels, blocks in _GAMA_IR
    ]
    networks += [
        (
            "nafnet_sidd_w32",
            {"width": channels, "encoder_blocks": encoder, "middle_blocks": middle, "decoder_blocks": decoder},
        )
        for channels, encoder, middle, decoder in _NAFNET
    ]
    networks += [
        ("restormer", {"width": channels, "blocks": blocks, "refinement_blocks": refinement})
        for channels, blocks, refinement in _RESTORMER
    ]
    networks += [("unet", {"width": channels}) for channels in _UNET_WIDTHS]
    return [
        Case(model, height, width, precision=precision, overrides=overrides, repeats=repeats)
        for model, overrides in networks
    ]


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """`count` of the cases at equal distances, so that every family keeps its share.

    Raises:
        UserError: unless `count` is from `SMALLEST_FAMILY` to the number of cases.

    """
    if not SMALLEST_FAMILY <= count <= len(cases):
        raise UserError(f"the study takes from {SMALLEST_FAMILY} to {len(cases)} networks, not {count}")
    return [cases[index] for index in np.linspace(0, len(cases) - 1, count).round().astype(int)]


def study(
    cases: Sequence[Case], folder: Path
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]], list[Path]]:
    """Measures the cases, each alone and in a process of its own, and correlates.

    Rows are kept in `rows.jsonl` in `folder`: a study that was interrupted goes on where it stopped.

    Args:
        cases: of one size and precision.
        folder: made if it is not there.

    Returns:
        The rows, each with its `family`; a sentence for each network that could not be measured; what `correlations`
        makes of the rows; and the files: `correlations.json`, a CSV with a line for each network, the four plots and
        one with all of them.

    Raises:
        UserError: if fewer than `SMALLEST_FAMILY` networks could be measured.

    """
    # Whatever slows the machine down for a while must not meet one family alone.
    order = np.random.default_rng(0).permutation(len(cases))
    rows = measure_groups([[cases[index]] for index in order], rounds=1, folder=folder)
    missing = [row["failure"] for row in rows if "failure" in row]
    measured = [{**row, "family": VARIANTS[row["model"]].network.__name__} for row in rows if "failure" not in row]
    measured.sort(key=lambda row: row["family"])
    if len(measured) < SMALLEST_FAMILY:
        raise UserError(
            f"{len(measured)} network(s) could be measured, and a correlation takes {SMALLEST_FAMILY}: "
            f"{'; '.join(missing)}"
        )
    found = correlations(measured)
    paths = [folder / "correlations.json", folder / f"correlation-{file_stem(measured)}.csv"]
    write_json(paths[0], found)
    replace_atomically(paths[1], _csv(measured).encode())
    for name, pairs in (("all", PLOTTED), *(("-".join(pair), [pair]) for pair in PLOTTED)):
        paths.append(folder / f"correlation-{name}.png")
        correlation_scatter(measured, paths[-1], pairs)
    return measured, missing, found, paths


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    content = io.StringIO()
    writer = csv.DictWriter(content, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        network = " ".join([row["model"], *(f"{name}={value}" for name, value in row["overrides"].items())])
        writer.writerow({**row, "network": network})
    return content.getvalue()


def pearson(x: Float[np.ndarray, "*rows n"], y: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows"]:
    """Pearson's correlation over the last axis; NaN where either does not vary."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    # A constant may leave the rounding errors of its mean.
    varies = (np.ptp(x, -1) > 0) & (np.ptp(y, -1) > 0)
    return np.where(varies, (x * y).sum(-1) / np.where(varies, scale, 1), np.nan)


def ranks(values: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows n"]:
    """Ranks over the last axis from 1 up; equal values share the mean of theirs."""
    below = (values[..., :, None] > values[..., None, :]).sum(-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(-1)
    return below + (equal + 1) / 2


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How well each of `PREDICTORS` tells each of `TARGETS`, in every family and over all.

    Args:
        rows: one for each network, with those keys and `family`.

    Returns:
        For each family of at least `SMALLEST_FAMILY` networks, predictor and target: `family`, `networks`, `predictor`,
        `target`, and for `pearson`, `pearson_log` (of the logarithms of both) and `spearman` the coefficient and its
        `_low` and `_high`, the percentile bootstrap's 95 % interval over networks. None where the predictor does not
        vary in the family.

    """
    groups = {name: [row for row in rows if name in (ALL, row["family"])] for name in _families(rows)}
    return [
        {
            "family": name,
            "networks": len(group),
            "predictor": predictor,
            "target": target,
            **coefficients(*(np.array([row[key] for row in group], float) for key in (predictor, target))),
        }
        for name, group in groups.items()
        if len(group) >= SMALLEST_FAMILY
        for target in TARGETS
        for predictor in PREDICTORS
    ]


def _families(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [ALL, *dict.fromkeys(row["family"] for row in rows)]


def coefficients(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    """The part of `correlations` that is of two positive figures of the same networks."""
    # The same networks are drawn whatever is correlated.
    drawn = np.random.default_rng(0).integers(0, len(x), (RESAMPLES, len(x)))
    result = {}
    for name, transform in (("pearson", np.asarray), ("pearson_log", np.log), ("spearman", ranks)):
        result[name] = _number(pearson(transform(x), transform(y)))
        resampled = pearson(transform(x[drawn]), transform(y[drawn]))
        # A draw of one network again and again has no correlation.
        resampled = resampled[np.isfinite(resampled)]
        low, high = np.percentile(resampled, (2.5, 97.5)) if len(resampled) else (np.nan, np.nan)
        result |= {f"{name}_low": _number(low), f"{name}_high": _number(high)}
    return result


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
