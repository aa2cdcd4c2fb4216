"""Training losses: pure functions of restored and target images `[B, H, W, C]`, float32 in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "b h w c"]


def l1(restored: Images, target: Images) -> Float[Array, ""]:
    """Mean absolute difference."""
    return jnp.abs(restored - target).mean()


def mse(restored: Images, target: Images) -> Float[Array, ""]:
    """Mean squared difference."""
    return jnp.square(restored - target).mean()


def charbonnier(restored: Images, target: Images, epsilon: float = 1e-3) -> Float[Array, ""]:
    """Mean of `sqrt(difference^2 + epsilon^2)`, an L1 that is smooth at zero."""
    return jnp.sqrt(jnp.square(restored - target) + epsilon**2).mean()


def psnr_loss(restored: Images, target: Images) -> Float[Array, ""]:
    """The negative PSNR in dB, averaged over the batch: negative values are normal (NAFNet, arXiv 2204.04676).

    `10 log10(mean over the image of the squared difference + 1e-8)`: the mean first, then the logarithm.
    """
    per_image = jnp.square(restored - target).mean((1, 2, 3))
    return 10 / math.log(10) * jnp.log(per_image + 1e-8).mean()


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "psnr": psnr_loss,
}
"""Losses by the names that configurations use."""
