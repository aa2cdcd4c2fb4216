"""Applying a denoiser to images larger than those it was trained on: in overlapping windows, blended."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float


def window_weights(size: int) -> Float[np.ndarray, "n n"]:
    """The weight of every pixel of a square window: its distance to the nearest border, from 0.01 to 0.5.

    The distance is in units of the side; the numbers are those of the published sampler (arXiv 2112.10752).
    """
    position = np.arange(size) / max(size - 1, 1)
    distance = np.minimum(position, 1 - position)
    return np.clip(np.minimum.outer(distance, distance), 0.01, 0.5)


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start on a side of at least `window` pixels; the last one ends at its end."""
    return [*range(0, side - window, stride), side - window]


def predict_in_windows(
    predict: Callable[[Array], Array],
    image: Float[Array, "h w c"],
    *,
    window: int,
    stride: int,
    at_once: int,
    mesh: Mesh | None = None,
) -> Float[Array, "h w d"]:
    """The weighted mean of what a network predicts for all windows of an image.

    Args:
        predict: maps windows `[N, window, window, C]` to `[N, window, window, D]`.
        image: with sides of at least `window`.
        window: side of the windows.
        stride: pixels from one to the next.
        at_once: how many go through the network together; memory grows with it and not with the image.
        mesh: devices along an axis `windows` that share them.
    """
    height, width, channels = image.shape
    starts = np.array(
        list(product(window_starts(height, window, stride), window_starts(width, window, stride))), np.int32
    )
    weights = window_weights(window)
    total_weight = np.zeros((height, width))
    for top, left in starts:
        total_weight[top : top + window, left : left + window] += weights
    # No more than there are, but the same number on every device.
    devices = 1 if mesh is None else mesh.size
    at_once = min(at_once, math.ceil(len(starts) / devices) * devices)
    groups = math.ceil(len(starts) / at_once)
    # The last group is filled up with windows that count for nothing.
    counts = np.arange(groups * at_once) < len(starts)
    starts = np.resize(starts, (groups * at_once, 2)).reshape(groups, at_once, 2)

    def spread(windows: Array, *axes: str) -> Array:
        if mesh is None:
            return windows
        return lax.with_sharding_constraint(windows, NamedSharding(mesh, PartitionSpec(*axes)))

    def add_group(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        corners, counted = group

        def cut(corner: Array) -> Array:
            return lax.dynamic_slice(image, (corner[0], corner[1], 0), (window, window, channels))

        predicted = spread(predict(spread(jax.vmap(cut)(corners), "windows")))
        weighted = predicted * jnp.asarray(weights, predicted.dtype)[:, :, None] * counted[:, None, None, None]

        def add_window(index: Array, total: Array) -> Array:
            start = (corners[index, 0], corners[index, 1], 0)
            return lax.dynamic_update_slice(
                total, lax.dynamic_slice(total, start, weighted.shape[1:]) + weighted[index], start
            )

        return lax.fori_loop(0, at_once, add_window, total), None

    predicted = jax.eval_shape(predict, jax.ShapeDtypeStruct((at_once, window, window, channels), image.dtype))
    zeros = jnp.zeros((height, width, predicted.shape[-1]), predicted.dtype)
    total, _ = lax.scan(add_group, zeros, (jnp.asarray(starts), jnp.asarray(counts.reshape(groups, at_once))))
    return total / jnp.asarray(total_weight, total.dtype)[:, :, None]
