"""Latency and memory of one network at one size, measured in a process of its own.

`python -m gamax.benchmark.latency '{"model": "gama_ir_s", ...}'` prints one JSON line; `measure` starts it.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gamax.errors import UserError


@dataclass(frozen=True)
class Case:
    """One row of the benchmark."""

    model: str
    height: int
    width: int
    batch: int = 1
    precision: Literal["fp32-strict", "tf32", "bf16"] = "fp32-strict"
    """`fp32-strict` computes products in full float32; `tf32` lets the device round their inputs to TensorFloat-32
    where it can; `bf16` computes in bfloat16 with float32 parameters."""
    repeats: int = 20


def measure(case: Case) -> dict[str, Any]:
    """Runs one case in a fresh process, so that no allocator and no cache is shared, and returns its row."""
    command = [sys.executable, "-m", "gamax.benchmark.latency", json.dumps(dataclasses.asdict(case))]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = finished.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"the benchmark of {case.model} at {case.height}x{case.width} failed: {reason[0]}")
    return json.loads(finished.stdout.splitlines()[-1])


def run_case(case: Case) -> dict[str, Any]:
    """Measures in this process: compile time, first call, latency over `repeats`, memory, counts."""
    import jax
    import jax.numpy as jnp

    from gamax.benchmark.cost import model_multiply_adds
    from gamax.environment import environment, versions
    from gamax.evaluation.restorer import apply_network
    from gamax.models import abstract_params, count_parameters, create_model

    matmul = {"fp32-strict": "highest", "tf32": "tensorfloat32", "bf16": "default"}[case.precision]
    jax.config.update("jax_default_matmul_precision", matmul)
    model = create_model(case.model, dtype=jnp.bfloat16 if case.precision == "bf16" else jnp.float32)
    abstract = abstract_params(model)
    # Trained values are not needed; zeros or denormal numbers would change the time on some devices.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype), abstract)
    shape = (case.batch, case.height, case.width, model.input_channels)
    inputs = [jax.device_put(rng.random(shape, np.float32)) for _ in range(2)]

    started = time.perf_counter()
    # The very program that restores images.
    lowered = apply_network.lower(model, params, inputs[0])
    traced = time.perf_counter()
    compiled = lowered.compile()
    finished = time.perf_counter()

    def call(index: int) -> float:
        before = time.perf_counter()
        jax.block_until_ready(compiled(params, inputs[index % 2]))
        return 1e3 * (time.perf_counter() - before)

    first = call(0)
    for index in range(2):
        call(index)
    latencies = [call(index) for index in range(case.repeats)]
    p10, median, p90 = np.percentile(latencies, [10, 50, 90])
    return {
        **dataclasses.asdict(case),
        "backend": "jax",
        "trace_seconds": traced - started,
        "compile_seconds": finished - traced,
        "first_call_ms": first,
        "latency_ms_median": median,
        "latency_ms_p10": p10,
        "latency_ms_p90": p90,
        "images_per_second": 1e3 * case.batch / median,
        **_memory(compiled, jax.devices()[0]),
        "parameters": count_parameters(abstract),
        "multiply_adds": model_multiply_adds(model, abstract, case.height, case.width, case.batch),
        "versions": versions(),
        "environment": environment(),
    }


def _memory(compiled: Any, device: Any) -> dict[str, Any]:
    """Peak memory where the device counts it; else the sizes in the compiled program. Host peak beside it."""
    plan = compiled.memory_analysis()
    planned = (
        plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
    )
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_memory_bytes": counted or planned,
        "peak_memory_method": "device counter" if counted else "arguments + output + temporaries of the program",
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte,
    }


if __name__ == "__main__":
    print(json.dumps(run_case(Case(**json.loads(sys.argv[1])))))
