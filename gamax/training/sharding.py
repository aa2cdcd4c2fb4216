"""Which device holds what: the mesh, and the rules for batches and for the training state.

Axes: `data` splits the batch; `fsdp` splits the batch too, and with it the parameters and the optimizer state;
`rows` splits the image height, the compiler exchanging the halo rows. One device is the trivial mesh, so the same
program runs everywhere (this is what `pmap` and `pjit` have become: `jax.jit` with shardings).
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gamax.errors import UserError

AXES = ("data", "fsdp", "rows")
SMALLEST_SPLIT = 2**14
"""Parameters with fewer elements stay whole on every device: gathering them would cost more than they take."""


def make_mesh(shape: tuple[int, int, int]) -> Mesh:
    """The mesh over all devices of all hosts; one -1 in `shape` stands for the devices that remain.

    Raises:
        UserError: if the shape does not use exactly the devices there are.

    """
    devices = jax.device_count()
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"training.mesh must be three positive sizes, at most one of them -1, not {shape}")
    resolved = tuple(devices // known if size == -1 else size for size in shape)
    if math.prod(resolved) != devices:
        raise UserError(f"training.mesh {shape} does not fit {devices} device(s): the sizes must multiply to {devices}")
    # The compiler propagates shardings (Auto); explicit ones reject the reshapes of pixel shuffle.
    return jax.make_mesh(resolved, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, at_once: int, patch_size: int) -> None:
    """Raises `UserError` if the crops that are computed at once, or their rows, cannot be divided over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if at_once % shards:
        raise UserError(
            f"training.batch_size / training.gradient_accumulation is {at_once}, not divisible by the {shards} devices "
            f"along data and fsdp; use a multiple of {shards} or another training.mesh"
        )
    if patch_size % mesh.shape["rows"]:
        raise UserError(f"data.patch_size {patch_size} is not divisible by the {mesh.shape['rows']} devices along rows")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of images `[B, H, W, C]`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "rows"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """A sharding for every leaf of the training state: its longest divisible axis over `fsdp`, if it is large."""

    def rule(leaf: Any) -> NamedSharding:
        size = mesh.shape["fsdp"]
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or math.prod(leaf.shape) < SMALLEST_SPLIT or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(rule, state)
