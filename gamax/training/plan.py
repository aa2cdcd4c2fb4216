"""What a training step needs on devices that need not be there: it is compiled for them, and nothing is run."""

from __future__ import annotations

import importlib.util
import os
import time
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from gamax.benchmark.cost import multiply_adds
from gamax.config import Experiment, Stage
from gamax.data.datasets import check_channels
from gamax.errors import UserError
from gamax.models import create_model
from gamax.training.program import TooLargeError, compile_step, device_memory, state_and_gradient_bytes
from gamax.training.sharding import make_mesh, mesh_shape, rows_divisible
from gamax.training.state import abstract_state
from gamax.training.step import make_network_loss, network_keys

MEMORY_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
"""Of one chip of each generation of TPU, as Google publishes it."""
# The compiler is part of a library for machines with TPUs. It would ask the cloud which these are and complain that
# nobody answers; any name of a kind and of a host will do. And it would let one process at a time use it.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def planned_devices(topology: str | None) -> tuple[list[Any], int]:
    """The devices to plan for, and the bytes of memory that each has.

    Args:
        topology: a TPU slice, which need not be there: the generation and the chips along each axis, `v5e:4x4` or
            `v5p:2x2x2`. None stands for the devices that are there.

    Raises:
        UserError: if there is no such slice, or the TPU compiler is not installed.

    """
    if topology is None:
        return jax.devices(), device_memory(jax.local_devices()[0])
    generation = topology.split(":")[0]
    if generation not in MEMORY_GIB:
        raise UserError(f"'{topology}' is not a TPU slice; write {', '.join(MEMORY_GIB)}, ':' and chips, as in v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for a TPU needs its compiler (no TPU): pip install 'gamax[tpu]'")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    # JAX takes the two cores of these chips for one device.
    options = {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    try:
        devices = topologies.get_topology_desc(topology_name=topology, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"the TPU compiler knows no slice '{topology}' ({error})") from error
    return list(devices), MEMORY_GIB[generation] * 2**30


def planned_mesh(
    experiment: Experiment,
    stage: Stage,
    requested: Literal["auto"] | tuple[int, int, int],
    devices: list[Any],
    device_bytes: int,
) -> Mesh:
    """The mesh of a stage over the devices from `planned_devices`; `requested` is a value of `training.mesh`.

    Raises:
        UserError: if the sizes do not use exactly these devices, or the batch cannot be divided over them.

    """
    model = _model(experiment)
    state_bytes = state_and_gradient_bytes(model, experiment, abstract_state(model, experiment))
    sizes = {"state_bytes": state_bytes, "device_bytes": device_bytes}
    shape = mesh_shape(requested, len(devices), stage, **sizes, divisible=rows_divisible(model))
    return make_mesh(shape, devices)


def plan_step(experiment: Experiment, stage: Stage, mesh: Mesh, device_bytes: int) -> dict[str, Any]:
    """Compiles the training step of one stage, and says what each device needs for it.

    Args:
        experiment: the checked configuration; the dataset need not be there, and is taken to fit the network.
        stage: sizes of the crops and of the batch.
        mesh: from `planned_mesh`.
        device_bytes: memory of each device.

    Returns:
        Values that JSON can hold, bytes and operations of one device. `flops` and `bytes_accessed` are the compiler's,
        which counts the bodies of loops once; so do `collectives` where it does not say how often a loop runs, as that
        of TPUs does not. `flops_of_products` is two for every one of `step_multiply_adds`. If the step does not fit,
        `refused` is the sentence that says so, and there are no figures of the compiler.

    Raises:
        UserError: if `training.gradient_accumulation` does not divide the batch.

    """
    chosen, model = experiment.model, _model(experiment)
    state = abstract_state(model, experiment)
    size = stage.patch_size
    products = step_multiply_adds(model, state.params, size, stage.batch_size)
    # Where rows are not shared, the devices along them all do the same.
    workers = mesh.size // (1 if rows_divisible(model) else mesh.shape["rows"])
    row: dict[str, Any] = {
        "model": {"name": chosen.name, "overrides": chosen.overrides, "dtype": chosen.dtype},
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "device_bytes": device_bytes,
        "mesh": dict(mesh.shape),
        "batch_size": stage.batch_size,
        "patch_size": size,
        "flops_of_products": 2 * products / workers,
    }
    crops = {name: (channels, jnp.uint8) for name, channels in _crop_channels(experiment, model).items()}
    if experiment.data.prior:
        crops["input"] = (model.input_channels, jnp.uint16)
    started = time.monotonic()
    try:
        program = compile_step(model, experiment, stage, mesh, state, crops, device_bytes=device_bytes)
    except TooLargeError as error:
        return row | {"fits": False, "refused": str(error), "compile_seconds": time.monotonic() - started}
    seconds = time.monotonic() - started
    compiled: Any = program.step
    memory = compiled.memory_analysis()
    parts = {
        "state_and_batch_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    return row | {
        "gradient_accumulation": program.gradient_accumulation,
        **parts,
        "fits": sum(parts.values()) <= device_bytes,
        "refused": None,
        "flops": program.flops,
        "bytes_accessed": compiled.cost_analysis()["bytes accessed"],
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in program.collectives.items()},
        "unplanned": sorted(program.unplanned),
        "compile_seconds": seconds,
    }


def step_multiply_adds(model: nn.Module, params: Any, patch_size: int, batch_size: int) -> int:
    """Multiply-adds of the products in one training step: three times those of the loss, for its gradient.

    The loss is that of training, where a network may do other things than in a forward pass. Frozen parts count as the
    others do, which is too much for what has no gradient, and what `remat` computes again does not count.

    Args:
        model: the network.
        params: its parameters, or their shapes.
        patch_size: side of the crops in pixels.
        batch_size: crops of all devices together.
    """
    if hasattr(model, "scan"):
        # The same counts from a program that is traced faster.
        model = model.clone(scan=True)
    loss = make_network_loss(model, lambda restored, targets: jnp.mean(restored - targets))
    inputs, targets = (
        jax.ShapeDtypeStruct((batch_size, patch_size, patch_size, channels), jnp.float32)
        for channels in (model.input_channels, min(3, model.input_channels))
    )
    keys = jax.eval_shape(lambda: network_keys(jax.random.key(0), batch_size))
    # The second half of training, when all parts of a network are at work.
    return 3 * multiply_adds(lambda *arguments: loss(*arguments, 0.5), params, inputs, targets, keys)


def _model(experiment: Experiment) -> nn.Module:
    chosen = experiment.model
    model = create_model(chosen.name, **chosen.overrides, dtype=jnp.dtype(chosen.dtype))
    check_channels(model, experiment.data, _crop_channels(experiment, model))
    return model


def _crop_channels(experiment: Experiment, model: nn.Module) -> dict[str, int]:
    """The channels of the crops that the network is trained on; of pairs those that it takes."""
    if experiment.data.degradations:
        return {"target": 3}
    return {"target": min(3, model.input_channels), "input": model.input_channels}
