"""Layers that several of the PyTorch networks share, each in the formulation that PyTorch runs fastest on a CPU.

No GPU was at hand: there another formulation may be faster.

All maps are `[B, C, H, W]`, contiguous or in the channels-last memory format, which every layer keeps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of every pixel lie next to each other in memory."""
    return x.is_contiguous(memory_format=torch.channels_last)


class LayerNorm(nn.Module):
    """Layer norm over the channels of every pixel, `[B, C, H, W]` to the same shape and dtype; float32 statistics."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalises every pixel."""
        if is_channels_last(x):
            # Autocast would write the result in float32, to have the next convolution round it.
            with torch.autocast(x.device.type, enabled=False):
                weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
                normalised = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, self.eps)
                return normalised.permute(0, 3, 1, 2)
        # Where channels lie apart, PyTorch's own kernel needs two copies, and `torch.var_mean` takes six times as long.
        centred = x.float() - x.mean(1, keepdim=True, dtype=torch.float32)
        normalised = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + self.eps)
        return torch.addcmul(self.bias[:, None, None], normalised, self.weight[:, None, None]).to(x.dtype)


def simple_gate(x: Tensor) -> Tensor:
    """The first half of the channels times the second: `[B, 2 C, H, W]` to `[B, C, H, W]`."""
    first, second = x.chunk(2, 1)
    return first * second


def add_scaled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """`x + scale * y` in one pass, with one learned number for each channel; `scale` has C elements."""
    return torch.addcmul(x, y, scale.view(-1, 1, 1).to(y.dtype))


class SqueezeExcite(nn.Module):
    """`x * sigmoid(W2 relu(W1 mean_hw(x)))` with `hidden` channels in between (arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weighs every channel by a gate that depends on the mean of the image."""
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


def pixel_shuffle(x: Tensor) -> Tensor:
    """`[B, 4 C, H, W]` to `[B, C, 2 H, 2 W]`."""
    return _in_layout_of(x, F.pixel_shuffle(x, 2))


def pixel_unshuffle(x: Tensor) -> Tensor:
    """`[B, C, 2 H, 2 W]` to `[B, 4 C, H, W]`."""
    return _in_layout_of(x, F.pixel_unshuffle(x, 2))


def _in_layout_of(x: Tensor, result: Tensor) -> Tensor:
    # PyTorch's shuffles keep the memory format on CPU but not on CUDA.
    return result.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else result


def pad_to_multiple(images: Tensor, multiple: int, minimum: int = 0) -> Tensor:
    """Pads on the right and at the bottom to sides of at least `minimum` that `multiple` divides.

    By reflection without repeating the edge; a side too short to be reflected has its edge repeated.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        missing = max(minimum - size, 0)
        missing += -(size + missing) % multiple
        if missing:
            widths = (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0)
            images = F.pad(images, widths, mode="reflect" if missing < size else "replicate")
    return images


def add_residual(images: Tensor, *residuals: Tensor) -> Tensor:
    """Images plus what a network computed for the padded ones, in float32 whatever the precision of the network."""
    height, width = images.shape[2:]
    result = images.float()
    for residual in residuals:
        result = result + residual[:, :, :height, :width]
    return result
