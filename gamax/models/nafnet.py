"""NAFNet, and Baseline and PlainNet that it was made from: encoder-decoders of convolutions (arXiv 2204.04676).

The layout is that of the authors' code (github.com/megvii-research/NAFNet), checked against tensors recorded from it.
Their results for motion deblurring are those of the test-time local conversion (`NAFNetLocal`, arXiv 2112.04491),
which replaces the means over the image by local ones: here the option `local_window`, off unless asked for.

PlainNet, which that code lacks, is a reconstruction. Expected parameters at width 32 (of this reconstruction, not the
paper's): 25,082,147 with the numbers of blocks for SIDD, 14,772,067 with those for GoPro.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks import (
    BaselineBlock,
    Conv,
    Mixer,
    NAFBlock,
    check_mixer_option,
    is_global,
    make_mixer,
    pad_to_multiple,
    pixel_shuffle,
    repeat,
    samples_pixels,
)
from gamax.blocks.naf import PlainBlock
from gamax.blocks.pooling import check_local_window
from gamax.errors import UserError, nearest


class NAFNet(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    `width` channels at full resolution, doubled at each halving; `encoder_blocks` and `decoder_blocks` give the blocks
    on each level, the decoder's from the lowest up, and `middle_blocks` those at the bottom. `block` is `naf`, or
    `baseline` for the network that NAFNet was made from, or `plain` for the one before that, without norms and channel
    attention (reconstruction); the 3x3 convolutions of these two have `expansion` times the channels. `mixer` fills the
    slot of the channel attention in blocks `naf`: what `find_mixer` reads, a module class, or None; all but
    `sca` are ours. Images are padded with zeros. With `local_window` channels are weighted by means over that many
    pixels around every pixel instead of the whole image, halved on every level; the authors take 384 for networks
    trained on crops of 256, and parameters stay the same. Raises `UserError` for numbers that make no network.
    """

    width: int = 32
    encoder_blocks: tuple[int, ...] = (2, 2, 4, 8)
    middle_blocks: int = 12
    decoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    block: Literal["naf", "baseline", "plain"] = "naf"
    mixer: Mixer = "sca"
    expansion: int = 1
    local_window: int | None = None
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    padding_mode: ClassVar[str] = "zeros"

    def __post_init__(self) -> None:
        if self.block not in ("naf", "baseline", "plain"):
            raise UserError(f"unknown block {nearest(str(self.block), ('naf', 'baseline', 'plain'))}")
        if len(self.encoder_blocks) != len(self.decoder_blocks) or not self.encoder_blocks:
            raise UserError(
                f"NAFNet needs as many numbers of encoder_blocks as of decoder_blocks, not {self.encoder_blocks} and "
                f"{self.decoder_blocks}"
            )
        if min(*self.encoder_blocks, *self.decoder_blocks, self.middle_blocks) < 0:
            raise UserError("NAFNet's numbers of blocks must not be negative")
        if self.width < 1 or self.expansion < 1:
            raise UserError(f"NAFNet needs a width and expansion of at least 1, not {self.width} and {self.expansion}")
        if self.block == "naf":
            check_mixer_option(self.mixer, self.local_window, len(self.encoder_blocks))
        elif self.mixer != "sca":
            raise UserError(f"mixer is for the block naf, not for {self.block}: leave it at sca, or set block=naf")
        elif self.local_window is not None:
            if self.block == "plain":
                raise UserError("local_window is for the blocks naf and baseline: plain ones take no means")
            check_local_window(self.local_window, len(self.encoder_blocks))
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """The network pads sides to a multiple of this; tiles must start on one."""
        return 2 ** len(self.encoder_blocks)

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return 3

    @property
    def global_statistics(self) -> bool:
        """Whether an output pixel depends on the whole input, or a wide window, so that tiling changes it."""
        return self.block == "baseline" or (self.block == "naf" and is_global(self.mixer))

    @property
    def samples_pixels(self) -> bool:
        """Whether features are taken from places that depend on the image, so devices exchange more than halos."""
        return samples_pixels(self.mixer)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        return self.outputs(images)[0][-1]

    @nn.compact
    def outputs(self, images: Float[Array, "b h w c"]) -> tuple[list[Array], Array]:
        """The restored images, alone in a list, and the features `[B, H, W, width]` before the last convolution."""
        height, width, channels = images.shape[1:]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, **dtypes)

        def blocks(x: Array, name: str, count: int, level: int) -> Array:
            window = self.local_window and self.local_window >> level
            if self.block == "naf":
                block = partial(NAFBlock, make_mixer(self.mixer, window, **dtypes), **dtypes)
            elif self.block == "baseline":
                block = partial(BaselineBlock, self.expansion, window, **dtypes)
            else:
                block = partial(PlainBlock, self.expansion, **dtypes)
            return repeat(self, block, count, x, name, scan=self.scan, remat=self.remat)

        levels = len(self.encoder_blocks)
        x = conv(self.width, 3, name="intro")(pad_to_multiple(images, self.size_multiple, mode="zeros"))
        skips = []
        for level, count in enumerate(self.encoder_blocks):
            x = blocks(x, f"encoder_{level}", count, level)
            skips.append(x)
            x = conv(2 * x.shape[-1], 2, stride=2, name=f"down_{level}")(x)

        x = blocks(x, "middle", self.middle_blocks, levels)

        for level, count in zip(reversed(range(levels)), self.decoder_blocks, strict=True):
            x = pixel_shuffle(conv(2 * x.shape[-1], 1, use_bias=False, name=f"up_{level}")(x), 2) + skips.pop()
            x = blocks(x, f"decoder_{level}", count, level)

        residual = conv(channels, 3, name="ending")(x)[:, :height, :width]
        restored = images.astype(jnp.float32) + residual.astype(jnp.float32)
        return [restored], x[:, :height, :width]
