"""Augmentations as pure functions, to run on the device inside the training step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped


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


def mixup(
    key: PRNGKeyArray,
    inputs: Float[Array, "b h w c"],
    targets: Float[Array, "b h w d"],
    probability: float,
    alpha: float = 1.2,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w d"]]:
    """Blends pairs with their neighbours in the batch, each with `probability` (mixup, arXiv:1710.09412).

    The weight is drawn from Beta(`alpha`, `alpha`), one for both images of a pair; 1.2 is what MIRNet-v2 and Restormer
    use, which draw one weight a batch and not, as here, one a pair. The partner is the previous pair of the batch (the
    last one for the first): batches come shuffled, and this moves less between devices than a permutation.
    """
    when_key, weight_key = jax.random.split(key)
    shape = (inputs.shape[0], 1, 1, 1)
    share = jax.random.beta(weight_key, alpha, alpha, shape, inputs.dtype)
    share = jnp.where(jax.random.bernoulli(when_key, probability, shape), share, 1)
    mixed = tuple(share * images + (1 - share) * jnp.roll(images, 1, axis=0) for images in (inputs, targets))
    return mixed[0], mixed[1]


def cutblur(
    key: PRNGKeyArray,
    inputs: Float[Array, "b h w c"],
    targets: Float[Array, "b h w c"],
    probability: float,
    alpha: float = 0.7,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Replaces a part of each input by the target at the same place, with `probability` (CutBlur, arXiv:2004.00448).

    The part is a rectangle at a random position or, as often, all but that rectangle. Its sides are the image's times
    a ratio with mean `alpha` and standard deviation 0.01, rounded down. Targets come back as they are.
    """
    batch, height, width, _ = inputs.shape
    when_key, ratio_key, inside_key, row_key, column_key = jax.random.split(key, 5)
    shape = (batch, 1, 1, 1)
    ratio = jnp.clip(alpha + 0.01 * jax.random.normal(ratio_key, shape), 0, 1)

    def is_within(key: PRNGKeyArray, side: int, positions: Int[Array, "*any"]) -> Bool[Array, "b _ _ 1"]:
        extent = jnp.floor(ratio * side).astype(jnp.int32)
        start = jax.random.randint(key, shape, 0, side - extent + 1)
        return (positions >= start) & (positions < start + extent)

    rectangle = is_within(row_key, height, jnp.arange(height)[:, None, None]) & is_within(
        column_key, width, jnp.arange(width)[:, None]
    )
    replaced = rectangle ^ jax.random.bernoulli(inside_key, 0.5, shape)
    return jnp.where(replaced & jax.random.bernoulli(when_key, probability, shape), targets, inputs), targets
