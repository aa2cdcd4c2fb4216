"""Restormer: an encoder-decoder of transformer blocks whose attention is between channels (arXiv 2111.09881).

The layout is that of the authors' code, written from its description and checked against tensors recorded from it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks import Conv, TransposedAttentionBlock, pad_to_multiple, pixel_shuffle, pixel_unshuffle, repeat
from gamax.blocks.pooling import check_local_window
from gamax.errors import UserError


class Restormer(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    `width` channels at full resolution, doubled at each of three halvings; `blocks` and `heads` on the four levels, and
    `refinement_blocks` at the end. `bias_free` is the norm of the published networks for denoising, the other one that
    of those for deblurring and deraining. With `dual_pixel` the input is `[B, H, W, 6]`, left and right view, and the
    output `[B, H, W, 3]`; grey images have one of `image_channels`. With `local_window` the channels attend to each
    other in overlapping windows of that many pixels, halved on every level, instead of the whole image (test-time local
    conversion, arXiv 2112.04491; `TransposedAttention` says how); parameters stay the same. Raises `UserError` for
    numbers that make no network.
    """

    width: int = 48
    blocks: tuple[int, ...] = (4, 6, 6, 8)
    refinement_blocks: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    expansion: float = 2.66
    bias_free: bool = False
    dual_pixel: bool = False
    image_channels: int = 3
    local_window: int | None = None
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    view_order: ClassVar[str] = "left-right"

    def __post_init__(self) -> None:
        if len(self.blocks) != 4 or len(self.heads) != 4:
            raise UserError(
                f"Restormer has four levels: blocks and heads need four numbers, not {self.blocks} and {self.heads}"
            )
        if min(*self.blocks, self.refinement_blocks) < 0 or min(self.heads) < 1:
            raise UserError("Restormer's numbers of blocks must not be negative, and its heads be at least 1")
        indivisible = [heads for level, heads in enumerate(self.heads) if (self.width << level) % heads]
        # The first way down halves the channels before the pixels become channels.
        if self.width < 2 or self.width % 2 or indivisible:
            raise UserError(
                f"Restormer needs an even width that its heads divide on every level, not {self.width} and {self.heads}"
            )
        if not math.isfinite(self.expansion) or int(self.expansion * self.width) < 1:
            raise UserError(f"Restormer's expansion must leave a hidden channel, which {self.expansion} does not")
        if self.image_channels < 1:
            raise UserError(f"Restormer needs at least one channel, not {self.image_channels}")
        if self.local_window is not None:
            check_local_window(self.local_window, 3)
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """The network pads sides to a multiple of this; tiles must start on one."""
        return 8

    @property
    def input_channels(self) -> int:
        """Channels of the images it takes: two views side by side with `dual_pixel`."""
        return 2 * self.image_channels if self.dual_pixel else self.image_channels

    @property
    def global_statistics(self) -> bool:
        """Whether every output pixel depends on the whole input, so that tiling changes the result."""
        return True

    @nn.compact
    def __call__(self, images: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
        """Returns restored images, float32; `UserError` unless the input has `input_channels`."""
        height, width, channels = images.shape[1:]
        if channels != self.input_channels:
            views = " with dual_pixel" if self.dual_pixel else ""
            raise UserError(f"this Restormer takes images of {self.input_channels} channels{views}, not {channels}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, use_bias=False, **dtypes)

        def stage(x: Array, name: str, count: int, level: int) -> Array:
            heads = self.heads[level]
            window = self.local_window and self.local_window >> level
            block = partial(TransposedAttentionBlock, heads, self.expansion, self.bias_free, window, **dtypes)
            return repeat(self, block, count, x, name, scan=self.scan, remat=self.remat)

        embedded = x = conv(self.width, 3, name="embed")(pad_to_multiple(images, self.size_multiple))
        skips = []
        for level in range(3):
            x = stage(x, f"encoder_{level}", self.blocks[level], level)
            skips.append(x)
            x = pixel_unshuffle(conv(x.shape[-1] // 2, 3, name=f"down_{level}")(x), 2)

        x = stage(x, "bottom", self.blocks[3], 3)

        for level in reversed(range(3)):
            x = pixel_shuffle(conv(2 * x.shape[-1], 3, name=f"up_{level}")(x), 2)
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            # At full resolution both halves are kept.
            if level > 0:
                x = conv(x.shape[-1] // 2, 1, name=f"reduce_{level}")(x)
            x = stage(x, f"decoder_{level}", self.blocks[level], level)
        x = stage(x, "refinement", self.refinement_blocks, 0)

        if self.dual_pixel:
            x = x + conv(x.shape[-1], 1, name="skip")(embedded)
        restored = conv(self.image_channels, 3, name="output")(x)[:, :height, :width].astype(jnp.float32)
        return restored if self.dual_pixel else images.astype(jnp.float32) + restored
