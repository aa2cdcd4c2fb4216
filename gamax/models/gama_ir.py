"""GAMA-IR: a shallow, fast encoder-decoder around global additive multidimensional averaging (arXiv 2404.00807).

Established by the paper: the GAMA operation, the encoder-decoder with added skips, 1x1 convolutions with pixel
(un)shuffle between the levels, LayerNorm, and depth and width of S (18, 42) and L (19, 80).
Reconstruction, as neither code nor weights are public: the layout of the block (that of NAFNet with GAMA in the slot
of the channel attention), how the blocks are spread over the levels, the zero-initialised residual scales, the global
residual and the padding. Expected parameters: S 10,423,500, L 47,460,276 (of this reconstruction, not the paper's).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks import (
    Conv,
    Mixer,
    NAFBlock,
    check_mixer_option,
    is_global,
    make_mixer,
    pad_to_multiple,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    samples_pixels,
)
from gamax.blocks.naf import MixerPosition, check_mixer_position
from gamax.errors import UserError, nearest


class GAMAIR(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    `width` channels at full resolution, doubled at each of `levels` halvings; `depth` counts all blocks:
    `blocks_per_level` on each level of encoder and decoder, the rest at the bottom. `mixer` fills the slot in every
    block: what `find_mixer` reads, such as `sca` or `gama(kernel_size=5)`, a module class, or None; `mixer_position` is
    that of `NAFBlock`. Block layout: reconstruction. With `local_window`
    means over the image become means over that many pixels, halved on every level, and parameters stay the same: the
    test-time local conversion (arXiv 2112.04491), ours for GAMA; a network trained on crops of 256 takes 384.
    """

    width: int = 42
    depth: int = 18
    levels: int = 4
    blocks_per_level: int = 2
    mixer: Mixer = "gama"
    mixer_position: MixerPosition = "gate"
    spatial_conv: Literal["depthwise", "dense"] = "depthwise"
    local_window: int | None = None
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_mixer_option(self.mixer, self.local_window, self.levels)
        check_mixer_position(self.mixer_position)
        if self.spatial_conv not in ("depthwise", "dense"):
            raise UserError(f"unknown spatial_conv {nearest(str(self.spatial_conv), ('depthwise', 'dense'))}")
        if self.width < 2 or self.width % 2 or self.levels < 1 or self.blocks_per_level < 1:
            raise UserError(
                "GAMA-IR needs an even width of at least 2, and levels and blocks_per_level of at least 1, not "
                f"{self.width}, {self.levels} and {self.blocks_per_level}"
            )
        if self._bottom_blocks < 1:
            raise UserError(
                f"GAMA-IR with {self.levels} levels of 2 x {self.blocks_per_level} blocks needs a depth of at least "
                f"{self.depth - self._bottom_blocks + 1}, not {self.depth}; raise depth or lower levels"
            )
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """The network pads sides to a multiple of this; tiles must start on one."""
        return 2**self.levels

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return 3

    @property
    def global_statistics(self) -> bool:
        """Whether an output pixel depends on the whole input, or a wide window, so that tiling changes it."""
        return is_global(self.mixer)

    @property
    def samples_pixels(self) -> bool:
        """Whether features are taken from places that depend on the image, so devices exchange more than halos."""
        return samples_pixels(self.mixer)

    @property
    def _bottom_blocks(self) -> int:
        return self.depth - 2 * self.levels * self.blocks_per_level

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        return self.outputs(images)[0][-1]

    @nn.compact
    def outputs(self, images: Float[Array, "b h w c"]) -> tuple[list[Array], Array]:
        """The restored images, alone in a list, and the features `[B, H, W, width]` before the last convolution."""
        height, width, channels = images.shape[1:]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, **dtypes)

        def blocks(x: Array, count: int, name: str, level: int) -> Array:
            window = self.local_window and self.local_window >> level
            mixer = make_mixer(self.mixer, window, **dtypes)
            block = partial(NAFBlock, mixer, self.spatial_conv, self.mixer_position, **dtypes)
            return repeat(self, block, count, x, name, scan=self.scan, remat=self.remat)

        x = conv(self.width, 3, name="intro")(pad_to_multiple(images, self.size_multiple))
        skips = []
        for level in range(self.levels):
            x = blocks(x, self.blocks_per_level, f"encoder_{level}", level)
            skips.append(x)
            x = pixel_unshuffle(conv(x.shape[-1] // 2, 1, name=f"down_{level}")(x), 2)

        x = blocks(x, self._bottom_blocks, "bottom", self.levels)

        for level in reversed(range(self.levels)):
            x = pixel_shuffle(conv(2 * x.shape[-1], 1, name=f"up_{level}")(x), 2) + skips.pop()
            x = blocks(x, self.blocks_per_level, f"decoder_{level}", level)

        residual = conv(channels, 3, name="ending")(x)[:, :height, :width]
        restored = images.astype(jnp.float32) + residual.astype(jnp.float32)
        return [restored], x[:, :height, :width]
