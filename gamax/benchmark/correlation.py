"""Do multiply-adds or parameters predict latency and memory? The study of Figure 2 of GAMA-IR (arXiv 2404.00807).

Its networks are not published; the families, widths and depths here are ours.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
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
TARGETS = ("latency_ms_median", "program_bytes")

SMALLEST_FAMILY = 3
"""Networks that a correlation takes at least; with two it is always 1 or -1."""
FEWEST_SHAPES = 10
"""Shapes that an interval takes at least: the bootstrap's is far too short for fewer."""
RESAMPLES = 2000
"""Of the bootstrap."""

ALL = "all"
"""The name of the group of all families."""

PLOTTED = tuple((predictor, target) for target in TARGETS for predictor in ("multiply_adds", "parameters"))
"""What the four plots show, as in the paper's figure."""

COLUMNS = (
    *("family", "network", "latency_ms_median", "latency_ms_p10", "latency_ms_p90", "program_bytes"),
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
    """`count` of the cases: every family keeps its share, and no shape comes twice before all of its family are in.

    Raises:
        UserError: unless `count` is from `SMALLEST_FAMILY` to the number of cases.

    """
    if not SMALLEST_FAMILY <= count <= len(cases):
        raise UserError(f"the study takes from {SMALLEST_FAMILY} to {len(cases)} networks, not {count}")
    shares = Counter(cases[index].model for index in np.linspace(0, len(cases) - 1, count).round().astype(int))
    shuffled = [cases[index] for index in np.random.default_rng(0).permutation(len(cases))]
    earlier: Counter[str] = Counter()
    rounds: dict[str, list[tuple[int, Case]]] = {}
    for case in shuffled:
        name = shape(case.model, case.overrides)
        rounds.setdefault(case.model, []).append((earlier[name], case))
        earlier[name] += 1
    return [
        case for model, share in shares.items() for _, case in sorted(rounds[model], key=lambda entry: entry[0])[:share]
    ]


def shape(model: str, overrides: Mapping[str, Any]) -> str:
    """Names what a network has in common with those that differ in nothing but the mixer."""
    return json.dumps([model, {name: value for name, value in overrides.items() if name != "mixer"}], sort_keys=True)


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


def pearson(
    x: Float[np.ndarray, "*#rows n"],
    y: Float[np.ndarray, "*#rows n"],
    counts: Float[np.ndarray, "*#rows n"] | None = None,
) -> Float[np.ndarray, "*rows"]:
    """Pearson's correlation over the last axis, each pair taken `counts` times; NaN where either does not vary."""
    counts = np.ones_like(x) if counts is None else counts
    # Not by the variance: a constant may leave the rounding errors of its mean.
    varies = np.all(
        [
            np.where(counts > 0, values, -np.inf).max(-1) > np.where(counts > 0, values, np.inf).min(-1)
            for values in (x, y)
        ],
        axis=0,
    )
    total = counts.sum(-1, keepdims=True)
    x, y = (values - (counts * values).sum(-1, keepdims=True) / total for values in (x, y))
    scale = np.sqrt((counts * x**2).sum(-1) * (counts * y**2).sum(-1))
    return np.where(varies, (counts * x * y).sum(-1) / np.where(varies, scale, 1), np.nan)


def ranks(
    values: Float[np.ndarray, " n"], counts: Float[np.ndarray, "... n"] | None = None
) -> Float[np.ndarray, "... n"]:
    """Ranks from 1 up, each value taken `counts` times; equal values share the mean of theirs."""
    counts = np.ones_like(values, float) if counts is None else counts
    below, equal = values[:, None] < values, values[:, None] == values
    return counts @ below + (counts @ equal + 1) / 2


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How well each of `PREDICTORS` tells each of `TARGETS`, in every family and over all.

    Args:
        rows: one for each network, with those keys, `model`, `overrides` and `family`.

    Returns:
        For each family of at least `SMALLEST_FAMILY` networks, predictor and target: `family`, `networks`, `shapes`
        (see `shape`), `predictor`, `target`, and for `pearson`, `pearson_log` (of the logarithms of both) and
        `spearman` the coefficient and its `_low` and `_high`, the percentile bootstrap's 95 % interval over shapes.
        None where the predictor does not vary in the family; no interval for fewer than `FEWEST_SHAPES`.

    """
    found = []
    for name in (ALL, *dict.fromkeys(row["family"] for row in rows)):
        group = [row for row in rows if name in (ALL, row["family"])]
        if len(group) < SMALLEST_FAMILY:
            continue
        figures = {key: np.array([row[key] for row in group], float) for key in (*PREDICTORS, *TARGETS)}
        shapes = [shape(row["model"], row["overrides"]) for row in group]
        common = {"family": name, "networks": len(group), "shapes": len(set(shapes))}
        found += [
            {
                **common,
                "predictor": predictor,
                "target": target,
                **coefficients(figures[predictor], figures[target], shapes),
            }
            for target in TARGETS
            for predictor in PREDICTORS
        ]
    return found


def coefficients(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], shapes: Sequence[str]
) -> dict[str, float | None]:
    """The part of `correlations` that is of two positive figures of the same networks, each of one of `shapes`."""
    distinct, member = np.unique(shapes, return_inverse=True)
    # Networks of one shape deviate together, so all or none are drawn. The same are, whatever is correlated.
    drawn = np.random.default_rng(0).multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), RESAMPLES)
    counts = drawn[:, member].astype(float)
    result = {}
    for name, power in (("pearson", np.asarray), ("pearson_log", np.log), ("spearman", None)):
        if power:
            value, resampled = pearson(power(x), power(y)), pearson(power(x), power(y), counts)
        else:
            value, resampled = pearson(ranks(x), ranks(y)), pearson(ranks(x, counts), ranks(y, counts), counts)
        # A draw of one shape again and again may have no correlation.
        resampled = resampled[np.isfinite(resampled)]
        enough = len(distinct) >= FEWEST_SHAPES and len(resampled)
        low, high = np.percentile(resampled, (2.5, 97.5)) if enough else (np.nan, np.nan)
        result |= {name: _number(value), f"{name}_low": _number(low), f"{name}_high": _number(high)}
    return result


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
