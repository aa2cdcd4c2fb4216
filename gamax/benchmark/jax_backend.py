"""The rows of JAX: the program that restores images, and a training step with donated state."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache

from gamax.benchmark import memory
from gamax.benchmark.case import (
    Case,
    Prepared,
    device_name,
    images_and_targets,
    network,
    random_parameters,
    usable_cores,
)
from gamax.benchmark.roofline import MATMUL_PRECISION
from gamax.environment import nvidia_driver, versions
from gamax.evaluation.restorer import apply_network
from gamax.interop.key_maps import KeyMap, find_key_map
from gamax.interop.torch_weights import export_tensors

WARM_UP_CALLS = 2
COUNTER = "device counter since the start of the process, compilation included"
BETA = 0.9
"""Of both moments of AdamW."""


def prepare(case: Case) -> Prepared:
    """Compiles a case, cold and warm, runs it for the first time, and keeps its outputs for parity."""
    # Where it takes most of an accelerator at once, workers of other rows find none.
    preallocate = os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    model = network(case)
    pairs = [images_and_targets(case, number) for number in range(2)]
    params = random_parameters(model)
    with jax.default_matmul_precision(MATMUL_PRECISION[case.precision]):
        make = _prepare_inference if case.task == "infer" else _prepare_training
        call, outputs, facts, compiled, held = make(model, params, pairs)
        # Read back where it was compiled, not repeated.
        precision = jax.config.jax_default_matmul_precision  # pyrefly: ignore[missing-attribute]
    for number in range(WARM_UP_CALLS):
        call(number)
    return Prepared(
        call=call,
        outputs=outputs,
        facts={
            **facts,
            **_xla_costs(compiled),
            "device": device_name(None if device.platform == "cpu" else device.device_kind),
            "versions": versions(),
            "driver": None if device.platform == "cpu" else nvidia_driver(),
            # Of an accelerator it names the libraries that XLA was built for.
            "platform_version": device.client.platform_version,
            # XLA's CPU client takes one for each core, unless this variable says otherwise.
            "threads": int(os.environ.get("NPROC", usable_cores())),
            "memory_format": "channels_last",
            "flags": {
                "jax_default_matmul_precision": precision,
                "XLA_PYTHON_CLIENT_PREALLOCATE": preallocate,
            },
        },
        peak_memory=partial(_memory, compiled, device, held),
    )


def _prepare_inference(model: nn.Module, params: Any, pairs: list[Any]) -> tuple[Any, ...]:
    params = jax.device_put(params)
    images = [jax.device_put(images) for images, _ in pairs]
    compiled, facts = _compile(lambda: apply_network.lower(model, params, images[0]))

    def call(number: int) -> Any:
        return compiled(params, images[number % 2]).block_until_ready()

    output, first_call_ms = _timed(partial(call, 0))
    facts |= {"first_call_ms": first_call_ms}
    return call, {"output": np.asarray(output)}, facts, compiled, _bytes((params, images))


def _prepare_training(model: nn.Module, params: Any, pairs: list[Any]) -> tuple[Any, ...]:
    optimizer = optax.adamw(1e-3, b1=BETA, b2=BETA, eps=1e-8, weight_decay=0.0)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = state

        def loss(params: Any) -> jax.Array:
            output: Any = model.apply({"params": params}, images)
            return jnp.abs(output - targets).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    inputs = [jax.device_put(pair) for pair in pairs]
    state = jax.device_put((params, optimizer.init(params)))
    compiled, facts = _compile(lambda: step.lower(state, *inputs[0]))
    output = np.asarray(apply_network(model, state[0], inputs[0][0]))

    def call(number: int) -> Any:
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, *inputs[number % 2]))
        return loss

    loss, first_call_ms = _timed(partial(call, 0))
    # The first moment after one update is the gradient times 1 - beta: that of the very step that is timed.
    moment = optax.tree.get(state[1], "mu")
    gradient = jax.tree.map(lambda value: np.asarray(value) / np.float32(1 - BETA), moment)
    outputs = {"output": output, "loss": np.asarray(loss), **_gradients(model, gradient)}
    # A step returns the loss from before its update, so the second one has that after one update.
    outputs["loss_after_update"] = np.asarray(call(0))
    return call, outputs, {**facts, "first_call_ms": first_call_ms}, compiled, _bytes((state, inputs))


def _bytes(arrays: Any) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(arrays))


def _gradients(model: nn.Module, gradient: Any) -> dict[str, np.ndarray]:
    """Under the names and in the shapes of PyTorch, so that both can be compared."""
    # Networks that only we have written keep the names of their paths.
    names = find_key_map(model) or KeyMap(renamings=())
    return {f"gradient/{name}": value for name, value in export_tensors(gradient, names).items()}


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returned, and the milliseconds that it took."""
    started = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - started)


def _compile(lower: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """The program compiled with an empty cache on disk, and how long that takes, tracing included.

    Warm is the same once more with the cache on disk, after all that is in memory has been forgotten.
    """
    jax.clear_caches()
    with _empty_cache():
        started = time.perf_counter()
        lowered = lower()
        traced = time.perf_counter()
        compiled = lowered.compile()
        cold = time.perf_counter()
        jax.clear_caches()
        gc.collect()
        again = time.perf_counter()
        lower().compile()
        warm = time.perf_counter()
    return compiled, {
        "trace_seconds": traced - started,
        "compile_cold_seconds": cold - started,
        "compile_warm_seconds": warm - again,
    }


@contextmanager
def _empty_cache() -> Iterator[None]:
    """An empty cache for programs on disk, whatever cache the user has, that takes even small ones."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            _set(settings)
            yield
        finally:
            _set(before)


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # It reads its settings at its first use only.
    compilation_cache.reset_cache()


def _xla_costs(compiled: Any) -> dict[str, Any]:
    """What XLA believes the program costs; its figures are not stable across versions and kinds of device."""
    analysis = compiled.cost_analysis() or {}
    return {"xla_flops": analysis.get("flops"), "xla_bytes": analysis.get("bytes accessed")}


def _memory(compiled: Any, device: Any, held: int) -> dict[str, Any]:
    """The peak on the device where it is counted, else that of the process; beside it what the program plans."""
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    # First: asking for the plan takes memory.
    peak = counted or memory.peak_of_calls(held)
    return {
        "peak_memory_bytes": peak,
        "peak_memory_method": COUNTER if counted else memory.PEAK_METHOD,
        "program_bytes": program_bytes(compiled),
    }


def program_bytes(compiled: Any) -> int:
    """Bytes of arguments, results and temporaries that a compiled program plans for, of one device."""
    plan = compiled.memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
