"""DMPHN: encoder-decoders on ever smaller patches of an image, the smallest first (arXiv 1904.03468).

The layout is that of the authors' code (DMPHN 1-2-4 and 1-2-4-8, not the stacked ones), written from its description
and checked against tensors recorded from it. Theirs takes images shifted to [-0.5, 0.5]; here the shift is inside.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.padding import pad_to_multiple
from gamax.blocks.residual import ResidualDecoder, ResidualEncoder
from gamax.errors import UserError


class DMPHN(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    Level 1 works on the whole image, level 2 on its upper and lower half, level 3 on the left and right halves of
    these, and so on: `levels=3` is the network 1-2-4, 4 is 1-2-4-8. Each level has one encoder and one decoder, of
    `widths` channels at full, half and quarter resolution, for all of its patches. What a level decodes is added to the
    larger patches of the level above; what level 1 decodes is the image, there is no residual to the input. Images are
    padded by reflection. Raises `UserError` for numbers that make no network.
    """

    levels: int = 3
    widths: tuple[int, ...] = (32, 64, 128)
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UserError(f"DMPHN needs at least one level, not {self.levels}")
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise UserError(f"DMPHN needs three widths of at least 1, not {self.widths}")
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """Tiles must start on a multiple of this; heights are padded to one, for widths half of it may do."""
        return 4 * 2 ** (self.levels // 2)

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return 3

    @property
    def global_statistics(self) -> bool:
        """Whether tiling changes the result: patches end in the middle of what the network is given, so it does."""
        return self.levels > 1

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that images are padded to."""
        return height + -height % self.size_multiple, width + -width % self._width_multiple

    @property
    def _width_multiple(self) -> int:
        # Even levels cut the height, odd ones the width: with an even number of levels it is cut once less.
        return 4 * 2 ** ((self.levels - 1) // 2)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        height, width, channels = images.shape[1:]
        options = {"scan": self.scan, "remat": self.remat, "dtype": self.dtype, "param_dtype": self.param_dtype}

        # All patches of a level have one size and go through its encoder as one batch, and so through its decoder.
        def encode(patches: Array, level: int) -> Array:
            return ResidualEncoder(self.widths, name=f"encoder_{level}", **options)(patches)

        def decode(features: Array, level: int) -> Array:
            decoder = ResidualDecoder(channels, self.widths, name=f"decoder_{level}", **options)
            return decoder(features).astype(jnp.float32)

        padded_width = width + -width % self._width_multiple
        padded = pad_to_multiple(images.astype(jnp.float32), self.size_multiple)[:, :, :padded_width]
        patches = [padded - 0.5]
        for level in range(2, self.levels + 1):
            patches.append(_cut(patches[-1], level))

        features = encode(patches.pop(), self.levels)
        for level in range(self.levels, 1, -1):
            # Two patches that the level above keeps in one piece are joined before they are decoded for it.
            features = _join(features, level)
            larger = patches.pop() + decode(features, level)
            features = encode(larger, level - 1) + features
        return decode(features, 1)[:, :height, :width] + 0.5


def _cut(patches: Float[Array, "n h w c"], level: int) -> Float[Array, "n2 h2 w2 c"]:
    """The halves, one below the other at even levels and side by side at odd ones, next to each other in the batch."""
    count, height, width, channels = patches.shape
    if level % 2 == 0:
        return patches.reshape(2 * count, height // 2, width, channels)
    halves = patches.reshape(count, height, 2, width // 2, channels).swapaxes(1, 2)
    return halves.reshape(2 * count, height, width // 2, channels)


def _join(patches: Float[Array, "n h w c"], level: int) -> Float[Array, "n2 h2 w2 c"]:
    """The inverse of `_cut`."""
    count, height, width, channels = patches.shape
    if level % 2 == 0:
        return patches.reshape(count // 2, 2 * height, width, channels)
    halves = patches.reshape(count // 2, 2, height, width, channels).swapaxes(1, 2)
    return halves.reshape(count // 2, height, 2 * width, channels)
