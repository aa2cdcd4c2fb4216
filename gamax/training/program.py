"""The compiled training step of one stage, and what the compiler says of it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from gamax.config import Experiment, Stage
from gamax.errors import UserError
from gamax.training.sharding import batch_sharding, planned_collectives, replicated, state_sharding
from gamax.training.state import TrainState
from gamax.training.step import make_train_step

HEADROOM = 0.9
"""The part of a device's memory that a step may plan with; the rest is for what the compiler does not see."""


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
    """Exchanges between devices in the program: how often each kind appears, and the bytes of its results."""

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
        """Kinds of exchange that `planned_collectives` does not know."""
        return set(self.collectives) - planned_collectives(self.mesh)


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
        UserError: if the step does not fit the memory however the batch is divided.

    """
    shardings = state_sharding(mesh, abstract_state)
    state = jax.tree.map(_with_sharding, abstract_state, shardings)
    shape = (stage.batch_size, stage.patch_size, stage.patch_size)
    batch = {
        name: jax.ShapeDtypeStruct((*shape, channels), dtype, sharding=batch_sharding(mesh))
        for name, (channels, dtype) in crops.items()
    }
    state_bytes = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * _item_size(leaf.dtype)
        for leaf, sharding in zip(jax.tree.leaves(abstract_state), jax.tree.leaves(shardings), strict=True)
    )
    requested = experiment.training.gradient_accumulation
    choices = _divisions(stage, mesh) if requested == "auto" else [requested]
    smallest = None
    while choices:
        parts = choices.pop(0)
        train_step = jax.jit(
            make_train_step(model, experiment, mesh=mesh, gradient_accumulation=parts),
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
        )
        compiled = train_step.lower(state, batch).compile(compiler_options)
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
        )
        if requested != "auto" or device_bytes is None or program.bytes_per_device <= HEADROOM * device_bytes:
            return program
        smallest = program
        # Temporary memory falls about as the parts grow: those that cannot fit are not tried.
        room = HEADROOM * device_bytes - state_bytes
        least = parts * program.temporary_bytes / room if room > 0 else math.inf
        choices = [count for count in choices if count >= least] or choices[-1:]
    needed = smallest.bytes_per_device if smallest else 0
    raise UserError(
        f"a step with crops of {stage.patch_size} pixels needs {needed / 2**30:.1f} GiB on each device, one crop after "
        f"the other, of {(device_bytes or 0) / 2**30:.1f}; choose a smaller data.patch_size, more devices, "
        "--model.overrides remat=true or --model.dtype bfloat16"
    )


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _item_size(dtype: Any) -> int:
    # A key is two words.
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


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
    r"^ *(?:ROOT )?%?\S+ = (?P<shape>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(",
    re.MULTILINE,
)
_ARRAY = re.compile(r"(?P<type>[a-z]+(?P<bits>\d+)[a-z0-9]*|pred)\[(?P<sizes>[\d,]*)\]")


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Kinds of exchange in the text of a compiled program: how often each appears, and the bytes of its results."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for match in _COLLECTIVE.finditer(program):
        counts[match["kind"]] += 1
        for array in _ARRAY.finditer(match["shape"]):
            elements = math.prod(int(size) for size in array["sizes"].split(",") if size)
            sizes[match["kind"]] += elements * max(int(array["bits"] or 8) // 8, 1)
    return {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}
