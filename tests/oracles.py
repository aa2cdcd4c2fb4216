"""The building blocks and the network once more, in NumPy float64, written from the formulas alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.signal import correlate2d

Params = Mapping[str, Any]


def conv(x: np.ndarray, params: Params) -> np.ndarray:
    """Zero-padded cross-correlation, one plane at a time; depth-wise if the kernel has one input channel."""
    kernel, channels = np.asarray(params["kernel"], np.float64), x.shape[-1]
    result = np.zeros((*x.shape[:3], kernel.shape[3]))
    for image, plane in np.ndindex(x.shape[0], kernel.shape[3]):
        inputs = [plane] if kernel.shape[2] == 1 and channels > 1 else range(channels)
        for index, channel in enumerate(inputs):
            result[image, :, :, plane] += correlate2d(x[image, :, :, channel], kernel[:, :, index, plane], "same")
    return result + np.asarray(params.get("bias", 0.0), np.float64)


def pointwise(x: np.ndarray, params: Params) -> np.ndarray:
    return x @ np.asarray(params["kernel"], np.float64)[0, 0] + np.asarray(params["bias"], np.float64)


def layer_norm(x: np.ndarray, params: Params, epsilon: float = 1e-6) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normalised = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return normalised * np.asarray(params["scale"], np.float64) + np.asarray(params["bias"], np.float64)


def filtered(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Pixel by pixel, tap by tap."""
    result, reach = np.zeros(plane.shape), len(kernel) // 2
    for row, column in np.ndindex(plane.shape):
        for i, j in np.ndindex(kernel.shape):
            y, x = row + i - reach, column + j - reach
            if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                result[row, column] += kernel[i, j] * plane[y, x]
    return result


def gama(x: np.ndarray, params: Params) -> np.ndarray:
    k1, k2, k3 = (np.asarray(params[f"{axis}_kernel"], np.float64) for axis in ("channel", "height", "width"))
    result = np.empty(x.shape)
    for index, image in enumerate(x):
        over_channels, over_height, over_width = image.mean(2), image.mean(0), image.mean(1)
        result[index] = image + filtered(over_channels, k1)[:, :, None]
        result[index] += filtered(over_height, k2)[None] + filtered(over_width, k3)[:, None]
    return result


def squeeze_excite(x: np.ndarray, params: Params) -> np.ndarray:
    hidden = np.maximum(pointwise(x.mean((1, 2), keepdims=True), params["squeeze"]), 0)
    return x / (1 + np.exp(-pointwise(hidden, params["excite"])))


def sca(x: np.ndarray, params: Params) -> np.ndarray:
    return x * pointwise(x.mean((1, 2), keepdims=True), params["weight"])


def non_local(x: np.ndarray, params: Params) -> np.ndarray:
    batch, height, width, channels = x.shape
    query, key, value = (
        pointwise(x, params[name]).reshape(batch, height * width, -1) for name in ("query", "key", "value")
    )
    attended = np.zeros_like(query)
    for image, pixel in np.ndindex(batch, height * width):
        logits = key[image] @ query[image, pixel]
        weights = np.exp(logits - logits.max())
        attended[image, pixel] = weights @ value[image] / weights.sum()
    return x + pointwise(attended.reshape(batch, height, width, channels // 2), params["projection"])


MIXERS: dict[str, Callable[[np.ndarray, Params], np.ndarray]] = {
    "none": lambda x, params: x,
    "gama": gama,
    "squeeze_excite": squeeze_excite,
    "sca": sca,
    "non_local": non_local,
}


def gate(x: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    return x[..., :half] * x[..., half:]


def naf_block(x: np.ndarray, params: Params, mixer: str) -> np.ndarray:
    y = layer_norm(x, params["spatial_norm"])
    y = conv(pointwise(y, params["expand"]), params["spatial"]) if "expand" in params else conv(y, params["spatial"])
    y = pointwise(MIXERS[mixer](gate(y), params.get("mixing", {})), params["project"])
    x = x + np.asarray(params["spatial_scale"], np.float64) * y
    y = pointwise(layer_norm(x, params["channel_norm"]), params["channel_expand"])
    return x + np.asarray(params["channel_scale"], np.float64) * pointwise(gate(y), params["channel_project"])


def pixel_unshuffle(x: np.ndarray, factor: int) -> np.ndarray:
    batch, height, width, channels = x.shape
    result = np.empty((batch, height // factor, width // factor, channels * factor**2), x.dtype)
    for channel, row, column in np.ndindex(channels, factor, factor):
        result[..., (channel * factor + row) * factor + column] = x[:, row::factor, column::factor, channel]
    return result


def pixel_shuffle(x: np.ndarray, factor: int) -> np.ndarray:
    batch, height, width, channels = x.shape
    result = np.empty((batch, height * factor, width * factor, channels // factor**2), x.dtype)
    for channel, row, column in np.ndindex(channels // factor**2, factor, factor):
        result[:, row::factor, column::factor, channel] = x[..., (channel * factor + row) * factor + column]
    return result


def gama_ir(images: np.ndarray, params: Params, mixer: str, levels: int, blocks: int, bottom: int) -> np.ndarray:
    height, width = images.shape[1:3]
    padding = [(0, 0), (0, -height % 2**levels), (0, -width % 2**levels), (0, 0)]
    x = conv(np.pad(images, padding, mode="reflect"), params["intro"])
    skips = []
    for level in range(levels):
        for index in range(blocks):
            x = naf_block(x, params[f"encoder_{level}_{index}"], mixer)
        skips.append(x)
        x = pixel_unshuffle(pointwise(x, params[f"down_{level}"]), 2)
    for index in range(bottom):
        x = naf_block(x, params[f"bottom_{index}"], mixer)
    for level in range(levels - 1, -1, -1):
        x = pixel_shuffle(pointwise(x, params[f"up_{level}"]), 2) + skips[level]
        for index in range(blocks):
            x = naf_block(x, params[f"decoder_{level}_{index}"], mixer)
    return images + conv(x, params["ending"])[:, :height, :width]
