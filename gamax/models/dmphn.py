"""DMPHN: encoder-decoders on ever smaller patches of an image, the smallest first (arXiv 1904.03468).

The layout is that of the authors' code (DMPHN 1-2-4 and 1-2-4-8, not the stacked ones), written from its description
and checked against tensors recorded from it. Theirs takes images shifted to [-0.5, 0.5]; here the shift is inside.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.patch_hierarchy import check_levels, encode_patches, pad_to_patches, patch_multiples
from gamax.blocks.residual import ResidualDecoder, ResidualEncoder
from gamax.errors import UserError


class DMPHN(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    Level 1 works on the whole image, level 2 on its upper and lower half, level 3 on the left and right halves of
    these, and so on: `levels` are the numbers of patches, (1, 2, 4, 8) for the network 1-2-4-8. Each level has one
    encoder and one decoder, of `widths` channels at full, half and quarter resolution, for all of its patches. What a
    level decodes is added to the larger patches of the level above; what level 1 decodes is the image, there is no
    residual to the input. Images are padded by reflection. Raises `UserError` for numbers that make no network.
    """

    levels: tuple[int, ...] = (1, 2, 4)
    widths: tuple[int, ...] = (32, 64, 128)
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise UserError(f"DMPHN needs three widths of at least 1, not {self.widths}")
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """Tiles must start on a multiple of this; heights are padded to one, for widths half of it may do."""
        return patch_multiples(self.levels, 4)[0]

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return 3

    @property
    def global_statistics(self) -> bool:
        """Whether tiling changes the result: patches end in the middle of what the network is given, so it does."""
        return len(self.levels) > 1

    @property
    def rows_divisible(self) -> bool:
        """Whether several devices can share the rows of an image in training: not if patches are cut from it."""
        return len(self.levels) == 1

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that images are padded to."""
        multiples = patch_multiples(self.levels, 4)
        return height + -height % multiples[0], width + -width % multiples[1]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        height, width, channels = images.shape[1:]
        options = {"scan": self.scan, "remat": self.remat, "dtype": self.dtype, "param_dtype": self.param_dtype}

        def encode(patches: Array, level: int) -> Array:
            return ResidualEncoder(self.widths, name=f"encoder_{level}", **options)(patches)

        def decode(features: Array, level: int) -> Array:
            decoder = ResidualDecoder(channels, self.widths, name=f"decoder_{level}", **options)
            return decoder(features).astype(jnp.float32)

        padded = pad_to_patches(images.astype(jnp.float32), patch_multiples(self.levels, 4))
        features, _ = encode_patches(padded - 0.5, self.levels, encode, decode, lambda own, below, _: own + below)
        return decode(features, 1)[:, :height, :width] + 0.5
