"""LIR: a light encoder-decoder of adaptive attention, in two nested scales (arXiv 2402.01368).

The layout is that of the authors' code (github.com/Dongqi-Fan/LIR), written from its description and checked against
tensors recorded from it. Where its training and its merged inference path differ, this is the one it was trained with.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.adaptive_attention import EAABlock
from gamax.blocks.convolution import Conv, ConvTranspose
from gamax.blocks.padding import pad_to_multiple
from gamax.blocks.pooling import check_local_window
from gamax.blocks.repetition import repeat
from gamax.blocks.resampling import pixel_shuffle, pixel_unshuffle
from gamax.errors import UserError

SMALLEST_SIDE = 128
"""To which smaller images are padded."""


class LIR(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    `width` channels at every resolution; `encoder_blocks` and `decoder_blocks` give the blocks at full and half
    resolution, the decoder's from the lower up, and `middle_blocks` those at a quarter. What the features at half
    resolution lost between encoder and decoder is taken for degradation and subtracted from both residuals, of the
    features and of the image. Images are reflected to multiples of 32, at least 128, where the authors' tests crop
    them. `local_window` is that of NAFNet for the channel attention: means over that many pixels around every pixel
    instead of the image, halved on every level, in and between the blocks; the patch attention stays global.
    Parameters are the same with it. Raises `UserError` for numbers that make no network.
    """

    width: int = 48
    encoder_blocks: tuple[int, ...] = (3, 3)
    middle_blocks: int = 3
    decoder_blocks: tuple[int, ...] = (3, 4)
    local_window: int | None = None
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if len(self.encoder_blocks) != 2 or len(self.decoder_blocks) != 2:
            raise UserError(
                f"LIR has two levels: encoder_blocks and decoder_blocks need two numbers, not {self.encoder_blocks} "
                f"and {self.decoder_blocks}"
            )
        if min(*self.encoder_blocks, self.middle_blocks, *self.decoder_blocks) < 0:
            raise UserError("LIR's numbers of blocks must not be negative")
        if self.width < 16 or self.width % 16:
            raise UserError(f"LIR needs a width that 16 divides, for its patch and channel attention, not {self.width}")
        if self.local_window is not None:
            # Two halvings between the blocks and two inside.
            check_local_window(self.local_window, 4)
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """The network pads sides to a multiple of this; tiles must start on one."""
        return 32

    @property
    def global_statistics(self) -> bool:
        """Whether every output pixel depends on the whole input, so that tiling changes the result."""
        return True

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return 3

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that images are padded to."""
        rows, columns = (max(side + -side % self.size_multiple, SMALLEST_SIDE) for side in (height, width))
        return rows, columns

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        height, width, channels = images.shape[1:]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, kernel_size=3, use_bias=False, **dtypes)
        double = partial(ConvTranspose, kernel_size=4, use_bias=False, **dtypes)
        conv_prelu = partial(_ConvPReLU, **dtypes)

        def stage(x: Array, name: str, count: int, level: int, patch: int, reduction: int) -> Array:
            block = partial(EAABlock, patch, reduction, self.local_window and self.local_window >> level, **dtypes)
            return repeat(self, block, count, x, name, scan=self.scan, remat=self.remat)

        x = head = conv_prelu(self.width, name="head")(
            pad_to_multiple(images, self.size_multiple, minimum=SMALLEST_SIDE)
        )
        x = stage(x, "encoder_0", self.encoder_blocks[0], level=0, patch=8, reduction=16)
        x = early = pixel_unshuffle(conv(self.width // 4, name="down_0")(x), 2)
        x = stage(x, "encoder_1", self.encoder_blocks[1], level=1, patch=8, reduction=8)
        x = pixel_unshuffle(conv(self.width // 4, name="down_1")(x), 2)
        x = stage(x, "middle", self.middle_blocks, level=2, patch=4, reduction=8)
        x = pixel_shuffle(conv(4 * self.width, name="up_1")(x), 2)
        x = conv_prelu(self.width, name="fuse")(jnp.concatenate([x, early], axis=-1))
        x = late = stage(x, "decoder_1", self.decoder_blocks[0], level=1, patch=8, reduction=8)
        x = pixel_shuffle(conv(4 * self.width, name="up_0")(x), 2)
        x = stage(x, "decoder_0", self.decoder_blocks[1], level=0, patch=8, reduction=16)

        x = x + head - double(self.width, name="feature_degradation")(early - late)
        residual = conv_prelu(channels, name="tail")(x)[:, :height, :width]
        degradation = double(channels, name="image_degradation")(early - late)[:, :height, :width]
        return images.astype(jnp.float32) + residual.astype(jnp.float32) - degradation.astype(jnp.float32)


class _ConvPReLU(nn.Module):
    """3x3 convolution without bias, then a leaky ReLU with one learned slope `[1]`, which starts at 0.25."""

    features: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        x = Conv(self.features, 3, use_bias=False, name="conv", dtype=self.dtype, param_dtype=self.param_dtype)(x)
        slope = self.param("slope", nn.initializers.constant(0.25), (1,), self.param_dtype).astype(x.dtype)
        return jnp.where(x >= 0, x, slope * x)
