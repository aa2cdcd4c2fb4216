"""Training losses: pure functions of restored and target images `[B, H, W, C]`, float32 in [0, 1].

Networks that return several images are supervised at each of them, see `multi_stage`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

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


def multi_stage(
    loss: Callable[[Array, Array], Array],
    restored: Sequence[Float[Array, "_ _ _ _"]],
    target: Images,
    weights: Sequence[float] | None = None,
) -> Float[Array, ""]:
    """The sum of a loss over the outputs of a network that restores in stages, or at several scales.

    A sum and not a mean, as the field has it: MPRNet (arXiv 2102.02808) and stacked DMPHN (1904.03468) add up stages of
    full size, MIMO-UNet (2108.05054) scales. The mean inside the loss is that of each stage's own pixels, so a small
    output counts as much as a large one.

    Args:
        loss: one of `LOSSES`, or a `weighted_sum`.
        restored: the outputs `[B, H/n, W/n, C]`, each with a whole n of its own, in any order.
        target: images `[B, H, W, C]`; an output is compared with the means of their blocks of n x n pixels. MIMO-UNet
            does the same at half the size, and takes the inner 2x2 pixels of each block at a quarter.
        weights: one for each output; None for 1.

    Raises:
        UserError: if there is no output, one has another shape, or there are not as many weights.
    """
    if not restored:
        raise UserError("the network has returned no image to supervise")
    weights = [1.0] * len(restored) if weights is None else weights
    if len(weights) != len(restored):
        raise UserError(f"{len(weights)} weights were given for {len(restored)} stages; give one for each")
    pairs = zip(weights, restored, strict=True)
    return jnp.asarray(sum(weight * loss(stage, _reduced(target, stage.shape)) for weight, stage in pairs))


def _reduced(target: Images, shape: tuple[int, ...]) -> Float[Array, "b _ _ c"]:
    """The target in the size of an output, as means of blocks."""
    batch, height, width, channels = target.shape
    factor = max(height // max(shape[1], 1), 1)
    if shape != (batch, height / factor, width / factor, channels):
        raise UserError(
            f"an output of shape {list(shape)} cannot be compared with targets of shape {list(target.shape)}: batch "
            "and channels must be equal, height and width the same whole fraction"
        )
    return target.reshape(batch, shape[1], factor, shape[2], factor, channels).mean((2, 4))


def weighted_sum(losses: Mapping[str, float]) -> Callable[[Array | Sequence[Array], Array], Array]:
    """One loss of several by name, each times its weight; of one restored image, or of a sequence of them.

    A sequence, of stages or scales, gives the sum over its images (`multi_stage`).
    """

    def total(restored: Images, target: Images) -> Float[Array, ""]:
        return jnp.asarray(sum(weight * LOSSES[name](restored, target) for name, weight in losses.items()))

    def of_stages(restored: Array | Sequence[Array], target: Images) -> Float[Array, ""]:
        return multi_stage(total, restored if isinstance(restored, Sequence) else [restored], target)

    return of_stages
