"""Scoring a network under a protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gamax.errors import UserError
from gamax.evaluation.metrics import psnr, ssim_valid
from gamax.evaluation.pictures import Comparison
from gamax.evaluation.protocols import Protocol, protocol_input, to_float, to_uint8
from gamax.evaluation.restorer import Restorer

Example = Mapping[str, Any]
"""`name`, `target` and, for paired data, `input`: integer images `[H, W, C]`."""

METRICS = ("psnr_input", "psnr", "ssim")
TABLE_COLUMNS = ("image", "input PSNR", "PSNR", "SSIM")

PICTURED = 3
"""How many images are kept for the comparison sheet: those restored worst."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome: means over the images, a row for each, and the images with the lowest PSNR."""

    protocol: Protocol
    rows: list[dict[str, Any]]
    worst: list[Comparison]

    def mean(self, metric: str) -> float:
        """Mean over the images of `psnr_input`, `psnr` or `ssim`."""
        return float(np.mean([row[metric] for row in self.rows]))

    def record(self) -> dict[str, Any]:
        """What result files hold: the whole protocol, the means and the rows, ready for JSON."""
        return {
            "protocol": self.protocol.name,
            "protocol_details": dataclasses.asdict(self.protocol),
            "images": len(self.rows),
            **{metric: self.mean(metric) for metric in METRICS},
            "per_image": self.rows,
        }

    def table(self) -> list[dict[str, str]]:
        """The rows and their mean as text, for printing."""
        mean: dict[str, Any] = {"name": f"mean of {len(self.rows)}", **{key: self.mean(key) for key in METRICS}}
        cells = [
            (str(row["name"]), f"{row['psnr_input']:.2f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}")
            for row in (*self.rows, mean)
        ]
        return [dict(zip(TABLE_COLUMNS, texts, strict=True)) for texts in cells]


def evaluate(
    restorer: Restorer,
    examples: Sequence[Example],
    protocol: Protocol,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Restores every example as the protocol says and scores it on the host in float64.

    Args:
        restorer: the network, in the mode to be judged.
        examples: a sequence that loads each image when it is asked for.
        protocol: the rules; if it is paired, the examples must have an `input`.
        progress: called with the number of finished images after each.

    Raises:
        UserError: if there are no examples, or the data does not fit the protocol.

    """
    if not examples:
        raise UserError("there is no image to evaluate on")
    rows: list[dict[str, Any]] = []
    worst: list[Comparison] = []
    for done, index in enumerate(range(len(examples)), start=1):
        row, comparison = _score(restorer, examples[index], protocol)
        rows.append(row)
        worst = sorted([*worst, comparison], key=lambda item: item.psnr_restored)[:PICTURED]
        progress(done)
    return Evaluation(protocol, rows, worst)


def _score(restorer: Restorer, example: Example, protocol: Protocol) -> tuple[dict[str, Any], Comparison]:
    name, target = example["name"], example["target"]
    if protocol.paired and "input" not in example:
        raise UserError(f"protocol {protocol.name} needs pairs (folders input/ and target/), but '{name}' has no input")
    degraded = to_float(example["input"]) if protocol.paired else protocol_input(protocol, target)
    if min(target.shape[:2]) < 11:
        raise UserError(f"'{name}' has {target.shape[1]}x{target.shape[0]} pixels; SSIM needs at least 11x11")

    restored = to_uint8(restorer(degraded))
    # The input is scored as the network gets it, unclipped, on the same scale.
    row = {
        "name": name,
        "psnr_input": psnr(degraded * np.float64(protocol.peak), to_uint8(to_float(target)), protocol.peak),
        "psnr": psnr(restored, to_uint8(to_float(target)), protocol.peak),
        "ssim": ssim_valid(restored, to_uint8(to_float(target)), protocol.peak),
    }
    pictures = (to_uint8(degraded), restored, to_uint8(to_float(target)))
    return row, Comparison(name, *pictures, row["psnr_input"], row["psnr"])
