"""A worker of the benchmark whose PyTorch backends are stand-ins: one of them honest, each other with a fault."""

import os
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

from gamax.benchmark import case as cases
from gamax.benchmark import latency

FAULTS = {"torch-eager-channels-last": "other weights", "torch-compile": "dies", "torch-compile-max-autotune": "raises"}


def prepare(case: cases.Case) -> cases.Prepared:
    # Libraries print what they like.
    print("not an answer", flush=True)
    fault = FAULTS.get(case.backend)
    images, _ = cases.images_and_targets(case)
    outputs = {"output": images + np.float32(0.5)}
    if fault == "other weights":
        outputs["output"][0, 0, 0, 0] += 1e-3
    Path(tempfile.mkdtemp(), "cache").touch()
    if fault == "raises":
        raise RuntimeError("no kernel for this\n  and much about it")
    calls = []

    def call(number: int) -> None:
        calls.append(number)
        time.sleep(1e-3)
        if fault == "dies" and len(calls) > 2:
            os.kill(os.getpid(), signal.SIGKILL)

    facts = {
        **{"compile_cold_seconds": None, "compile_warm_seconds": None, "first_call_ms": 1.0, "threads": 1},
        **{"device": "a stand-in", "versions": {"stand-in": "0"}, "memory_format": "contiguous_format"},
    }
    return cases.Prepared(call, outputs, facts, lambda: {"peak_memory_bytes": 1, "peak_memory_method": "none"})


for name in ("gamax.benchmark.jax_backend", "gamax.benchmark.torch_backend"):
    backend = types.ModuleType(name)
    backend.prepare = prepare
    sys.modules[name] = backend
latency.serve()
