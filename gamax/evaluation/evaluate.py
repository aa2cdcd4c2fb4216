"""Scoring a network under a protocol."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gamax import hosts
from gamax.data.examples import Example
from gamax.data.images import to_float, to_integers
from gamax.errors import UserError
from gamax.evaluation.metrics import psnr, ssim_valid
from gamax.evaluation.pictures import Comparison
from gamax.evaluation.protocols import Protocol, protocol_input
from gamax.evaluation.restorer import Restorer

SMALLEST_SIDE = 11
"""Pixels that SSIM needs: its window."""

METRICS = ("psnr_input", "psnr", "ssim")
TABLE_COLUMNS = ("image", "input PSNR", "PSNR", "SSIM")

PICTURED = 3
"""How many images are kept for the comparison sheet: those restored worst."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome: means over the images, a row for each, and the images with the lowest PSNR."""

    protocol: Protocol
    inference: dict[str, Any]
    """The settings of the restorer."""
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
            "inference": self.inference,
            "images": len(self.rows),
            **{metric: _finite(self.mean(metric)) for metric in METRICS},
            "per_image": [{name: _finite(value) for name, value in row.items()} for row in self.rows],
        }

    def table(self) -> list[dict[str, str]]:
        """The rows and their mean as text, for printing."""
        mean: dict[str, Any] = {"name": f"mean of {len(self.rows)}", **{key: self.mean(key) for key in METRICS}}
        cells = [
            (str(row["name"]), f"{row['psnr_input']:.2f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}")
            for row in (*self.rows, mean)
        ]
        return [dict(zip(TABLE_COLUMNS, texts, strict=True)) for texts in cells]


def _finite(value: Any) -> Any:
    """JSON has no infinity; null is the PSNR of equal images."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    restorer: Restorer,
    examples: Sequence[Example],
    protocol: Protocol,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Restores every example as the protocol says and scores it on the host in float64.

    Several processes share the images; each returns all rows, and the first one the pictures.

    Args:
        restorer: the network, in the mode to be judged.
        examples: a sequence that loads each image when it is asked for.
        protocol: the rules; if it is paired, the examples must have an `input`.
        progress: called with the number of finished images after each.

    Raises:
        UserError: if there are no examples, or an output is not finite; `check_examples` finds beforehand what may be
            wrong with the data.
    """
    if not examples:
        raise UserError("there is no image to evaluate on")
    rows: list[dict[str, Any]] = []
    pictures: dict[int, Comparison] = {}
    for index in range(jax.process_index(), len(examples), jax.process_count()):
        row, pictures[index] = _score(restorer, examples[index], protocol)
        rows.append({"index": index, **row})
        kept = sorted(pictures, key=lambda index: pictures[index].psnr_restored)[:PICTURED]
        pictures = {index: pictures[index] for index in kept}
        progress(index + 1)
    rows = sorted(hosts.gather_records(rows), key=lambda row: row["index"])
    worst = [row["index"] for row in sorted(rows, key=lambda row: row["psnr"])[:PICTURED]]
    if hosts.is_first():
        # Those that other processes have scored.
        pictures |= {index: _score(restorer, examples[index], protocol)[1] for index in worst if index not in pictures}
    rows = [{name: value for name, value in row.items() if name != "index"} for row in rows]
    return Evaluation(protocol, restorer.settings(), rows, [pictures[index] for index in worst if index in pictures])


def check_examples(examples: Sequence[Example], protocol: Protocol, model: nn.Module, params: Any) -> None:
    """Reads every example once and tries the network on the shape of the largest, before any long work.

    Args:
        examples: a sequence that loads each image when it is asked for.
        protocol: the rules; if it is paired, the examples must have an `input`.
        model: the network.
        params: its parameters, or their shapes; nothing is computed.

    Raises:
        UserError: if there is no example, one cannot be read or is too small, or the data does not fit the protocol.
    """
    if not examples:
        raise UserError("there is no image to evaluate on")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes = list(pool.map(partial(_check_example, examples, protocol), range(len(examples))))
    largest = jax.ShapeDtypeStruct((1, *max(shapes, key=math.prod)), jnp.float32)
    jax.eval_shape(model.apply, {"params": params}, largest)


def _check_example(examples: Sequence[Example], protocol: Protocol, index: int) -> tuple[int, ...]:
    example = examples[index]
    name, shape = example["name"], example["target"].shape
    if protocol.paired:
        if "input" not in example:
            raise UserError(f"protocol {protocol.name} needs pairs (input/ and target/), but '{name}' has no input")
        if example["input"].shape != shape:
            raise UserError(f"input and target of '{name}' differ in size: {example['input'].shape} and {shape}")
    if min(shape[:2]) < SMALLEST_SIDE:
        raise UserError(
            f"'{name}' has {shape[1]}x{shape[0]} pixels; SSIM needs at least {SMALLEST_SIDE} a side, so remove it"
        )
    return shape


def _score(restorer: Restorer, example: Example, protocol: Protocol) -> tuple[dict[str, Any], Comparison]:
    name, target = example["name"], to_integers(to_float(example["target"]))
    degraded = to_float(example["input"]) if protocol.paired else protocol_input(protocol, example["target"])
    output = restorer(degraded)
    if not np.isfinite(output).all():
        raise UserError(f"the network's output for '{name}' is not finite: its training has diverged")
    restored = to_integers(output)
    # The input is scored as the network gets it, unrounded and unclipped; of integers without a detour by float32.
    scored = example["input"] if protocol.paired else degraded
    white = np.iinfo(scored.dtype).max if protocol.paired else 1.0
    row = {
        "name": name,
        "height": target.shape[0],
        "width": target.shape[1],
        "psnr_input": psnr(scored * np.float64(protocol.peak / white), target, protocol.peak),
        "psnr": psnr(restored, target, protocol.peak),
        "ssim": ssim_valid(restored, target, protocol.peak),
    }
    return row, Comparison(name, to_integers(degraded), restored, target, row["psnr_input"], row["psnr"])
