"""What one row of the benchmark measures, and what every backend gives back: shared by JAX and PyTorch."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gamax.errors import UserError, nearest
from gamax.models import abstract_params, create_model

BACKENDS = ("jax", "torch-eager", "torch-eager-channels-last", "torch-compile", "torch-compile-max-autotune")

Precision = Literal["fp32-strict", "tf32", "bf16"]
Task = Literal["infer", "train"]

FAR = 100.0
"""How far targets are from zero, further than any output."""

AROUND_ONE = ("scale", "skip_scale", "temperature")
"""Vectors of parameters that multiply what has no other path: of norms, and of patch and channel attention."""


@dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    Precisions: `fp32-strict` computes products in full float32; `tf32` lets the device round their inputs to
    TensorFloat-32 where it can; `bf16` computes in bfloat16 with float32 parameters.

    Tasks: `infer` is one forward pass; `train` the mean absolute difference to the targets, its gradient and one AdamW
    update (learning rate 1e-3, betas 0.9 and 0.9, epsilon 1e-8, no weight decay) of float32 parameters.
    """

    model: str
    """A named network."""
    height: int
    width: int
    batch: int = 1
    task: Task = "infer"
    precision: Precision = "fp32-strict"
    backend: str = "jax"
    """One of `BACKENDS`."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network that differ from the named one."""
    repeats: int = 20
    """Timed calls in all."""


@dataclass(frozen=True)
class Prepared:
    """A network that a backend has compiled and warmed up, ready to be timed."""

    call: Callable[[int], object]
    """Makes call number `i`, with the first or the second input in turn; returns when the device has finished."""
    outputs: Mapping[str, np.ndarray]
    """What parity is checked on, float32, from the first input before any update: `output` `[B, H, W, C]`; for `train`
    also `loss` and `gradient/NAME` for every parameter, under the name and in the shape of PyTorch's state dict, and
    `loss_after_update`, that of the first input after one update: the only one of them that the optimizer shows in."""
    facts: Mapping[str, Any]
    """`compile_cold_seconds`, `compile_warm_seconds` (None without a compiler), `first_call_ms`, `device`, `versions`,
    `threads`, and in `flags` whatever the backend sets that decides the figure."""
    peak_memory: Callable[[], dict[str, Any]]
    """After the timed calls, right before which `memory.reset_peak` was called: `peak_memory_bytes`,
    `peak_memory_method` and what else is known."""


def check_case(case: Case) -> None:
    """Raises `UserError` for a case that no backend can measure, before a process is started for it."""
    for name, valid in (("backend", BACKENDS), ("precision", get_args(Precision)), ("task", get_args(Task))):
        if getattr(case, name) not in valid:
            raise UserError(f"unknown {name} {nearest(getattr(case, name), valid)}")
    if min(case.height, case.width, case.batch, case.repeats) < 1:
        raise UserError("a benchmark needs a height, a width, a batch and repeats of at least 1")
    network(case)


def parse_size(size: str) -> tuple[int, int]:
    """Height and width of `HEIGHTxWIDTH`."""
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", size)
    height, width = map(int, match.groups()) if match else (0, 0)
    if min(height, width) < 2:
        raise UserError(f"'{size}' is not a size; write HEIGHTxWIDTH, for example 256x256")
    return height, width


def network(case: Case) -> nn.Module:
    """The Linen module of a case, which computes in bfloat16 for `bf16` and in float32 otherwise."""
    return create_model(
        case.model, **{**case.overrides, "dtype": jnp.bfloat16 if case.precision == "bf16" else jnp.float32}
    )


def random_parameters(model: nn.Module) -> Any:
    """Float32 parameters, the same in every process, with which every path of the network shows in its output.

    A fresh network hides faults: its residual scales are zero. Here kernels keep the variance of what they multiply
    (normal, divided by the root of the number of inputs), biases are small, `AROUND_ONE` are, and all other vectors lie
    around 0.15. With larger ones the hundred residuals of LIR in a row would make something else of every rounding
    error, and no two backends would agree.
    """
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) > 1:
            return rng.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        if path[-1].key == "bias":
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        low, high = (0.5, 1.5) if path[-1].key in AROUND_ONE else (0.05, 0.25)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def images_and_targets(
    case: Case, number: int = 0
) -> tuple[Float[np.ndarray, "b h w c"], Float[np.ndarray, "b h w d"]]:
    """Noise in [0, 1] `[B, H, W, C]` and targets of the output's shape, the same in every process.

    Targets are `-FAR` or `FAR` at random: were they near the output, rounding would decide the sign of some
    differences, and with it the gradient.

    Args:
        case: the row.
        number: 0 for the first input, 1 for the second.
    """
    model = network(case)
    rng = np.random.default_rng(number)
    images = rng.random((case.batch, case.height, case.width, model.input_channels), np.float32)
    output = jax.eval_shape(model.apply, {"params": abstract_params(model)}, images)
    return images, np.where(rng.random(output.shape) < 0.5, np.float32(-FAR), np.float32(FAR))


def device_name(accelerator: str | None = None) -> str:
    """The name of what computes: the accelerator's, or the processor's and the number of cores this process may use."""
    if accelerator is not None:
        return accelerator
    cores = usable_cores()
    return f"{_processor()}, {cores} core{'s' if cores != 1 else ''}"


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
