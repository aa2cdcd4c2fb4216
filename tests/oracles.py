"""The building blocks and the network once more, in NumPy float64, written from the formulas alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import correlate2d
from scipy.special import erf

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


def mean_around(maps: np.ndarray, window: int | None, axis: int) -> np.ndarray:
    """For every place along `axis`, the mean of the nearest window inside; of everything if there is no window."""
    size = maps.shape[axis]
    window = min(window or size, size)
    starts = [min(max(place - (window - 1) // 2, 0), size - window) for place in range(size)]
    return np.stack([np.take(maps, range(start, start + window), axis).mean(axis) for start in starts], axis)


def gama(x: np.ndarray, params: Params, window: int | None = None) -> np.ndarray:
    k1, k2, k3 = (np.asarray(params[f"{axis}_kernel"], np.float64) for axis in ("channel", "height", "width"))
    result = np.empty(x.shape)
    for index, image in enumerate(x):
        result[index] = image + filtered(image.mean(2), k1)[:, :, None]
        over_height, over_width = mean_around(image, window, 0), mean_around(image, window, 1)
        result[index] += np.stack([filtered(row, k2) for row in over_height])
        result[index] += np.stack([filtered(column, k3) for column in over_width.swapaxes(0, 1)], axis=1)
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


def naf_block(x: np.ndarray, params: Params, mixer: str, position: str = "gate") -> np.ndarray:
    def mix(y: np.ndarray, here: str) -> np.ndarray:
        return MIXERS[mixer](y, params.get("mixing", {})) if here == position else y

    y = mix(layer_norm(x, params["spatial_norm"]), "first")
    y = conv(pointwise(y, params["expand"]), params["spatial"]) if "expand" in params else conv(y, params["spatial"])
    y = mix(pointwise(mix(gate(y), "gate"), params["project"]), "last")
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


EDGE_FILTERS = (
    np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]]),
    np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]]),
    np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
    np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    np.array([[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]),
    np.array([[-2, -1, 0], [-1, 0, 1], [0, 1, 2]]),
    np.array([[1, 0, 0], [0, -1, 0], [0, 0, 0]]),
    np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 0]]),
)


def adaptive_filter(x: np.ndarray, params: Params) -> np.ndarray:
    *edge_weights, high_pass_weight = np.asarray(params["filter_weights"], np.float64)
    blurred = gaussian_filter(x, 5, radius=7, mode="mirror", axes=(1, 2))
    result = high_pass_weight * (x - blurred) + np.asarray(params["identity_weight"], np.float64) * x
    for image, channel in np.ndindex(x.shape[0], x.shape[3]):
        for weight, kernel in zip(edge_weights, EDGE_FILTERS, strict=True):
            result[image, :, :, channel] += weight * 1e-3 * correlate2d(x[image, :, :, channel], kernel, "same")
    return result


def patch_attention(x: np.ndarray, params: Params, patch: int) -> np.ndarray:
    reduced = x @ np.asarray(params["reduce"]["kernel"], np.float64)[0, 0]
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    result = x * np.asarray(params["skip_scale"], np.float64)
    for image, row, column in np.ndindex(x.shape[0], rows, columns):
        grid = (image, slice(row, None, rows), slice(column, None, columns))
        inputs = np.concatenate([channel.ravel() for channel in np.moveaxis(reduced[grid], -1, 0)])
        hidden = dense(inputs, params["hidden"])
        hidden = gelu(layer_norm(hidden, params["hidden_norm"], epsilon=1e-5))
        result[grid] += dense(hidden, params["weight"]) * x[grid]
    return result


def dense(x: np.ndarray, params: Params) -> np.ndarray:
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def softmax_plus_one(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / (1 + exponentials.sum(-1, keepdims=True))


def window_attention(x: np.ndarray, params: Params, heads: int, size: int, shift: int) -> np.ndarray:
    """Window by window, head by head, pair of pixels by pair; the image is rolled by `shift`."""
    batch, height, width, channels = x.shape
    region = np.zeros((height, width))
    if shift:
        slices = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
            region[rows, columns] = number
    x = np.roll(x, (-shift, -shift), (1, 2))
    bias_params = params["position_bias"]
    factors = np.exp(np.minimum(np.asarray(params["logit_scale"], np.float64), np.log(100)))

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

    def scaled(offset: np.ndarray) -> np.ndarray:
        offset = offset / (size - 1) * 8
        return np.sign(offset) * np.log2(abs(offset) + 1) / np.log2(8)

    pixels = list(np.ndindex(size, size))
    bias = np.empty((heads, size**2, size**2))
    for query, key in np.ndindex(size**2, size**2):
        offset = scaled(np.subtract(pixels[query], pixels[key]))
        hidden = np.maximum(offset @ np.asarray(bias_params["hidden"]["kernel"]) + bias_params["hidden"]["bias"], 0)
        bias[:, query, key] = 16 / (1 + np.exp(-hidden @ np.asarray(bias_params["output"]["kernel"], np.float64)))

    result, depth = np.zeros(x.shape), channels // 2 // heads
    for image, top, left in np.ndindex(batch, height // size, width // size):
        part = (slice(top * size, (top + 1) * size), slice(left * size, (left + 1) * size))
        qkv = x[image][part][None] @ np.asarray(params["qkv"]["kernel"], np.float64)[0, 0]
        qkv = conv(qkv, params["qkv_spatial"]).reshape(size**2, 3 * channels)
        apart = region[part].ravel()[:, None] != region[part].ravel()
        attended = np.zeros((size**2, channels))
        for half, head in np.ndindex(2, heads):
            starts = [half * 3 * channels // 2 + index * channels // 2 + head * depth for index in range(3)]
            query, key, value = (qkv[:, start : start + depth] for start in starts)
            if half == 0:
                logits = unit(query) @ unit(key).T * factors[head] + bias[head] - 100 * apart
                mixed = softmax_plus_one(logits) @ value
            else:
                mixed = (softmax_plus_one(unit(query.T) @ unit(key.T).T) @ value.T).T
            start = half * channels // 2 + head * depth
            attended[:, start : start + depth] = mixed
        projected = attended @ np.asarray(params["project"]["kernel"], np.float64)[0, 0]
        result[image][part] = projected.reshape(size, size, channels)
    return np.roll(result, (shift, shift), (1, 2))


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def efficient_attention(x: np.ndarray, params: Params, source: np.ndarray | None = None) -> np.ndarray:
    """By the matrix of every pixel's weights for every pixel of the source, which the module never makes."""
    source = x if source is None else source
    source = source * (1 / (1 + np.exp(-pointwise(source, params["mask_head"]))))
    result = np.empty((*x.shape[:3], params["output"]["kernel"].shape[-1]))
    for index, (image, other) in enumerate(zip(x, source, strict=True)):
        keys = softmax(pointwise(other, params["key"]).reshape(other.shape[0] * other.shape[1], -1), 0)
        queries = softmax(pointwise(image, params["query"]).reshape(image.shape[0] * image.shape[1], -1), 1)
        attended = (queries @ keys.T) @ pointwise(other, params["value"]).reshape(len(keys), -1)
        result[index] = pointwise(attended.reshape(*image.shape[:2], -1), params["output"])
    return result


def pixel_dependent_filter(x: np.ndarray, params: Params, max_offset: int) -> np.ndarray:
    """Tap by tap, sampled with SciPy."""
    kernel = np.asarray(params["kernel"], np.float64)
    size, (rows, columns) = len(kernel), np.mgrid[: x.shape[1], : x.shape[2]]
    modulation = 1 + conv(x, params["modulation_head"])
    offsets = max_offset * np.tanh(conv(x, params["offset_head"])).reshape(*x.shape[:3], size * size, 2)
    result = np.zeros(x.shape) + np.asarray(params["bias"], np.float64)
    for index, image in enumerate(x):
        for tap, (i, j) in enumerate(np.ndindex(size, size)):
            moved = offsets[index, :, :, tap]
            places = rows + i - size // 2 + moved[..., 0], columns + j - size // 2 + moved[..., 1]
            planes = [
                map_coordinates(plane, places, order=1, mode="grid-constant") for plane in np.moveaxis(image, 2, 0)
            ]
            result[index] += modulation[index, :, :, tap, None] * np.stack(planes, -1) @ kernel[i, j]
    return result


def content_aware(x: np.ndarray, params: Params, max_offset: int, source: np.ndarray | None = None) -> np.ndarray:
    fusion = 1 / (1 + np.exp(-conv(x, params["fusion_head"])))
    attended = efficient_attention(x, params["attention"], source)
    return fusion * attended + (1 - fusion) * pixel_dependent_filter(x, params["filter"], max_offset)


def down_conv(x: np.ndarray, params: Params) -> np.ndarray:
    """3x3 with stride 2: every second result."""
    return conv(x, params)[:, ::2, ::2]


def up_conv(x: np.ndarray, params: Params) -> np.ndarray:
    """4x4 transposed with stride 2 and padding 1: every pixel leaves its kernel, and the outermost are cut off."""
    kernel = np.asarray(params["kernel"], np.float64)
    batch, height, width, _ = x.shape
    result = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for row, column in np.ndindex(height, width):
        left = np.einsum("bc,rsdc->brsd", x[:, row, column], kernel)
        result[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += left
    return result[:, 1:-1, 1:-1] + np.asarray(params["bias"], np.float64)


def saphn(images: np.ndarray, params: Params, max_offset: int) -> list[np.ndarray]:
    """Levels 1-2-4 with one block at each scale, patch by patch; what every level restores, the smallest first."""

    def block(x: np.ndarray, params: Params, source: np.ndarray | None = None) -> np.ndarray:
        y = content_aware(np.maximum(conv(x, params["first"]), 0), params["mixing"], max_offset, source)
        return x + conv(y, params["second"])

    def encode(patch: np.ndarray, level: int) -> list[np.ndarray]:
        own = params[f"encoder_{level}"]
        first = block(conv(patch, own["intro"]), own["blocks_0_0"])
        second = block(down_conv(first, own["down_0"]), own["blocks_1_0"])
        return [first, second, block(down_conv(second, own["down_1"]), own["blocks_2_0"])]

    def decode(x: np.ndarray, scales: list[np.ndarray], level: int) -> np.ndarray:
        own = params[f"decoder_{level}"]
        x = up_conv(block(x, own["blocks_2_0"], scales[2]), own["up_1"])
        x = up_conv(block(x, own["blocks_1_0"], scales[1]), own["up_0"])
        return conv(block(x, own["blocks_0_0"], scales[0]), params[f"ending_{level}"])

    def fused(own: np.ndarray, below: np.ndarray, level: int) -> np.ndarray:
        found = efficient_attention(own, params[f"level_attention_{level}"], below)
        return own + below + np.asarray(params[f"level_scale_{level}"], np.float64) * found

    def joined(pairs: list[list[np.ndarray]], axis: int) -> list[np.ndarray]:
        return [np.concatenate(pair, axis) for pair in zip(*pairs, strict=True)]

    whole = images - 0.5
    halves = np.split(whole, 2, 1)
    below, restored, scales = [], [], []
    for half in halves:
        encoded = joined([encode(quarter, 3) for quarter in np.split(half, 2, 2)], 2)
        restored.append(half + decode(encoded[-1], encoded, 3))
        scales.append(encode(restored[-1], 2))
        below.append(fused(scales[-1][-1], encoded[-1], 2))
    results = [np.concatenate(restored, 1)]
    scales, features = joined(scales, 1), np.concatenate(below, 1)
    results.append(whole + decode(features, scales, 2))
    own = encode(results[-1], 1)
    results.append(whole + decode(fused(own[-1], features, 1), own, 1))
    return [result + 0.5 for result in results]
