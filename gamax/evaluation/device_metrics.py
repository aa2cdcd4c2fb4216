"""Metrics in float32 for programs on a device: pure functions of images `[B, H, W, C]` in [0, 1] that return `[B]`.

They go by the names of `gamax.evaluation.metrics`, which is what results are reported with. Of the same float32 images
they differ from it by no more than this, measured on flat, dark, noisy and natural ones: PSNR by 5e-5 dB, MAE by 1e-6
of its value, SSIM by 2e-6; equal images have exactly infinity, 0 and 1. A plane of luma is itself rounded to float32,
which is worth up to 1e-3 dB at 60 dB. Where PSNR is infinite it has no gradient.

SSIM in float32 goes wrong in flat areas if variances are differences of large numbers. Here they are sums of squares
around the mean of each window, along one axis after the other, and SSIM is one minus what the difference of the images
takes away:

    1 - SSIM = a + b - a b,  a = mean(x - y)^2 / (mean(x)^2 + mean(y)^2 + C1),  b = var(x - y) / (var(x) + var(y) + C2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gamax.errors import UserError
from gamax.evaluation import metrics as host

Images = Float[Array, "b h w c"]
Planes = Float[Array, "b h w 1"]
Values = Float[Array, " b"]


def psnr(restored: Images, target: Images) -> Values:
    """`metrics.psnr` with peak 1, in dB: infinite for equal images."""
    return -10 * jnp.log10(_mean(jnp.square(_difference(restored, target))))


def mae(restored: Images, target: Images) -> Values:
    """`metrics.mae` with peak 1."""
    return _mean(jnp.abs(_difference(restored, target)))


def ssim_valid(restored: Images, target: Images) -> Values:
    """`metrics.ssim_valid` with peak 1; `UserError` for sides below 11 pixels."""
    return _similarity(restored, target, host.GAUSSIAN)


def ssim_replicate(restored: Images, target: Images) -> Values:
    """`metrics.ssim_replicate` with peak 1."""
    return _similarity(restored, target, host.GAUSSIAN, replicate=True)


def ssim_3d(restored: Images, target: Images) -> Values:
    """`metrics.ssim_3d` with peak 1."""
    return _similarity(restored, target, host.GAUSSIAN, axes=(-2, -1, -3), replicate=True)


def ssim_uniform(restored: Images, target: Images) -> Values:
    """`metrics.ssim_uniform` with peak 1; `UserError` for sides below 7 pixels."""
    return _similarity(restored, target, host.UNIFORM, correction=host.SAMPLE_VARIANCE)


def ssim_downsampled(restored: Images, target: Images) -> Values:
    """`metrics.ssim_downsampled` with peak 1; `UserError` for sides below 11 pixels."""
    return ssim_valid(_reduced(restored), _reduced(target))


def rgb(images: Images) -> Images:
    """The images as they are, all channels."""
    return images


def gray(images: Images) -> Planes:
    """Images of one channel as they are; `UserError` for any other."""
    if images.shape[-1] != 1:
        raise UserError(f"the plane 'gray' needs 1 channel, but the images are {images.shape}; name a plane of luma")
    return images


def y_studio(images: Images) -> Planes:
    """`metrics.y_studio` with peak 1: `[B, H, W, 1]`."""
    return (16 + _luma(images, host.STUDIO_WEIGHTS)) / 255


def y_studio_rounded(images: Images) -> Planes:
    """`metrics.y_studio_rounded` with peak 1: `[B, H, W, 1]`, but halves go either way. It has no gradient."""
    return jnp.round(255 * y_studio(images)) / 255


def y_full_range(images: Images) -> Planes:
    """`metrics.y_full_range` with peak 1: `[B, H, W, 1]`."""
    return _luma(images, host.FULL_RANGE_WEIGHTS)


METRICS: dict[str, Callable[[Images, Images], Values]] = {
    "psnr": psnr,
    "mae": mae,
    "ssim-2d-valid": ssim_valid,
    "ssim-2d-replicate": ssim_replicate,
    "ssim-3d-rgb": ssim_3d,
    "ssim-uniform-7x7": ssim_uniform,
    "ssim-wang-downsampled": ssim_downsampled,
}
"""Metrics by the names that protocols use."""

PLANES: dict[str, Callable[[Images], Images]] = {
    "rgb": rgb,
    "gray": gray,
    "y-studio": y_studio,
    "y-studio-rounded": y_studio_rounded,
    "y-full-range": y_full_range,
}
"""What of the images is scored, by the names that protocols use."""


def _difference(restored: Images, target: Images) -> Images:
    if restored.shape != target.shape:
        raise UserError(
            f"images of different shapes cannot be compared: {restored.shape} and {target.shape}; crop one of them"
        )
    return restored.astype(jnp.float32) - target.astype(jnp.float32)


def _mean(values: Float[Array, "b _ _ _"]) -> Values:
    # Axis by axis: one running float32 sum over an image loses digits.
    return values.mean(1).mean(1).mean(1)


def _similarity(
    restored: Images,
    target: Images,
    taps: np.ndarray,
    axes: tuple[int, ...] = (-2, -1),
    replicate: bool = False,
    correction: float = 1.0,
) -> Values:
    difference = _difference(restored, target)
    height, width = target.shape[1:3]
    if not replicate and min(height, width) < len(taps):
        raise UserError(f"this SSIM needs images of at least {len(taps)} pixels a side, not {height}x{width}")
    images = jnp.stack([restored.astype(jnp.float32), target.astype(jnp.float32), difference])
    # Channels before rows and columns: loops over three neighbours in memory take several times longer.
    means = jnp.moveaxis(images, -1, -3)
    variances = jnp.zeros_like(means)
    for axis in axes:
        if replicate:
            means, variances = (_continued(maps, len(taps) // 2, axis) for maps in (means, variances))
        means, variances = _joined(means, variances, taps.tolist(), axis)
    mean_1, mean_2, mean_difference = means
    variance_1, variance_2, variance_difference = correction * variances
    luminance = jnp.square(mean_difference) / (jnp.square(mean_1) + jnp.square(mean_2) + host.K1**2)
    structure = variance_difference / (variance_1 + variance_2 + host.K2**2)
    return 1 - _mean(luminance + structure - luminance * structure)


def _continued(maps: Array, reach: int, axis: int) -> Array:
    """The first and the last place along an axis repeated; `jnp.pad` refuses batches whose sharding is explicit."""
    first, last = (lax.slice_in_dim(maps, start, start + 1, axis=axis) for start in (0, maps.shape[axis] - 1))
    return jnp.concatenate([jnp.repeat(first, reach, axis), maps, jnp.repeat(last, reach, axis)], axis)


def _joined(means: Array, variances: Array, taps: Sequence[float], axis: int) -> tuple[Array, Array]:
    """Means and variances of windows along an axis, from those of the parts that each window joins."""
    size = means.shape[axis] - len(taps) + 1

    def parts(maps: Array) -> list[Array]:
        return [lax.slice_in_dim(maps, start, start + size, axis=axis) for start in range(len(taps))]

    def total(terms: Iterable[Array]) -> Array:
        return jnp.asarray(sum(tap * term for tap, term in zip(taps, terms, strict=True)))

    joint = total(parts(means))
    inside, between = total(parts(variances)), total(jnp.square(mean - joint) for mean in parts(means))
    return joint, inside + between


def _reduced(images: Images) -> Float[Array, "b _ _ c"]:
    height, width = images.shape[1:3]
    factor = host.reduction_factor(height, width)
    if factor == 1:
        return images
    rows, columns = (_means_of_parts(size, factor) for size in (height, width))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images, precision=lax.Precision.HIGHEST)


def _means_of_parts(size: int, factor: int) -> np.ndarray:
    """The matrix that takes the means of the equal parts of a side."""
    starts, ends = host.equal_parts(size, factor)
    inside = (np.arange(size) >= starts[:, np.newaxis]) & (np.arange(size) < ends[:, np.newaxis])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _luma(images: Images, weights: tuple[float, float, float]) -> Planes:
    if images.shape[-1] != 3:
        raise UserError(f"luma needs 3 channels, but the images are {images.shape}; score the plane 'gray' or 'rgb'")
    red, green, blue = jnp.split(images.astype(jnp.float32), 3, axis=-1)
    return weights[0] * red + weights[1] * green + weights[2] * blue
