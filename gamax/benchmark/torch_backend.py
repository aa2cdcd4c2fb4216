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
from itertools import chain
from typing import Any

import numpy as np

from gamax.benchmark.case import Case, Prepared, device_name, images_and_targets, network, random_parameters
from gamax.benchmark.memory import PEAK_METHOD, peak_of_calls
from gamax.benchmark.torch_networks import make_compilable, torch_network
from gamax.environment import nvidia_driver
from gamax.errors import UserError
from gamax.interop.torch_files import import_torch
from gamax.models.restormer import Restormer

torch = import_torch("a PyTorch backend of the benchmark")

from torch._dynamo.utils import counters  # noqa: E402

MODES = {"torch-compile": "default", "torch-compile-max-autotune": "max-autotune"}
"""Of `torch.compile`, for the backends that compile."""

COUNTER = (
    "most bytes that PyTorch's allocator had handed out at once in the warm-up and timed calls, for compiled networks "
    "also in the first call after compilation, which records CUDA graphs"
)

_LAYOUTS = {"torch-eager": torch.contiguous_format}
"""Memory formats; channels last for all others."""

_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_WARM_UPS = 3
"""Calls before the timed ones. A CUDA graph is recorded earlier, by the first call after the compilation."""


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
    model = network(case)
    if isinstance(model, Restormer) and (case.height % model.size_multiple or case.width % model.size_multiple):
        raise UserError(
            f"Restormer in PyTorch takes sides that {model.size_multiple} divides, not {case.height}x{case.width}"
        )
    layout = _LAYOUTS.get(case.backend, torch.channels_last)
    module = torch_network(model, random_parameters(model)).to(device, memory_format=layout)
    # Without the targets where they are of no use: they would count as memory of the network.
    wanted = 1 if case.task == "infer" else 2
    pairs = [[_tensor(array, device, layout) for array in images_and_targets(case, i)[:wanted]] for i in range(2)]
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
            # Here and not before the next step: gradients that are kept would be there before the timed calls, and so
            # be missing from the memory that these take.
            module.zero_grad(set_to_none=True)
        _wait(device)

    def seconds() -> float:
        started = time.perf_counter()
        compute(0)
        _wait(device)
        elapsed = time.perf_counter() - started
        module.zero_grad(set_to_none=True)
        return elapsed

    cold, warm = (None, None) if mode is None else _compile_seconds(seconds)
    # Replays of a CUDA graph allocate nothing that PyTorch would count, so the peak must hold the call that records it:
    # the first one after the compilation, whose own call ran without a graph. An eager first call must not count, as
    # cuDNN's search takes memory in it; that of a compiled network is over by now.
    if mode is not None:
        _reset_counter(device)
    first = seconds()
    if mode is None:
        _reset_counter(device)
    outputs = {name: _array(value) for name, value in compute(0).items()}
    outputs["output"] = outputs["output"].transpose(0, 2, 3, 1)
    if case.task == "train":
        outputs |= {f"gradient/{name}": _array(value.grad) for name, value in module.named_parameters()}
        optimizer.step()
        module.zero_grad(set_to_none=True)
        outputs["loss_after_update"] = _array(compute(0)["loss"])
        module.zero_grad(set_to_none=True)
    for number in range(_WARM_UPS):
        call(number)

    def peak_memory() -> dict[str, Any]:
        if device.type == "cuda":
            return {
                "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
                "peak_memory_method": COUNTER,
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
            }
        moments = [value for state in optimizer.state.values() for value in state.values()]
        held = chain(module.parameters(), module.buffers(), moments, *pairs)
        return {"peak_memory_bytes": peak_of_calls(sum(x.nbytes for x in held)), "peak_memory_method": PEAK_METHOD}

    facts = {
        "compile_cold_seconds": cold,
        "compile_warm_seconds": warm,
        "first_call_ms": 1e3 * first,
        "device": device_name(torch.cuda.get_device_name(device) if device.type == "cuda" else None),
        "versions": _versions(),
        "driver": nvidia_driver() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "memory_format": str(layout).removeprefix("torch."),
        "compile_mode": mode,
        "autocast": "bfloat16" if case.precision == "bf16" else None,
        # How many graphs could not become CUDA graphs: without these the mode is hardly another.
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"] if mode == "max-autotune" else None,
        "flags": flags,
    }
    return Prepared(call, outputs, facts, peak_memory)


def _pin_precision(precision: str) -> dict[str, Any]:
    """Switches TensorFloat-32 on or off wherever PyTorch asks, and cuDNN's search on; says what it set."""
    # In `bf16` the few products that stay in float32 may round too, as they may in JAX.
    rounds = precision != "fp32-strict"
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
            counters.clear()
            cold = seconds()
            # With TORCHDYNAMO_DISABLE, for one, it runs eagerly and says nothing.
            if not counters["stats"]["unique_graphs"]:
                raise UserError("torch.compile compiled nothing here; is it switched off, as by TORCHDYNAMO_DISABLE?")
            torch.compiler.reset()
            # What follows is the program that is timed.
            counters.clear()
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


def _reset_counter(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _wait(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensor(images: np.ndarray, device: Any, layout: Any) -> Any:
    """`[B, H, W, C]` of NumPy as `[B, C, H, W]` of PyTorch in the memory format `layout`."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device, memory_format=layout)


def _array(tensor: Any) -> np.ndarray:
    """A copy as float32 of NumPy: CUDA graphs write into the same tensors again."""
    return np.array(tensor.detach().float().cpu().numpy())


def _versions() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        # None where it is not installed, which our own networks do without.
        **{name: _version(name) for name in ("spandrel", "spandrel_extra_arches")},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
