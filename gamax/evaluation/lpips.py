"""LPIPS: how different two images look, by the features of AlexNet (Zhang et al. 2018, arXiv 1801.03924).

Its weights are not part of gamax: the folder that the environment variable `GAMAX_LPIPS_WEIGHTS` names holds two files,
`alexnet-owt-*.pth` of torchvision and `alex.pth` of the authors' package (in its folder `lpips/weights/v0.1`), or both
as `.safetensors`, which can be read without PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from gamax.errors import UserError
from gamax.interop.torch_files import SUFFIXES, read_state_dict

FOLDER_VARIABLE = "GAMAX_LPIPS_WEIGHTS"
SMALLEST_SIDE = 31
"""Pixels of which one is left after the strides of AlexNet."""

Images = Float[Array, "b h w 3"]


class Layer(NamedTuple):
    """A convolution of AlexNet whose output is compared."""

    name: str
    """In torchvision's state dict."""
    shape: tuple[int, int, int, int]
    """Of its kernel: outputs, inputs, height, width."""
    stride: int
    padding: int
    """Rows and columns of zeros on each side."""
    pooled: bool = False
    """Whether its input is halved before by maxima over 3x3 pixels."""


LAYERS = (
    Layer("features.0", (64, 3, 11, 11), stride=4, padding=2),
    Layer("features.3", (192, 64, 5, 5), stride=1, padding=2, pooled=True),
    Layer("features.6", (384, 192, 3, 3), stride=1, padding=1, pooled=True),
    Layer("features.8", (256, 384, 3, 3), stride=1, padding=1),
    Layer("features.10", (256, 256, 3, 3), stride=1, padding=1),
)
LINEAR_NAMES = tuple(f"lin{index}.model.1.weight" for index in range(len(LAYERS)))
"""Of the weights of each layer's features, in the authors' file."""

_KERNEL_SHAPES = {f"{layer.name}.weight": layer.shape for layer in LAYERS}
_BIAS_SHAPES = {f"{layer.name}.bias": layer.shape[:1] for layer in LAYERS}
_LINEAR_SHAPES = {name: (1, layer.shape[0], 1, 1) for name, layer in zip(LINEAR_NAMES, LAYERS, strict=True)}
# Mean and standard deviation of ImageNet as the authors give them, for values of -1 to 1.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def lpips(restored: np.ndarray, target: np.ndarray) -> float:
    """LPIPS with AlexNet, version 0.1: 0 for equal images, and the larger the more different they look.

    A program is compiled for every different size.

    Args:
        restored: RGB `[H, W, 3]`, floats in [0, 1]; sides of at least 31 pixels.
        target: of the same shape and range.

    Raises:
        UserError: if the images have another shape or type, or the weights are not there.
    """
    if restored.shape != target.shape or target.ndim != 3 or target.shape[-1] != 3:
        raise UserError(f"LPIPS compares two RGB images [H, W, 3], not {restored.shape} and {target.shape}")
    if not (np.issubdtype(restored.dtype, np.floating) and np.issubdtype(target.dtype, np.floating)):
        raise UserError(f"LPIPS takes floats in [0, 1], not {restored.dtype} and {target.dtype}; divide by white")
    height, width = target.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(f"LPIPS needs images of at least {SMALLEST_SIDE} pixels a side, not {height}x{width}")
    first, second = (jnp.asarray(image, jnp.float32)[np.newaxis] for image in (restored, target))
    return float(_compiled(find_lpips_weights(), first, second)[0])


def lpips_distance(weights: Mapping[str, Array], restored: Images, target: Images) -> Float[Array, " b"]:
    """LPIPS of pairs of images in [0, 1]; a pure function, for scores and not for gradients.

    Args:
        weights: by their names in the two files, in PyTorch's layout; `LAYERS` and `LINEAR_NAMES` say which.
        restored: `[B, H, W, 3]`.
        target: `[B, H, W, 3]`.
    """
    maps = (2 * jnp.concatenate([restored, target]) - 1 - _SHIFT) / _SCALE
    distance = jnp.zeros(len(target))
    for layer, linear_name in zip(LAYERS, LINEAR_NAMES, strict=True):
        if layer.pooled:
            maps = nn.max_pool(maps, (3, 3), (2, 2))
        kernel, bias = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
        maps = nn.relu(_convolved(maps, kernel, layer.stride, layer.padding) + bias)
        lengths = jnp.sqrt(jnp.square(maps).sum(-1, keepdims=True))
        first, second = jnp.split(maps / (lengths + 1e-10), 2)
        distance += (jnp.square(first - second) * weights[linear_name].reshape(-1)).sum(-1).mean(1).mean(1)
    return distance


def find_lpips_weights() -> dict[str, Array]:
    """The weights in the folder that the environment variable names, read once; `UserError` if they are not there."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise UserError(
            f"LPIPS needs weights: set {FOLDER_VARIABLE} to a folder with torchvision's alexnet-owt-7be5be79.pth and "
            "alex.pth of the package lpips"
        )
    return read_lpips_weights(Path(folder))


@cache
def read_lpips_weights(folder: Path) -> dict[str, Array]:
    """The weights of AlexNet's convolutions and of the comparison; `UserError` if a file is missing or another's."""
    if not folder.is_dir():
        raise UserError(f"{FOLDER_VARIABLE} names '{folder}', which is no folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    alexnet = [path for path in files if path.stem.startswith("alexnet")]
    linear = [path for path in files if path.stem == "alex"]
    return {
        **_read(folder, "alexnet-owt-7be5be79.pth", alexnet, {**_KERNEL_SHAPES, **_BIAS_SHAPES}),
        **_read(folder, "alex.pth", linear, _LINEAR_SHAPES),
    }


def _read(folder: Path, name: str, found: list[Path], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    if len(found) != 1:
        there = ", ".join(f"'{path.name}'" for path in found) or "none"
        raise UserError(f"LPIPS needs one file like '{name}' in '{folder}' ({FOLDER_VARIABLE}); there is {there}")
    tensors = read_state_dict(found[0])
    for key, shape in shapes.items():
        if key not in tensors or tensors[key].shape != shape:
            held = f"of shape {tensors[key].shape}" if key in tensors else "missing"
            raise UserError(f"'{found[0]}' is not the file '{name}': its tensor '{key}' {shape} is {held}")
    return {key: jnp.asarray(tensors[key]) for key in shapes}


def _convolved(maps: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        maps,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


_compiled = jax.jit(lpips_distance)
