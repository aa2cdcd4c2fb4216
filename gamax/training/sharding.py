"""Which device holds what: the mesh, and the rules for batches, for the training state and for what may be exchanged.

Axes: `data` splits the batch; `fsdp` splits the batch too, and with it the parameters and the optimizer state;
`rows` splits the image height, the compiler exchanging the halo rows. One device is the trivial mesh, so the same
program runs everywhere (this is what `pmap` and `pjit` have become: `jax.jit` with shardings).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gamax.config import Stage
from gamax.errors import UserError

AXES = ("data", "fsdp", "rows")
SMALLEST_SPLIT = 2**14
"""Parameters with fewer elements stay whole on every device: gathering them would cost more than they take."""
STATE_FRACTION = 0.25
"""The part of a device's memory that the training state may take before `auto` splits it over `fsdp`."""
FEWEST_ROWS = 32
"""Rows that `auto` leaves on a device at least: with fewer, most of them would be halo."""


def mesh_shape(
    requested: Literal["auto"] | tuple[int, int, int],
    devices: int,
    stage: Stage,
    *,
    state_bytes: int,
    device_bytes: int,
    divisible: bool,
) -> tuple[int, int, int]:
    """The sizes of `data`, `fsdp` and `rows`, from what the configuration asks for.

    Args:
        requested: three sizes, one of which may be -1 for the devices that remain, or `auto`.
        devices: how many there are.
        stage: the batch and its crops.
        state_bytes: of the training state and one gradient.
        device_bytes: memory of one device.
        divisible: whether devices can share rows; if not, `auto` never has them do it.

    Raises:
        UserError: if the sizes do not use exactly the devices there are, or the batch cannot be divided over them.

    """
    if requested == "auto":
        return _automatic_shape(devices, stage, state_bytes, device_bytes, divisible)
    known = math.prod(size for size in requested if size != -1)
    if requested.count(-1) > 1 or any(size < 1 and size != -1 for size in requested):
        raise UserError(f"training.mesh must be three positive sizes, at most one of them -1, not {requested}")
    data, fsdp, rows = (devices // known if size == -1 else size for size in requested)
    if data * fsdp * rows != devices:
        raise UserError(
            f"training.mesh {requested} does not fit {devices} device(s): the sizes must multiply to {devices}"
        )
    if stage.batch_size % (data * fsdp):
        raise UserError(
            f"training.batch_size {stage.batch_size}{_since(stage)} is not divisible by the {data * fsdp} devices "
            f"along data and fsdp; use a multiple of {data * fsdp} or another training.mesh"
        )
    if stage.patch_size % rows:
        raise UserError(
            f"data.patch_size {stage.patch_size}{_since(stage)} is not divisible by the {rows} devices along rows"
        )
    return data, fsdp, rows


def _automatic_shape(
    devices: int, stage: Stage, state_bytes: int, device_bytes: int, divisible: bool
) -> tuple[int, int, int]:
    allowed = STATE_FRACTION * device_bytes
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    fsdp = next((size for size in divisors if state_bytes <= allowed * size), devices)
    data = max(
        (size for size in divisors if (devices // fsdp) % size == 0 and stage.batch_size % (size * fsdp) == 0),
        default=0,
    )
    rows = devices // (fsdp * data) if data else 0
    if rows > 1 and not divisible:
        raise UserError(
            f"{devices} devices cannot share a batch of {stage.batch_size} crops{_since(stage)} evenly, nor the rows "
            f"of what this network cuts into patches; use {_fitting(devices, stage)} device(s), another batch, or "
            f"--training.mesh {data} {fsdp} {rows}, where the devices along rows repeat each other's work"
        )
    few = rows > 1 and stage.patch_size // rows < FEWEST_ROWS
    if not data or stage.patch_size % rows or few:
        raise UserError(
            f"{devices} devices cannot share a batch of {stage.batch_size} crops of {stage.patch_size} "
            f"pixels{_since(stage)} evenly; use {_fitting(devices, stage)} device(s), or another batch"
        )
    return data, fsdp, rows


def _since(stage: Stage) -> str:
    return f" (from step {stage.first_step} on)" if stage.first_step else ""


def _fitting(devices: int, stage: Stage) -> int:
    """The most devices, no more than there are, that divide the batch."""
    return max(size for size in range(1, devices + 1) if stage.batch_size % size == 0)


def make_mesh(shape: tuple[int, int, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices of all hosts, or over those given."""
    # The compiler propagates shardings (Auto); explicit ones reject the reshapes of pixel shuffle.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of the batch `[B, H, W, C]` as it is loaded: whole images, which augmentation may turn."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


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


def gather(mesh: Mesh, params: Any) -> Any:
    """The parameters whole on every device for the computation; their gradients are split again as the state is.

    Without it the compiler may divide channels among the devices, and exchange activations, which are larger.
    """

    def whole(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        @jax.custom_vjp
        def gathered(leaf: jax.Array) -> jax.Array:
            return lax.with_sharding_constraint(leaf, replicated(mesh))

        gathered.defvjp(
            lambda leaf: (gathered(leaf), None),
            lambda _, gradient: (lax.with_sharding_constraint(gradient, sharding),),
        )
        return gathered(leaf)

    return jax.tree.map(whole, params, state_sharding(mesh, params))


def rows_divisible(model: nn.Module) -> bool:
    """Whether devices can share the rows of what a network is given: not if it cuts images into patches.

    With the height of patches divided XLA counts the gradients of kernels once for each device that has the same rows.
    """
    return getattr(model, "rows_divisible", True)


def split_rows(mesh: Mesh, images: Any, *, divisible: bool = True) -> Any:
    """Images `[B, H, W, C]` as the network is given them: the batch over `data` and `fsdp`, the height over `rows`.

    They are whole before: augmentation turns them, and its random numbers are those of one device. They stay whole if
    their rows are not `divisible`; then the devices along `rows` all compute the same.
    """
    whole = lax.with_sharding_constraint(images, batch_sharding(mesh))
    if not divisible:
        return whole
    return lax.with_sharding_constraint(whole, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "rows")))


def planned_collectives(mesh: Mesh, model: nn.Module, *, mixes: bool = False) -> set[str]:
    """The kinds of exchange between devices that a training step on this mesh is meant to have.

    Sums of gradients and metrics (`all-reduce`); of `fsdp`, gathered parameters and gradients that are summed in parts
    (`reduce-scatter`, or a ring of `collective-permute` on TPUs); of `rows`, halos, and what a network samples anywhere
    in an image; images of other devices, where a step `mixes` those of a batch.
    """
    planned = {"all-reduce"} if mesh.size > 1 else set()
    if mesh.shape["fsdp"] > 1:
        planned |= {"all-gather", "reduce-scatter", "collective-permute"}
    shared_rows = mesh.shape["rows"] > 1 and rows_divisible(model)
    if shared_rows or (mixes and mesh.size > 1):
        planned |= {"collective-permute"}
    if shared_rows and getattr(model, "samples_pixels", False):
        planned |= {"all-gather", "all-to-all"}
    return planned
