"""Measures what `scan` and `remat` cost and save, for `docs/results/scanned_blocks.md`: `python docs/measure_scan.py`.

Prints a row of the table for each network, program and way to run it; every row is a process of its own, and the ways
take turns so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from typing import Any

NETWORKS = ("nafnet_gopro_w32", "restormer")
WAYS = ({}, {"scan": True}, {"remat": True}, {"scan": True, "remat": True})
ROUNDS, SIZE = 2, 128


def measure(name: str, program: str, options: dict[str, bool]) -> dict[str, float]:
    """Seconds to trace and lower, to compile, and milliseconds to run one crop of `SIZE` pixels a side."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gamax.models import abstract_params, create_model

    model, rng = create_model(name, **options), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype), abstract_params(model))
    images = jnp.asarray(rng.random((1, SIZE, SIZE, 3)), jnp.float32)

    def restore(params: Any, images: jax.Array) -> Any:
        return model.apply({"params": params}, images)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return jnp.abs(restore(params, images)).mean()

    started = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(loss) if program == "gradient" else restore).lower(params, images)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    runs = []
    for _ in range(6):
        before = time.perf_counter()
        jax.block_until_ready(compiled(params, images))
        runs.append(1e3 * (time.perf_counter() - before))
    memory: Any = compiled.memory_analysis()
    return {
        "trace": traced - started,
        "compile": done - traced,
        "run": statistics.median(runs[1:]),
        "memory": memory.temp_size_in_bytes / 1e6,
    }


def main() -> None:
    """Measures all rows and prints medians."""
    rows: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name, program, way in itertools.product(NETWORKS, ("forward", "gradient"), WAYS):
            if program == "forward" and "remat" in way:
                continue
            case = json.dumps([name, program, way])
            command = [sys.executable, __file__, case]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.setdefault((name, program, " + ".join(way) or "unrolled"), []).append(json.loads(output))
    print("| network | program | blocks | trace s | compile s | run ms | temporary MB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for key, results in rows.items():
        medians = [
            statistics.median(result[figure] for result in results) for figure in ("trace", "compile", "run", "memory")
        ]
        print(
            f"| {' | '.join(key)} | "
            + " | ".join(f"{value:.{digits}f}" for value, digits in zip(medians, (2, 2, 0, 0), strict=True))
            + " |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
