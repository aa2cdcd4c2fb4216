"""The plain UNet of `gamax.models.unet` in PyTorch, under the names of Uformer's code (arXiv 2106.03106)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gamax.benchmark.torch_networks.layers import add_residual, pad_to_multiple

_HALVINGS = 4


class UNet(nn.Module):
    """Restores `[B, 3, H, W]` images in [0, 1] of any size; `width` as in the network of the same name in JAX."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, *(width << level for level in range(_HALVINGS + 1))]
        for level in range(1, _HALVINGS + 1):
            here, below = widths[level], widths[level + 1]
            self.add_module(f"ConvBlock{level}", _Block(widths[level - 1], here))
            self.add_module(f"pool{level}", nn.Conv2d(here, here, 4, stride=2, padding=1))
            self.add_module(f"upv{10 - level}", nn.ConvTranspose2d(below, here, 2, stride=2))
            self.add_module(f"ConvBlock{10 - level}", _Block(2 * here, here))
        self.ConvBlock5 = _Block(widths[_HALVINGS], widths[_HALVINGS + 1])
        self.conv10 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns restored images of the same shape, float32."""
        x, skips = pad_to_multiple(images, 2**_HALVINGS), []
        for level in range(1, 5):
            x = self.get_submodule(f"ConvBlock{level}")(x)
            skips.append(x)
            x = self.get_submodule(f"pool{level}")(x)
        x = self.ConvBlock5(x)
        for level in range(6, 10):
            x = torch.cat([self.get_submodule(f"upv{level}")(x), skips.pop()], 1)
            x = self.get_submodule(f"ConvBlock{level}")(x)
        return add_residual(images, self.conv10(x))


class _Block(nn.Module):
    """Two 3x3 convolutions with leaky ReLU (slope 0.01) each, plus a 1x1 convolution of the input."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(inputs, features, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(features, features, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
        )
        self.conv11 = nn.Conv2d(inputs, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.conv11(x)
