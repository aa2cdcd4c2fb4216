"""The compiled training step of one stage, and what the compiler says of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from gamax.config import Experiment, Stage, stages
from gamax.console import say
from gamax.errors import UserError
from gamax.training.sharding import (
    batch_sharding,
    make_mesh,
    mesh_shape,
    planned_collectives,
    replicated,
    rows_divisible,
    state_sharding,
)
from gamax.training.state import TrainState, frozen_parts, split_params
from gamax.training.step import make_train_step

HEADROOM = 0.9
"""The part of a device's memory that a step may plan with; the rest is for what the compiler does not see."""


class TooLargeError(UserError):
    """A step needs more memory than a device has, however the batch is divided."""


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A training step compiled for the shapes of one stage and for one mesh."""

    stage: Stage
    mesh: Mesh
    gradient_accumulation: int
    step: Callable[..., Any]
    """`step(state, batch) -> (state, metrics)`; the state is donated."""
    state_shardings: Any
    state_bytes: int
    """Of the training state on one device."""
    temporary_bytes: int
    """That one device needs beside the state and the batch while it computes."""
    flops: float
    """Of one device, as the compiler counts: bodies of loops once."""
    collectives: dict[str, tuple[int, int]]
    """Exchanges between devices in a step: how often each kind is made, and the bytes of its results."""
    planned: set[str]
    """The kinds that there should be."""

    @property
    def images(self) -> NamedSharding:
        """Sharding of the batch."""
        return batch_sharding(self.mesh)

    @property
    def bytes_per_device(self) -> int:
        """Memory that a step needs on each device."""
        return self.state_bytes + self.temporary_bytes

    @property
    def unplanned(self) -> set[str]:
        """Kinds of exchange that there should not be."""
        return set(self.collectives) - self.planned


def state_and_gradient_bytes(model: nn.Module, experiment: Experiment, abstract_state: TrainState) -> int:
    """Bytes of a training state and of one gradient, which is as large as the trained parameters."""
    trained, _ = split_params(abstract_state.params, frozen_parts(model, experiment.training))
    return _bytes(abstract_state) + _bytes(trained)


def stage_meshes(
    model: nn.Module, experiment: Experiment, abstract_state: TrainState, memory: int
) -> dict[Stage, Mesh]:
    """The mesh of every stage over all devices; `UserError` if a batch cannot be divided over them.

    `memory` is that of one device in bytes.
    """
    state_bytes = state_and_gradient_bytes(model, experiment, abstract_state)
    requested, devices = experiment.training.mesh, jax.device_count()
    meshes: dict[Stage, Mesh] = {}
    for stage in stages(experiment):
        sizes = {"state_bytes": state_bytes, "device_bytes": memory}
        shape = mesh_shape(requested, devices, stage, **sizes, divisible=rows_divisible(model))
        first = next(iter(meshes.values()), None)
        # All in one order of the devices, so that the state needs not move from stage to stage.
        meshes[stage] = first.update(devices=first.devices.reshape(shape)) if first else make_mesh(shape)
    return meshes


def step_programs(
    model: nn.Module,
    experiment: Experiment,
    meshes: Mapping[Stage, Mesh],
    abstract_state: TrainState,
    crops: Mapping[str, tuple[int, DTypeLike]],
    memory: int,
) -> Callable[[Stage], StepProgram]:
    """The compiled step of every stage; each is compiled when it is first asked for, and described in a line."""

    @functools.cache
    def program(stage: Stage) -> StepProgram:
        started = time.monotonic()
        compiled = compile_step(model, experiment, stage, meshes[stage], abstract_state, crops, device_bytes=memory)
        for line in describe(compiled, time.monotonic() - started, memory):
            say(line)
        if compiled.mesh.shape["rows"] > 1 and not rows_divisible(model):
            name = type(model).__name__
            say(
                f"warning: {name} cuts images into patches, so the devices along rows all compute the same; "
                "put them along data or fsdp of training.mesh"
            )
        return compiled

    return program


def describe(program: StepProgram, seconds: float, device_bytes: int) -> list[str]:
    """What a run says at its start: the mesh, the bytes on each device, and what devices exchange in one step."""
    stage, mesh = program.stage, program.mesh
    parts = f" in {program.gradient_accumulation} parts" if program.gradient_accumulation > 1 else ""
    exchanges = [f"{count} {kind} ({size / 2**20:.1f} MiB)" for kind, (count, size) in program.collectives.items()]
    lines = [
        f"step of {stage.batch_size} crops of {stage.patch_size} pixels{parts}, compiled in {seconds:.0f} s: "
        f"{mesh.size} device(s) as {', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}; on each "
        f"{program.state_bytes / 2**20:,.0f} MiB of state, {program.temporary_bytes / 2**20:,.0f} MiB of temporaries, "
        f"of {device_bytes / 2**30:.1f} GiB"
    ]
    if mesh.size > 1:
        lines.append(f"exchanged between devices in a step: {', '.join(exchanges) or 'nothing'}")
    if program.unplanned:
        lines.append(f"warning: {', '.join(sorted(program.unplanned))} is not what this mesh is meant to exchange")
    return lines


def compile_step(
    model: nn.Module,
    experiment: Experiment,
    stage: Stage,
    mesh: Mesh,
    abstract_state: TrainState,
    crops: Mapping[str, tuple[int, DTypeLike]],
    *,
    device_bytes: int | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> StepProgram:
    """Compiles the training step; nothing is computed or allocated.

    Args:
        model: the network.
        experiment: its `training.gradient_accumulation` may be `auto`: the fewest parts that fit `device_bytes`.
        stage: sizes of the crops and of the batch.
        mesh: devices that exist, or those of a topology that is only planned.
        abstract_state: shapes of the training state.
        crops: channels and type of the images in a batch, `target` and for paired data `input`.
        device_bytes: memory of one device; None if nothing is to be checked against it.
        compiler_options: for XLA.

    Raises:
        TooLargeError: if the step does not fit the memory however the batch is divided.
        UserError: if the batch cannot be divided as asked for.

    """
    shardings = state_sharding(mesh, abstract_state)
    state = jax.tree.map(_with_sharding, abstract_state, shardings)
    shape = (stage.batch_size, stage.patch_size, stage.patch_size)
    batch = {
        name: jax.ShapeDtypeStruct((*shape, channels), dtype, sharding=batch_sharding(mesh))
        for name, (channels, dtype) in crops.items()
    }
    state_bytes = _bytes(jax.tree.map(_shard, abstract_state, shardings))
    requested = experiment.training.gradient_accumulation
    divisions = _divisions(stage, mesh)
    if requested != "auto" and requested not in divisions:
        raise UserError(
            f"training.gradient_accumulation {requested} does not divide the {divisions[-1]} crop(s) that each device "
            f"has of a batch of {stage.batch_size}; use {' or '.join(map(str, divisions))}, or 'auto'"
        )
    choices = divisions if requested == "auto" else [requested]
    needed = 0
    while choices:
        parts = choices.pop(0)
        train_step = jax.jit(
            make_train_step(model, experiment, mesh=mesh, gradient_accumulation=parts),
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
        )
        try:
            compiled = train_step.lower(state, batch).compile(compiler_options)
        except jax.errors.JaxRuntimeError as error:
            # A TPU's compiler refuses a program that is larger than the memory.
            refused = _refused_bytes(str(error))
            if refused is None or device_bytes is None:
                raise
            temporary_bytes = refused
        else:
            memory = compiled.memory_analysis()
            program = StepProgram(
                stage=stage,
                mesh=mesh,
                gradient_accumulation=parts,
                step=compiled,
                state_shardings=shardings,
                state_bytes=state_bytes,
                temporary_bytes=memory.temp_size_in_bytes if memory else 0,
                flops=(compiled.cost_analysis() or {}).get("flops", math.nan),
                collectives=collectives(compiled.as_text() or ""),
                planned=planned_collectives(mesh, model, mixes=experiment.data.mixup > 0),
            )
            if requested != "auto" or device_bytes is None or program.bytes_per_device <= HEADROOM * device_bytes:
                return program
            temporary_bytes = program.temporary_bytes
        needed = state_bytes + temporary_bytes
        # Temporary memory falls about as the parts grow: those that cannot fit are not tried.
        room = HEADROOM * device_bytes - state_bytes
        least = parts * temporary_bytes / room if room > 0 else math.inf
        choices = [count for count in choices if count >= least] or choices[-1:]
    divided = "one crop after the other" if requested == "auto" else f"in {requested} part(s)"
    scan = "scan=true " if hasattr(getattr(model, "network", model), "scan") else ""
    raise TooLargeError(
        f"a step with crops of {stage.patch_size} pixels needs {needed / 2**30:.1f} GiB on each device, {divided}, of "
        f"{(device_bytes or 0) / 2**30:.1f}; choose a smaller data.patch_size, more devices, "
        f"{'' if requested == 'auto' else 'training.gradient_accumulation auto, '}"
        f"--model.overrides {scan}remat=true or --model.dtype bfloat16"
    )


def _refused_bytes(message: str) -> int | None:
    """The memory that the compiler says a program would take, if that is why it refused it."""
    size = re.search(r"(\d+(?:\.\d+)?)([KMG])\b", message)
    if "RESOURCE_EXHAUSTED" not in message or size is None:
        return None
    return int(float(size[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[size[2]])


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shard(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _divisions(stage: Stage, mesh: Mesh) -> list[int]:
    """Numbers of parts in which every device has as many crops."""
    per_device = stage.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    return [parts for parts in range(1, per_device + 1) if per_device % parts == 0]


def device_memory(device: Any) -> int:
    """Bytes of memory that a device may use; of a CPU, its share of the memory of the machine."""
    stats = device.memory_stats()
    if stats and stats.get("bytes_limit"):
        return stats["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // jax.local_device_count()


_COLLECTIVE = re.compile(
    r"^ *(?:ROOT )?%?\S+ = (?P<shape>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|"
    r"ragged-all-to-all|collective-broadcast)(?:-done)?\((?:.*?, channel_id=(?P<channel>\d+))?"
)
_SCATTERING_FUSION = re.compile(r"^ *%all-reduce-scatter\S* \(.*\) -> (?P<shape>.*) {$")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|branch_computations)=\{?(%[^\s,}]+(?:, %[^\s,}]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"(?P<type>[a-z]+(?P<bits>\d+)[a-z0-9]*|pred)\[(?P<sizes>[\d,]*)\]")


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Kinds of exchange in the text of a compiled program: how often each is made, and the bytes of its results.

    Those in a loop count as often as it runs, where the compiler knows that. An exchange that runs beside computation
    counts where it is done, as there the result stands alone. A TPU's compiler may also cut one up and fuse the pieces
    into computations: the pieces have the same channel and count once. It writes a reduce-scatter as a fusion of an
    all-reduce with slices.
    """
    found: dict[tuple[str, str], tuple[int, int]] = {}
    runs = _runs(program)
    scattered, times = None, 1
    for number, line in enumerate(program.splitlines()):
        if line.endswith("{"):
            fusion = _SCATTERING_FUSION.match(line)
            scattered = fusion["shape"] if fusion else None
            times = runs[_name(line)]
        elif match := _COLLECTIVE.match(line):
            kind, shape = ("reduce-scatter", scattered) if scattered else (match["kind"], match["shape"])
            size = sum(map(_array_bytes, _ARRAY.finditer(shape)))
            found[kind, match["channel"] or f"line {number}"] = (times, times * size)
    kinds = sorted({kind for kind, _ in found})
    totals = {kind: [figures for (other, _), figures in found.items() if other == kind] for kind in kinds}
    return {kind: (sum(count for count, _ in rows), sum(size for _, size in rows)) for kind, rows in totals.items()}


def _runs(program: str) -> Counter[str]:
    """How often each computation of a program runs; a program is written callees first."""
    bodies: list[tuple[str, list[str]]] = []
    for line in program.splitlines():
        if line.endswith("{"):
            bodies.append((_name(line), []))
        elif bodies:
            bodies[-1][1].append(line)
    runs: Counter[str] = Counter()
    for name, lines in reversed(bodies):
        # What nothing calls is where the program begins.
        runs[name] = runs[name] or 1
        for line in lines:
            trips = _TRIPS.search(line)
            for called in _CALLED.findall(line):
                for callee in called.replace("%", "").split(", "):
                    runs[callee] += runs[name] * (int(trips[1]) if trips else 1)
    return runs


def _name(line: str) -> str:
    return line.removeprefix("ENTRY ").lstrip().removeprefix("%").split(" ")[0]


def _array_bytes(array: re.Match[str]) -> int:
    elements = math.prod(int(size) for size in array["sizes"].split(",") if size)
    return elements * max(int(array["bits"] or 8) // 8, 1)
