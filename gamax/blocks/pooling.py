"""Means over the image, or over a window around every pixel: the test-time local conversion (arXiv 2112.04491).

Networks trained on crops meet means over larger areas when they restore whole images. Chu et al. take the means of a
window of the size known from training instead. It changes what the network computes, so it is always asked for.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gamax.errors import UserError


def check_local_window(window: int, levels: int) -> None:
    """Raises `UserError` if a window, halved on every one of `levels` levels, leaves nothing."""
    if window >> levels < 1:
        raise UserError(f"local_window must be at least {2**levels}, not {window}")


def box_mean(x: Float[Array, "b h w c"], window: int, axis: int) -> Float[Array, "b h w c"]:
    """The mean over `window` neighbours along one axis of `[B, H, W, C]`, for every element, float32.

    Near the border it is that of the nearest window inside. At most the size of the axis is taken; less than 1 raises
    `UserError`.
    """
    if window < 1:
        raise UserError(f"a window needs at least one pixel, not {window}")
    size, window = x.shape[axis], min(window, x.shape[axis])
    # Differences of running sums along one axis: unlike a sum over the whole image, they keep their precision.
    sums = jnp.cumsum(x.astype(jnp.float32), axis=axis)
    first = lax.slice_in_dim(sums, window - 1, window, axis=axis)
    later = lax.slice_in_dim(sums, window, size, axis=axis) - lax.slice_in_dim(sums, 0, size - window, axis=axis)
    means = jnp.concatenate([first, later], axis=axis) / window
    border = [(0, 0)] * 4
    border[axis] = ((window - 1) // 2, window // 2)
    return jnp.pad(means, border, mode="edge")


def window_mean(x: Float[Array, "b h w c"], window: int | None) -> Float[Array, "b h2 w2 c"]:
    """The mean over the image, `[B, 1, 1, C]`, or over a square around every pixel, `[B, H, W, C]`, float32.

    A window that covers the image gives the mean over the image; along one axis it is at most the image's size.
    """
    if window is None or all(window >= side for side in x.shape[1:3]):
        return x.mean((1, 2), keepdims=True, dtype=jnp.float32)
    return box_mean(box_mean(x, window, axis=1), window, axis=2)
