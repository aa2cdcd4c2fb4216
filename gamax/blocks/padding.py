"""Padding images to the sizes that a network can take."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float


def pad_to_multiple(
    images: Float[Array, "b h w c"],
    multiple: int,
    mode: Literal["reflect", "zeros"] = "reflect",
    minimum: int = 0,
) -> Float[Array, "b h2 w2 c"]:
    """Pads `[B, H, W, C]` on the right and at the bottom to sides of at least `minimum` that `multiple` divides.

    With zeros, or by reflection without repeating the edge; a side too short to be reflected has its edge repeated.
    Crop the result of a network back with `[:, :H, :W]`.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        missing = max(minimum - size, 0)
        missing += -(size + missing) % multiple
        if missing:
            widths = [(0, 0)] * 4
            widths[axis] = (0, missing)
            reflection = "reflect" if missing < size else "edge"
            images = jnp.pad(images, widths, mode="constant" if mode == "zeros" else reflection)
    return images
