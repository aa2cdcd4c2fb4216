"""Padding images to the sizes that a network can take."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def pad_to_multiple(images: Float[Array, "b h w c"], multiple: int) -> Float[Array, "b h2 w2 c"]:
    """Pads `[B, H, W, C]` on the right and at the bottom to sides that `multiple` divides.

    By reflection without repeating the edge, or by repeating the edge where a side is too short to be reflected.
    Crop the result of a network back with `[:, :H, :W]`.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        missing = -size % multiple
        if missing:
            widths = [(0, 0)] * 4
            widths[axis] = (0, missing)
            images = jnp.pad(images, widths, mode="reflect" if missing < size else "edge")
    return images
