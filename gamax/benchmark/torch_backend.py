"""Networks in PyTorch, made ready to be timed: eager in two memory formats, and compiled in two modes.

Each backend is what a careful user of PyTorch would write: the threads that PyTorch chooses for the cores of this
process, cuDNN's search for the fastest convolutions, inference mode, the fused optimizer, one synchronisation a call.
The compiled ones must compile the whole network: with a part left out, PyTorch would run that part eagerly and say
nothing. They take channels last: on one core of a CPU it makes no difference to them (GAMA-IR 81 ms against 82,
NAFNet 32 against 31, small networks at 128x128), and NVIDIA's tensor cores ask for it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gamax.benchmark.case import Case, Prepared, device_name, images_and_targets, network, random_parameters
from gamax.benchmark.memory import PEAK_METHOD, peak_bytes, reset_peak, resident_bytes
from gamax.benchmark.torch_networks import make_compilable, torch_network
from gamax.errors import UserError
from gamax.interop.torch_files import import_torch
from gamax.models.restormer import Restormer

torch = import_torch("a PyTorch backend of the benchmark")

MODES = {"torch-compile": "default", "torch-compile-max-autotune": "max-autotune"}
"""Of `torch.compile`, for the backends that compile."""

_LAYOUTS = {"torch-eager": torch.contiguous_format}
"""Memory formats; channels last for all others."""

_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_WARM_UPS = 3
"""Calls before the timed ones; the third is the first that replays a CUDA graph."""


def prepare(case: Case) -> Prepared:
    """Builds, compiles and warms up the network of a case, with `random_parameters`.

    Compile times are those of one call each, which for `train` is forward and backward pass, and so hold one run of the
    program: cold with an empty cache on disk, warm once more from that cache, after all in memory was forgotten.
    `first_call_ms` is the first call of all in eager mode, and the first one after the compilation in the others. The
    optimizer is not compiled: it is one fused kernel already.

    Raises:
        UserError: if PyTorch or spandrel is not installed, the network or one of its options has no counterpart in
            PyTorch, or the network cannot be compiled.

    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flags = _pin_precision(case.precision)
    resident = resident_bytes()
    model = network(case)
    if isinstance(model, Restormer) and (case.height % model.size_multiple or case.width % model.size_multiple):
        raise UserError(
            f"Restormer in PyTorch takes sides that {model.size_multiple} divides, not {case.height}x{case.width}"
        )
    layout = _LAYOUTS.get(case.backend, torch.channels_last)
    module = torch_network(model, random_parameters(model)).to(device, memory_format=layout)
    pairs = [tuple(_tensor(array, device, layout) for array in images_and_targets(case, number)) for number in (0, 1)]
    mode = MODES.get(case.backend)
    run = module
    if mode is not None:
        make_compilable(module)
        run = torch.compile(module, mode=mode, fullgraph=True, dynamic=False)

    def forward(images: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            return run(images)

    def infer(number: int) -> dict[str, Any]:
        with torch.inference_mode():
            return {"output": forward(pairs[number % 2][0])}

    def differentiate(number: int) -> dict[str, Any]:
        images, targets = pairs[number % 2]
        module.zero_grad(set_to_none=True)
        output = forward(images)
        loss = torch.nn.functional.l1_loss(output, targets)
        loss.backward()
        return {"output": output, "loss": loss}

    compute = infer if case.task == "infer" else differentiate
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, (0.9, 0.9), 1e-8, weight_decay=0, fused=True)

    def call(number: int) -> None:
        compute(number)
        if case.task == "train":
            optimizer.step()
        _wait(device)

    def seconds() -> float:
        started = time.perf_counter()
        compute(0)
        _wait(device)
        return time.perf_counter() - started

    cold, warm = (None, None) if mode is None else _compile_seconds(seconds)
    first = seconds()
    outputs = {name: _array(value) for name, value in compute(0).items()}
    outputs["output"] = outputs["output"].transpose(0, 2, 3, 1)
    if case.task == "train":
        outputs |= {f"gradient/{name}": _array(value.grad) for name, value in module.named_parameters()}
    module.zero_grad(set_to_none=True)

    # The peak holds the warm-up calls too, which are like the timed ones.
    reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(_WARM_UPS):
        call(number)

    def peak_memory() -> dict[str, Any]:
        process = {"peak_process_bytes": peak_bytes(), "resident_before_bytes": resident}
        if device.type == "cuda":
            return {
                "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
                "peak_memory_method": "most bytes that PyTorch's allocator had handed out at once in the timed calls",
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
                **process,
            }
        return {"peak_memory_bytes": peak_bytes() - resident, "peak_memory_method": PEAK_METHOD, **process}

    facts = {
        "compile_cold_seconds": cold,
        "compile_warm_seconds": warm,
        "first_call_ms": 1e3 * first,
        "device": device_name(torch.cuda.get_device_name(device) if device.type == "cuda" else None),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "memory_format": str(layout).removeprefix("torch."),
        "compile_mode": mode,
        "autocast": "bfloat16" if case.precision == "bf16" else None,
        **flags,
    }
    return Prepared(call, outputs, facts, peak_memory)


def _pin_precision(precision: str) -> dict[str, Any]:
    """Switches TensorFloat-32 on or off wherever PyTorch asks, and cuDNN's search on; says what it set."""
    rounds = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = rounds
    torch.backends.cudnn.allow_tf32 = rounds
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high" if rounds else "highest")
    return {
        "cuda.matmul.allow_tf32": rounds,
        "cudnn.allow_tf32": rounds,
        "cudnn.benchmark": True,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _compile_seconds(seconds: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a first call with an empty cache on disk, and of one from that cache alone."""
    with _empty_compile_cache():
        try:
            torch.compiler.reset()
            cold = seconds()
            torch.compiler.reset()
            return cold, seconds()
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"torch.compile cannot compile this network here: {reason}") from error


@contextmanager
def _empty_compile_cache() -> Iterator[None]:
    """A cache folder of its own for the compiler; what is compiled stays in memory when it is gone."""
    before = os.environ.get(_CACHE_FOLDER)
    with tempfile.TemporaryDirectory(prefix="gamax-inductor-") as folder:
        os.environ[_CACHE_FOLDER] = folder
        try:
            yield
        finally:
            os.environ.pop(_CACHE_FOLDER)
            if before is not None:
                os.environ[_CACHE_FOLDER] = before


def _wait(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensor(images: np.ndarray, device: Any, layout: Any) -> Any:
    """`[B, H, W, C]` of NumPy as `[B, C, H, W]` of PyTorch in the memory format `layout`."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device, memory_format=layout)


def _array(tensor: Any) -> np.ndarray:
    """A copy as float32 of NumPy: CUDA graphs write into the same tensors again."""
    return np.array(tensor.detach().float().cpu().numpy())


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        "cuda": torch.version.cuda,
    }
