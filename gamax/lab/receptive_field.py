"""How far the pixels of the input reach in the output of a network."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gamax.models import abstract_params


def receptive_field(model: nn.Module, length: int = 2048, height: int = 16) -> int | None:
    """How many pixels of a row an output pixel depends on at most; None if it is all of a row of `length`.

    What depends on a pixel becomes not a number where the pixel is none: every sum and product passes it on, whatever
    the parameters are. So the answer follows from the layout alone, and width does not matter. As many neighbouring
    pixels as the network's `size_multiple`, at most 16, are tried in the middle, where a network may cut the image, and
    at a quarter of the row. On CPU; elsewhere, convolutions may be computed by transforms that spread it.
    """
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(model))
    period = min(model.size_multiple, 16)
    places = [start + phase for start in (length // 2, length // 4) for phase in range(period)]
    # Outputs at the same place within a period see the same pixels around them.
    seen: dict[tuple[int, bool], list[int]] = {}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        restore = jax.jit(partial(_reached, model), static_argnums=(2, 3))
        for place in places:
            reached = np.flatnonzero(restore(params, place, length, height))
            if len(reached) == length:
                return None
            for output in map(int, reached):
                seen.setdefault((output % period, place < length // 2), []).append(place - output)
    return max(max(offsets) - min(offsets) + 1 for offsets in seen.values())


def _reached(model: nn.Module, params: Any, place: jax.Array, length: int, height: int) -> jax.Array:
    images = jnp.zeros((1, height, length, model.input_channels)).at[:, height // 2, place].set(jnp.nan)
    restored: Any = model.apply({"params": params}, images)
    return jnp.isnan(restored).any((0, 1, 3))
