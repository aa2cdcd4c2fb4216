"""Rows of equal blocks: one after the other, compiled once as a loop, or computed again for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def repeat(
    parent: nn.Module,
    blocks: Callable[..., nn.Module] | Sequence[Callable[..., nn.Module]],
    count: int,
    x: Float[Array, "b h w c"],
    name: str,
    *,
    scan: bool = False,
    remat: bool = False,
) -> Float[Array, "b h w c"]:
    """Applies `count` blocks inside `parent`, which is running its compact `__call__`, to features `[B, H, W, C]`.

    `blocks` makes one block, or are several makers that take turns; each is called with `name` or `parent`. Parameters
    are `{name}_0`, `{name}_1` and so on, whatever the other arguments. With `scan` equal blocks are traced and compiled
    once and run as a loop over their stacked parameters; with `remat` the gradient computes a block again instead of
    storing what happens inside. Neither changes the result, but modules run that way record no intermediates.
    """
    makers = (blocks,) if callable(blocks) else tuple(blocks)
    names = [f"{name}_{index}" for index in range(count)]
    if parent.is_initializing() or not (scan or remat):
        for index, block_name in enumerate(names):
            x = makers[index % len(makers)](name=block_name)(x)
        return x

    all_params = parent.variables["params"]
    params = [all_params[block_name] for block_name in names]
    detached = [make(parent=None) for make in makers]
    size = len(makers)
    groups = [tuple(params[start : start + size]) for start in range(0, count, size)]
    rounds = count // size if scan else 0
    if rounds > 1:
        # A loop keeps what is computed again apart from the first time by itself.
        in_turn = partial(_in_turn, detached, remat, prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *groups[:rounds])
        x, _ = lax.scan(lambda x, group: (in_turn(group, x), None), x, stacked)
        groups = groups[rounds:]
    for group in groups:
        x = _in_turn(detached, remat, group, x, prevent_cse=True)
    return x


def _in_turn(blocks: Sequence[nn.Module], remat: bool, params: Sequence[Any], x: Array, *, prevent_cse: bool) -> Array:
    for block, block_params in zip(blocks, params, strict=False):
        apply: Callable[[Any, Array], Any] = partial(_apply, block)
        if remat:
            apply = jax.checkpoint(apply, prevent_cse=prevent_cse)
        x = apply(block_params, x)
    return x


def _apply(block: nn.Module, params: Any, x: Array) -> Any:
    return block.apply({"params": params}, x)
