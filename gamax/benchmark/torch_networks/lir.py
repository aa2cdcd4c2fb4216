"""LIR of `gamax.models.lir` in PyTorch, under the names of the authors' code (arXiv 2402.01368)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gamax.benchmark.torch_networks.layers import (
    LayerNorm,
    add_residual,
    add_scaled,
    pad_to_multiple,
    pixel_shuffle,
    pixel_unshuffle,
    simple_gate,
)


class LIR(nn.Module):
    """Restores `[B, 3, H, W]` images in [0, 1] of any size; arguments as in the network of the same name in JAX."""

    def __init__(
        self, width: int, encoder_blocks: tuple[int, ...], middle_blocks: int, decoder_blocks: tuple[int, ...]
    ) -> None:
        super().__init__()

        def stage(count: int, patch: int, reduction: int) -> nn.Sequential:
            return nn.Sequential(*(_EAABlock(width, patch, reduction) for _ in range(count)))

        self.Conv_head = _ConvPReLU(3, width)
        self.EAA1 = stage(encoder_blocks[0], 8, 16)
        self.downsample1 = nn.Sequential(_conv(width, width // 4), _Unshuffle())
        self.EAA2 = stage(encoder_blocks[1], 8, 8)
        self.downsample2 = nn.Sequential(_conv(width, width // 4), _Unshuffle())
        self.EAA3 = stage(middle_blocks, 4, 8)
        self.upsample2 = nn.Sequential(_conv(width, 4 * width), _Shuffle())
        self.down = _ConvPReLU(2 * width, width)
        self.EAA4 = stage(decoder_blocks[0], 8, 8)
        self.upsample1 = nn.Sequential(_conv(width, 4 * width), _Shuffle())
        self.EAA5 = stage(decoder_blocks[1], 8, 16)
        self.transpose1 = _doubling(width, width)
        self.transpose2 = _doubling(width, 3)
        self.Conv_tail = _ConvPReLU(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Returns restored images of the same shape, float32."""
        head = self.Conv_head(pad_to_multiple(images, 32, minimum=128))
        early = self.downsample1(self.EAA1(head))
        x = self.EAA3(self.downsample2(self.EAA2(early)))
        late = self.EAA4(self.down(torch.cat([self.upsample2(x), early], 1)))
        x = self.EAA5(self.upsample1(late))
        lost = early - late
        residual = self.Conv_tail(x + head - self.transpose1(lost))
        return add_residual(images, residual, -self.transpose2(lost))


class _EAABlock(nn.Module):
    """Five stages of attention at full, half, quarter, quarter and half resolution, all but the first filtered."""

    def __init__(self, channels: int, patch: int, reduction: int) -> None:
        super().__init__()
        half = patch // 2
        self.stage1 = nn.Sequential(_AttentionBlock(channels, patch, reduction), _conv(channels, channels, stride=2))
        self.stage2 = nn.Sequential(
            _AdaptiveFilter(channels), _AttentionBlock(channels, half, reduction), _conv(channels, channels, stride=2)
        )
        self.stage3 = nn.Sequential(_AdaptiveFilter(channels), _AttentionBlock(channels, half, reduction))
        self.stage4 = nn.Sequential(
            _AdaptiveFilter(channels), _AttentionBlock(channels, half, reduction), _doubling(channels, channels)
        )
        self.stage5 = nn.Sequential(
            _AdaptiveFilter(2 * channels),
            _AttentionBlock(2 * channels, patch, reduction),
            _doubling(2 * channels, channels),
        )
        self.transpose = _doubling(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        half = self.stage1(x)
        refined = self.stage4(self.stage3(self.stage2(half)))
        y = self.stage5(torch.cat([refined, half], 1))
        return y + x - self.transpose(half - refined)


class _AttentionBlock(nn.Module):
    """Convolutions, patch attention, a gate and channel attention, one after the other."""

    def __init__(self, channels: int, patch: int, reduction: int) -> None:
        super().__init__()
        self.resblock = _ResBlock(channels, channel_attention=False)
        self.pa = _PatchAttention(channels, patch, reduction)
        self.sg = _ResidualGate(channels)
        self.rescablock = _ResBlock(channels, channel_attention=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rescablock(self.sg(self.pa(self.resblock(x))))


class _ResBlock(nn.Module):
    """1x1, depth-wise 3x3, norm, GELU and 1x1 with 2 C channels in between, added with a learned scale."""

    def __init__(self, channels: int, channel_attention: bool) -> None:
        super().__init__()
        inner = 2 * channels
        self.conv_1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv_2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.layernorm = LayerNorm(inner)
        self.conv_3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.ca = _ChannelAttention(channels) if channel_attention else nn.Identity()
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_3(F.gelu(self.layernorm(self.conv_2(self.conv_1(x)))))
        return add_scaled(x, self.ca(y), self.alpha)


class _ChannelAttention(nn.Module):
    """Squeeze-and-excite with C // 16 hidden channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 1)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class _PatchAttention(nn.Module):
    """`(weight + beta) * x` with one weight for every grid of pixels that lie H / patch rows and W / patch apart."""

    def __init__(self, channels: int, patch: int, reduction: int) -> None:
        super().__init__()
        self.patch = patch
        reduced = max(channels // reduction, 1)
        self.down = nn.Conv2d(channels, reduced, 1, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(reduced * patch**2, patch**2), nn.LayerNorm(patch**2), nn.GELU(), nn.Linear(patch**2, 1)
        )
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # `[B, rows, columns, C' * patch * patch]`.
        weight = self.mlp(self._grids(self.down(x)).permute(0, 3, 5, 1, 2, 4).flatten(3))
        weight = (weight.permute(0, 3, 1, 2) + self.beta).to(x.dtype)
        return (self._grids(x) * weight[:, :, None, :, None]).reshape(x.shape)

    def _grids(self, x: Tensor) -> Tensor:
        """`[B, C, patch, H / patch, patch, W / patch]`, a view."""
        return x.unflatten(3, (self.patch, -1)).unflatten(2, (self.patch, -1))


class _ResidualGate(nn.Module):
    """`x + gamma * gate(W norm(x) + b)`; the authors call it SimpleGate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.conv = nn.Conv2d(channels, 2 * channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return add_scaled(x, simple_gate(self.conv(self.norm(x))), self.gamma)


_EDGE_FILTERS = (
    ((1, 0, -1), (2, 0, -2), (1, 0, -1)),  # Sobel x
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),  # Sobel y
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),  # Laplacian
    ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),  # edge
    ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),  # Sobel xy
    ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),  # Sobel yx
    ((1, 0, 0), (0, -1, 0), (0, 0, 0)),  # Roberts x
    ((0, 1, 0), (-1, 0, 0), (0, 0, 0)),  # Roberts y
)
_REACH, _SIGMA = 7, 5.0


class _AdaptiveFilter(nn.Module):
    """A learned mix of eight edge filters, the high-pass `x - blur(x)` and `x`, computed in float32."""

    edge_filters: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(torch.zeros(9))
        self.beta = nn.Parameter(torch.zeros(1))
        self.blur = _GaussianBlur(channels)
        self.register_buffer("edge_filters", 1e-3 * torch.tensor(_EDGE_FILTERS, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            kernel = (self.alpha[:8, None, None] * self.edge_filters).sum(0)
            edges = F.conv2d(values, kernel.expand(self.channels, 1, 3, 3), padding=1, groups=self.channels)
            high_pass = values - self.blur(values)
            return (edges + self.alpha[8] * high_pass + self.beta * values).to(x.dtype)


class _GaussianBlur(nn.Module):
    """Every channel convolved with a 15x15 Gaussian (sigma 5), the image reflected at its border."""

    taps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1, dtype=torch.float64) / _SIGMA) ** 2)
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Down, then across: on CPU a half to a tenth of the time of 15x15 taps.
        x = F.pad(x, (_REACH,) * 4, mode="reflect")
        x = F.conv2d(x, self.taps[:, None].expand(self.channels, 1, -1, 1), groups=self.channels)
        return F.conv2d(x, self.taps.expand(self.channels, 1, 1, -1), groups=self.channels)


class _ConvPReLU(nn.Module):
    """3x3 convolution without bias, then a leaky ReLU with one learned slope."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.conv = _conv(inputs, features)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class _Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x)


class _Unshuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pixel_unshuffle(x)


def _conv(inputs: int, features: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)


def _doubling(inputs: int, features: int) -> nn.ConvTranspose2d:
    """4x4 transposed convolution that doubles the sides."""
    return nn.ConvTranspose2d(inputs, features, 4, stride=2, padding=1, bias=False)
