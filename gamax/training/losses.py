"""Training losses: pure functions of restored and target images `[B, H, W, C]`, float32 in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gamax.blocks import depthwise_conv
from gamax.data.blur import spectrum
from gamax.errors import UserError

Images = Float[Array, "b h w c"]


def l1(restored: Images, target: Images) -> Float[Array, ""]:
    """Mean absolute difference."""
    return _mean(jnp.abs(restored - target))


def mse(restored: Images, target: Images) -> Float[Array, ""]:
    """Mean squared difference."""
    return _mean(jnp.square(restored - target))


def charbonnier(restored: Images, target: Images, epsilon: float = 1e-3) -> Float[Array, ""]:
    """Mean of `sqrt(difference^2 + epsilon^2)`, an L1 that is smooth at zero."""
    return _mean(jnp.sqrt(jnp.square(restored - target) + epsilon**2))


def psnr_loss(restored: Images, target: Images) -> Float[Array, ""]:
    """The negative PSNR in dB, averaged over the batch: negative values are normal (NAFNet, arXiv 2204.04676).

    `10 log10(mean over the image of the squared difference + 1e-8)`: the mean first, then the logarithm.
    """
    per_image = jnp.square(restored - target).mean((1, 2, 3))
    return 10 / math.log(10) * jnp.log(per_image + 1e-8).mean()


def edge(restored: Images, target: Images, epsilon: float = 1e-3) -> Float[Array, ""]:
    """The Charbonnier distance of the Laplacians (MPRNet, arXiv 2102.02808): outlines weigh more than areas.

    The Laplacian is the 3x3 one, of the pixels that have all four neighbours: `UserError` for sides below 3 pixels.
    """
    difference = restored - target
    _check_sides("edge", difference, 3)
    inside = difference[:, 1:-1, 1:-1]
    rows = difference[:, :-2, 1:-1] + difference[:, 2:, 1:-1]
    columns = difference[:, 1:-1, :-2] + difference[:, 1:-1, 2:]
    return _mean(jnp.sqrt(jnp.square(rows + columns - 4 * inside) + epsilon**2))


def frequency(restored: Images, target: Images) -> Float[Array, ""]:
    """Mean absolute difference of the Fourier coefficients, real and imaginary parts apart (arXiv 2108.05054).

    The transform is not normalised, as in MIMO-UNet, which adds a tenth of it to the L1 loss.
    """
    height, width = restored.shape[1:3]
    parts = spectrum(jnp.moveaxis(restored - target, -1, 1), height, width)
    # Columns that are left out are the conjugates of those that are there, but for the first and the middle one.
    twice = np.where(np.arange(width // 2 + 1) % (width / 2) == 0, 1, 2).astype(np.float32)
    sums = sum((jnp.abs(part) * twice).sum(-1).mean() for part in parts)
    return jnp.asarray(sums / (2 * width))


def ssim_loss(restored: Images, target: Images) -> Float[Array, ""]:
    """One minus the structural similarity: 11x11 Gaussian window (sigma 1.5), each channel alone, no border, peak 1.

    That of `gamax.ssim`, averaged over the batch. `UserError` for sides below 11 pixels.
    """
    _check_sides("ssim", restored, 11)
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = jnp.asarray(window / window.sum(), restored.dtype)
    # Around grey: the difference of two large means of squares would lose digits.
    first, second = restored - 0.5, target - 0.5
    stacked = jnp.concatenate([first, second, first**2, second**2, first * second], axis=-1)
    for shape in ((11, 1, 1, 1), (1, 11, 1, 1)):
        kernel = jnp.broadcast_to(window.reshape(shape), (*shape[:3], stacked.shape[-1]))
        stacked = depthwise_conv(stacked, kernel)
    mean_1, mean_2, square_1, square_2, product = jnp.split(stacked[:, 5:-5, 5:-5], 5, axis=-1)
    variances, covariance = square_1 - mean_1**2 + square_2 - mean_2**2, product - mean_1 * mean_2
    mean_1, mean_2 = mean_1 + 0.5, mean_2 + 0.5
    luminance = (2 * mean_1 * mean_2 + 0.01**2) / (mean_1**2 + mean_2**2 + 0.01**2)
    return 1 - _mean(luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2))


def _mean(values: Images) -> Float[Array, ""]:
    # Of each row first: one running float32 sum over a batch of crops loses digits.
    return values.mean(2).mean()


def _check_sides(name: str, images: Array, smallest: int) -> None:
    if min(images.shape[1:3]) < smallest:
        size = f"{images.shape[1]}x{images.shape[2]}"
        raise UserError(f"the loss '{name}' needs crops of at least {smallest} pixels a side, not {size}")


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "psnr": psnr_loss,
    "edge": edge,
    "frequency": frequency,
    "ssim": ssim_loss,
}
"""Losses by the names that configurations use."""


def weighted_sum(losses: Mapping[str, float]) -> Callable[[Array, Array], Array]:
    """One loss of several by name, each times its weight."""

    def total(restored: Images, target: Images) -> Float[Array, ""]:
        return jnp.asarray(sum(weight * LOSSES[name](restored, target) for name, weight in losses.items()))

    return total
