"""GAMA-IR of `gamax.models.gama_ir` in PyTorch (arXiv 2404.00807): the same function of the same parameters.

Modules have the names that they have in JAX.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gamax.benchmark.torch_networks.layers import (
    LayerNorm,
    SqueezeExcite,
    add_residual,
    add_scaled,
    is_channels_last,
    pad_to_multiple,
    pixel_shuffle,
    pixel_unshuffle,
    simple_gate,
)


class GAMAIR(nn.Module):
    """Restores `[B, 3, H, W]` images in [0, 1] of any size; arguments as in the network of the same name in JAX."""

    def __init__(
        self, width: int, depth: int, levels: int, blocks_per_level: int, mixer: str | None, spatial_conv: str
    ) -> None:
        super().__init__()
        self.levels = levels
        self.blocks_per_level = blocks_per_level
        self.bottom_blocks = depth - 2 * levels * blocks_per_level
        self.intro = nn.Conv2d(3, width, 3, padding=1)
        for level in range(levels):
            channels = width << level
            for way in ("encoder", "decoder"):
                for index in range(blocks_per_level):
                    self.add_module(f"{way}_{level}_{index}", _Block(channels, mixer, spatial_conv))
            self.add_module(f"down_{level}", nn.Conv2d(channels, channels // 2, 1))
            self.add_module(f"up_{level}", nn.Conv2d(2 * channels, 4 * channels, 1))
        for index in range(self.bottom_blocks):
            self.add_module(f"bottom_{index}", _Block(width << levels, mixer, spatial_conv))
        self.ending = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns restored images of the same shape, float32."""
        x, skips = self.intro(pad_to_multiple(images, 2**self.levels)), []
        for level in range(self.levels):
            x = self._blocks(f"encoder_{level}", self.blocks_per_level, x)
            skips.append(x)
            x = pixel_unshuffle(self.get_submodule(f"down_{level}")(x))
        x = self._blocks("bottom", self.bottom_blocks, x)
        for level in reversed(range(self.levels)):
            x = pixel_shuffle(self.get_submodule(f"up_{level}")(x)) + skips.pop()
            x = self._blocks(f"decoder_{level}", self.blocks_per_level, x)
        return add_residual(images, self.ending(x))

    def _blocks(self, name: str, count: int, x: Tensor) -> Tensor:
        for index in range(count):
            x = self.get_submodule(f"{name}_{index}")(x)
        return x


class _Block(nn.Module):
    """`gamax.blocks.NAFBlock`: a spatial half with a mixer and a channel half, each added with a learned scale."""

    def __init__(self, channels: int, mixer: str | None, spatial_conv: str) -> None:
        super().__init__()
        self.spatial_norm = LayerNorm(channels)
        self.expand: nn.Module
        if spatial_conv == "depthwise":
            self.expand = nn.Conv2d(channels, 2 * channels, 1)
            self.spatial = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        else:
            self.expand = nn.Identity()
            self.spatial = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.mixing = _mixer(mixer, channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.spatial_scale = nn.Parameter(torch.zeros(channels))
        self.channel_norm = LayerNorm(channels)
        self.channel_expand = nn.Conv2d(channels, 2 * channels, 1)
        self.channel_project = nn.Conv2d(channels, channels, 1)
        self.channel_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = simple_gate(self.spatial(self.expand(self.spatial_norm(x))))
        x = add_scaled(x, self.project(self.mixing(y)), self.spatial_scale)
        y = simple_gate(self.channel_expand(self.channel_norm(x)))
        return add_scaled(x, self.channel_project(y), self.channel_scale)


def _mixer(name: str | None, channels: int) -> nn.Module:
    if name == "gama":
        return GAMA()
    if name == "squeeze_excite":
        return SqueezeExcite(channels, max(channels // 16, 1))
    if name == "sca":
        return _SimplifiedChannelAttention(channels)
    return nn.Identity()


class GAMA(nn.Module):
    """Adds to every feature the filtered means of its pixel, its column and its row: `gamax.blocks.GAMA`.

    The kernels are the transposes of those in JAX, as the converter transposes every matrix.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.channel_kernel = nn.Parameter(torch.zeros(kernel_size, kernel_size))
        self.height_kernel = nn.Parameter(torch.zeros(kernel_size, kernel_size))
        self.width_kernel = nn.Parameter(torch.zeros(kernel_size, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """Maps features `[B, C, H, W]` to features of the same shape; the means are float32."""
        # Maps over channels and columns, or rows, lie in memory as the features do: adding others to them, or reducing
        # into others, takes ten times as long on CPU.
        if is_channels_last(x):
            x = x.permute(0, 2, 3, 1)
            mixed = self._mix(x, (3, self.channel_kernel.T), (1, self.height_kernel.T), (2, self.width_kernel.T))
            return mixed.permute(0, 3, 1, 2)
        return self._mix(x, (1, self.channel_kernel.T), (2, self.height_kernel), (3, self.width_kernel))

    def _mix(self, x: Tensor, *means: tuple[int, Tensor]) -> Tensor:
        # Sums divided afterwards: the gradient of `mean` divides an array as large as the features.
        first, second, third = (
            _filter((x.sum(axis, dtype=torch.float32) / x.shape[axis]).to(x.dtype), kernel).unsqueeze(axis)
            for axis, kernel in means
        )
        result = x + first
        result += second
        result += third
        return result


def _filter(maps: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlates maps `[B, M, N]` with a kernel `[k, k]`, zeros outside."""
    return F.conv2d(maps[:, None], kernel[None, None], padding=kernel.shape[0] // 2)[:, 0]


class _SimplifiedChannelAttention(nn.Module):
    """`x * (W mean_hw(x) + b)`, the channel attention of NAFNet (arXiv 2204.04676)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight(F.adaptive_avg_pool2d(x, 1))
