"""Augmentation as a pure function, to run on the device inside the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, Shaped


def dihedral(key: PRNGKeyArray, *images: Shaped[Array, "b n n _"]) -> tuple[Shaped[Array, "b n n _"], ...]:
    """Applies one of the eight symmetries of the square to each example, the same one in every array.

    Arrays are square images `[B, N, N, C]` of any type, equal in B and N; they come back as a tuple. Raises
    `ValueError` when they are not square.
    """
    batch, height, width, _ = images[0].shape
    if height != width:
        raise ValueError(f"dihedral needs square images, not {height}x{width}")
    # Two flips and a transposition, each with probability one half, give each of the eight symmetries once.
    flip_rows, flip_columns, transpose = jax.random.bernoulli(key, shape=(3, batch, 1, 1, 1))

    def apply(image: Shaped[Array, "b n n c"]) -> Shaped[Array, "b n n c"]:
        image = jnp.where(flip_rows, image[:, ::-1], image)
        image = jnp.where(flip_columns, image[:, :, ::-1], image)
        return jnp.where(transpose, image.swapaxes(1, 2), image)

    return tuple(apply(image) for image in images)
