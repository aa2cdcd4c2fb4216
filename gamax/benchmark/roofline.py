"""How fast the device at hand multiplies and moves, measured: the least time that a row could take.

`python -m gamax.benchmark.roofline PRECISION` prints the figures as one JSON line; `measure_roofline` starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from gamax.benchmark.cost import Cost
from gamax.errors import UserError

SIDES = (1024, 2048, 4096, 8192)
"""Of the matrices that are multiplied; larger ones only where the one before took less than `LONG_ENOUGH`."""
LONG_ENOUGH = 0.25
"""Seconds of one call."""
CALLS = 10
"""The best of so many counts: whatever disturbs the machine makes it slower."""
SHORTEST = 0.01
"""Seconds that are timed at least, as a GPU answers late: shorter calls are queued one behind the other."""
MOVED_BYTES = 1 << 29
"""Size of the array that is read and written: half a gibibyte, more than caches hold."""

MATMUL_PRECISION = {"fp32-strict": "highest", "tf32": "tensorfloat32", "bf16": "default"}
"""What JAX calls the precision of products in each of a case."""


def measure_roofline(precision: str) -> dict[str, Any]:
    """Measures the device in a fresh process.

    Args:
        precision: `fp32-strict`, `tf32` or `bf16`, as in `gamax.benchmark.case.Case`.

    Returns:
        `flops_per_second` of the best product of two square matrices (a multiply-add is two FLOPs), `bytes_per_second`
        of adding to a large array in place, read and written, `device` and `precision`. Both are what JAX reaches: a
        library with a better matrix product can exceed them.

    """
    command = [sys.executable, "-m", "gamax.benchmark.roofline", precision]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"it ended with code {finished.returncode}"])[-1]
        raise UserError(f"the roofline of this device could not be measured: {reason}")
    return json.loads(finished.stdout.splitlines()[-1])


def floor_ms(cost: Cost, roofline: Mapping[str, Any], median_ms: float) -> dict[str, float]:
    """The least time for the products of a row on a measured device, and which fraction of its time that is.

    The floor by bytes is that of products which each fetch their operands from memory and store their result there. It
    is no bound for a program that keeps results in caches or fuses products, so a fraction may exceed one.

    Args:
        cost: of what was timed: of a training step three times that of the forward pass, as the gradient takes about
            two more.
        roofline: what `measure_roofline` returned.
        median_ms: measured latency, in milliseconds.

    Returns:
        `roofline_flops_ms`, `roofline_bytes_ms`, and `roofline_fraction`: the longer of both over `median_ms`.

    """
    flops_ms = 1e3 * 2 * cost.multiply_adds / roofline["flops_per_second"]
    bytes_ms = 1e3 * cost.product_bytes / roofline["bytes_per_second"]
    return {
        "roofline_flops_ms": flops_ms,
        "roofline_bytes_ms": bytes_ms,
        "roofline_fraction": max(flops_ms, bytes_ms) / median_ms,
    }


def roofline_here(precision: str) -> dict[str, Any]:
    """Measures in this process what `measure_roofline` returns."""
    import jax

    from gamax.benchmark.case import device_name

    if precision not in MATMUL_PRECISION:
        raise UserError(f"unknown precision '{precision}' (valid: {', '.join(MATMUL_PRECISION)})")
    device = jax.devices()[0]
    return {
        "flops_per_second": _flops_per_second(precision),
        "bytes_per_second": _bytes_per_second(),
        "device": device_name(None if device.platform == "cpu" else device.device_kind),
        "precision": precision,
    }


def _flops_per_second(precision: str) -> float:
    import jax
    import jax.numpy as jnp

    multiply = jax.jit(lambda left, right: jnp.matmul(left, right, precision=MATMUL_PRECISION[precision]))
    best = 0.0
    for side in SIDES:
        left, right = jax.random.normal(jax.random.key(0), (2, side, side), "bfloat16" if precision == "bf16" else None)
        seconds = _best_seconds(lambda left=left, right=right: multiply(left, right))
        best = max(best, 2 * side**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
    return best


def _bytes_per_second() -> float:
    import jax
    import jax.numpy as jnp

    # In place, as a fresh result would also measure how the operating system hands out memory.
    add = jax.jit(lambda values: values + 1, donate_argnums=0)
    values = jnp.zeros(MOVED_BYTES // 4, jnp.float32)

    def call() -> Any:
        nonlocal values
        values = add(values)
        return values

    return 2 * MOVED_BYTES / _best_seconds(call)


def _best_seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call, without those that pass until the first of a queue starts and the last is reported."""
    call().block_until_ready()
    queued = 1
    while (first := _seconds(call, queued)) < SHORTEST:
        queued *= 2
    return min(first, *(_seconds(call, queued) for _ in range(CALLS - 1))) / queued


def _seconds(call: Callable[[], Any], queued: int) -> float:
    started = time.perf_counter()
    for _ in range(queued - 1):
        call()
    call().block_until_ready()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(roofline_here(sys.argv[1])))
