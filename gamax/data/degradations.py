"""Degradations as pure functions `(key, images, ...) -> images`, to run on the device inside the training step."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, PRNGKeyArray


def gaussian_noise(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], sigma: tuple[float, float]
) -> Float[Array, "b h w c"]:
    """Adds white Gaussian noise to images in [0, 1], float32 `[B, H, W, C]`; the result is not clipped.

    Each image has its own standard deviation, drawn uniformly between the two of `sigma`, in units of 1/255.
    """
    sigma_key, noise_key = jax.random.split(key)
    low, high = sigma
    scale = jax.random.uniform(sigma_key, (images.shape[0], 1, 1, 1), images.dtype, low, high) / 255
    return images + scale * jax.random.normal(noise_key, images.shape, images.dtype)
