"""What baseline JPEG does to images, as a pure function that runs on the device and writes no file."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gamax.errors import UserError

# Annex K of the standard (ITU-T T.81), tables K.1 and K.2.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = np.full((8, 8), 99)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# JFIF: rows Y, Cb, Cr.
YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float32
)
RGB = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]], np.float32)


def jpeg(images: Float[Array, "b h w c"], quality: Int[Array, " b"], subsample: bool = True) -> Float[Array, "b h w c"]:
    """Codes images of 1 or 3 channels as baseline JPEG and decodes them; `quality` from 1 to 100, one an image.

    Follows libjpeg: the standard's tables with its scaling, values rounded to 8 bits after each stage, colour averaged
    over 2x2 pixels and interpolated back with weights 3 to 1 (`subsample`), and borders repeated to full blocks. It
    differs where libjpeg's integer transforms round the other way. Entropy coding loses nothing and is left out.
    """
    if images.shape[-1] not in (1, 3):
        raise UserError(f"JPEG needs images of 1 or 3 channels, not {images.shape[-1]}")
    height, width = images.shape[1:3]
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None, None]
    luminance, chrominance = (
        jnp.clip((table * percent + 50) // 100, 1, 255).astype(images.dtype) for table in (LUMINANCE, CHROMINANCE)
    )
    # Planes [B, C, H, W]; the batch stays the first axis, so that it can be divided among devices.
    values = _round(jnp.clip(images, 0, 1) * 255).transpose(0, 3, 1, 2)
    if images.shape[-1] == 1:
        return _code_blocks(values, luminance).transpose(0, 2, 3, 1) / 255
    offset = np.array([0, 128, 128], np.float32)[:, None, None]
    # Columns are repeated before the averaging, rows of blocks after it, as libjpeg has it.
    if subsample:
        values = _extended(_extended(values, -2, 2), -1, 16)
    values = _round(jnp.einsum("bchw,yc->byhw", values, YCBCR, precision="highest") + offset)
    chroma = _halve(values[:, 1:]) if subsample else values[:, 1:]
    luma, chroma = _code_blocks(values[:, :1], luminance), _code_blocks(chroma, chrominance)
    if subsample:
        chroma = _double(chroma[..., : (width + 1) // 2])
    values = jnp.concatenate([luma[..., :height, :width], chroma[..., :height, :width]], axis=1) - offset
    result = _round(jnp.einsum("byhw,cy->bhwc", values, RGB, precision="highest"))
    return jnp.clip(result, 0, 255) / 255


def _code_blocks(planes: Float[Array, "b c h w"], table: Float[Array, "b 1 8 8"]) -> Float[Array, "b c h w"]:
    """Transforms 8x8 blocks of values in [0, 255], quantises, and transforms back."""
    batch, channels, height, width = planes.shape
    extended = _extended(_extended(planes - 128, -2, 8), -1, 8)
    rows, columns = extended.shape[2] // 8, extended.shape[3] // 8
    blocks = extended.reshape(batch, channels, rows, 8, columns, 8).swapaxes(3, 4).reshape(batch, channels, -1, 64)
    # The two-dimensional transform as one product, which is faster than two of eight rows each.
    frequencies = np.arange(8)[:, None]
    cosine = np.cos(np.pi * (2 * np.arange(8) + 1) * frequencies / 16) * np.where(frequencies, 0.5, math.sqrt(1 / 8))
    transform = np.kron(cosine, cosine).astype(np.float32)
    steps = table.reshape(batch, 1, 1, 64)
    coefficients = jnp.matmul(blocks, transform.T, precision="highest") / steps
    # Halves away from zero, as libjpeg rounds.
    coefficients = jnp.sign(coefficients) * _round(jnp.abs(coefficients)) * steps
    blocks = jnp.matmul(coefficients, transform, precision="highest")
    decoded = blocks.reshape(batch, channels, rows, columns, 8, 8).swapaxes(3, 4).reshape(extended.shape)
    return jnp.clip(_round(decoded[..., :height, :width]) + 128, 0, 255)


def _extended(planes: Float[Array, "b c h w"], axis: int, multiple: int) -> Float[Array, "b c p q"]:
    """Repeats the last row or column up to a multiple."""
    side = planes.shape[axis]
    positions = np.minimum(np.arange(side + -side % multiple), side - 1)
    return planes if side == len(positions) else planes.take(positions, axis)


def _halve(planes: Float[Array, "b c h w"]) -> Float[Array, "b c p q"]:
    """Averages 2x2 pixels; halves go down and up in turn, as in libjpeg."""
    batch, channels, height, width = planes.shape
    total = planes.reshape(batch, channels, height // 2, 2, width // 2, 2).sum(axis=(3, 5))
    return jnp.floor((total + 1 + np.arange(width // 2) % 2) / 4)


def _double(planes: Float[Array, "b c h w"]) -> Float[Array, "b c p q"]:
    """Interpolates between pixel centres with weights 3 to 1 along each axis, rounded as in libjpeg."""
    batch, channels, height, width = planes.shape
    (above, below), (left, right) = (
        (np.maximum(np.arange(n) - 1, 0), np.minimum(np.arange(n) + 1, n - 1)) for n in (height, width)
    )
    tall = jnp.stack([3 * planes + planes[:, :, above], 3 * planes + planes[:, :, below]], axis=3)
    tall = tall.reshape(batch, channels, 2 * height, width)
    wide = jnp.stack([3 * tall + tall[..., left] + 8, 3 * tall + tall[..., right] + 7], axis=4)
    return jnp.floor(wide.reshape(batch, channels, 2 * height, 2 * width) / 16)


def _round(values: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Rounds halves up; `jnp.round` takes them to the even neighbour."""
    return jnp.floor(values + 0.5)
