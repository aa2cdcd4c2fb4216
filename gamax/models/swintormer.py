"""Swintormer: an encoder-decoder of transformer blocks on shifted windows, for defocus deblurring (arXiv 2401.05907).

The layout is that of the authors' code (github.com/bnm6900030/swintormer), checked against tensors recorded from it;
they have published no weights. The release is a dual-pixel network that takes a diffusion prior as second argument and
ignores it. How the prior enters here, as more input channels, is a reconstruction.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv
from gamax.blocks.padding import pad_to_multiple
from gamax.blocks.repetition import repeat
from gamax.blocks.resampling import pixel_shuffle, pixel_unshuffle
from gamax.blocks.window_attention import WindowAttentionBlock, small_normal
from gamax.errors import UserError

_DECODED_SQUARE = 32
"""Side of the squares of latents that the decoder of the prior sees: it divides every padded side."""


class Swintormer(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    The network works at half the resolution: `width` channels there, doubled at each of three more halvings; `blocks`
    and `heads` on the four levels, and `refinement_blocks` at the end. Every second block of a row shifts its windows
    of `window_size` squared pixels by half their size. Windows have the same size on every level, so images are padded
    by reflection to multiples of `16 window_size`, 256 pixels; the release takes no other sizes.

    The input is one image and, as more channels behind it, what else is known of it, `3 (1 + dual_pixel + prior)`
    channels in all; the output is `[B, H, W, 3]`, the first three channels of the input plus a residual.

    - `dual_pixel`: the second view of a dual-pixel sensor. The release takes (right, left), so the residual is that of
      the right view; Restormer takes (left, right).
    - `prior`: three channels in [0, 1] that a diffusion model has made of the image, at the end: its latents, which
      were clamped to plus and minus `prior_limit` (`gamax data prior --limit`). Only the decoder needs to know that.
    - `prior_decoder`: the decoder of the diffusion model's autoencoder, with four times the sides of its latents
      (`gamax.diffusion.autoencoder.Decoder`); its picture joins what `embed` is given, as 192 channels. A
      reconstruction of what the paper says of a decoder that is trained with the network. It costs as much as 16
      pixels decoded for every pixel of the image. Squares of 32 latents are decoded each by itself: attention inside
      the decoder takes memory with the square of their number. Start it with a trained one
      (`training.initial_weights`), and train or freeze it.

    With `dual_pixel` alone the network is that of the release. Raises `UserError` for numbers that make no network.
    """

    width: int = 48
    blocks: tuple[int, ...] = (2, 4, 6, 8)
    refinement_blocks: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    expansion: float = 2.66
    window_size: int = 16
    dual_pixel: bool = False
    prior: bool = False
    prior_decoder: nn.Module | None = None
    prior_limit: float = 1.0
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    view_order: ClassVar[str] = "right-left"

    def __post_init__(self) -> None:
        if len(self.blocks) != 4 or len(self.heads) != 4:
            raise UserError(
                f"Swintormer has four levels: blocks and heads need four numbers, not {self.blocks} and {self.heads}"
            )
        if min(*self.blocks, self.refinement_blocks) < 0 or min(self.heads) < 1:
            raise UserError("Swintormer's numbers of blocks must not be negative, and its heads be at least 1")
        # Half of the channels attend between pixels, half between channels.
        indivisible = [heads for level, heads in enumerate(self.heads) if (self.width << level) % (2 * heads)]
        if self.width < 2 or self.width % 2 or indivisible:
            raise UserError(
                f"Swintormer needs an even width whose half its heads divide on every level, not {self.width} and "
                f"{self.heads}"
            )
        if not math.isfinite(self.expansion) or int(self.expansion * self.width) < 1:
            raise UserError(f"Swintormer's expansion must leave a hidden channel, which {self.expansion} does not")
        if self.window_size < 2 or self.window_size % 2:
            raise UserError(f"Swintormer's window_size must be even and at least 2, not {self.window_size}")
        if self.prior_decoder is not None and not self.prior:
            raise UserError("Swintormer's prior_decoder decodes its prior: set prior=True")
        super().__post_init__()

    @property
    def input_channels(self) -> int:
        """The number of channels of the input images."""
        return 3 * (1 + self.dual_pixel + self.prior)

    @property
    def size_multiple(self) -> int:
        """The network pads sides to a multiple of this; tiles must start on one."""
        return 16 * self.window_size

    @property
    def global_statistics(self) -> bool:
        """Whether an output pixel depends on the whole input, or wide windows, so that tiling changes the result.

        On the lowest level a window is 256 pixels of the image wide, and from block to block it is another one.
        """
        return True

    @nn.compact
    def __call__(self, images: Float[Array, "b h w _"]) -> Float[Array, "b h w 3"]:
        """Returns restored images, float32; `UserError` unless the input has `input_channels`."""
        height, width, channels = images.shape[1:]
        if channels != self.input_channels:
            raise UserError(
                f"this Swintormer takes images of {self.input_channels} channels (dual_pixel={self.dual_pixel}, "
                f"prior={self.prior}), not {channels}"
            )
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, use_bias=False, initializer=small_normal, **dtypes)

        def stage(x: Array, name: str, count: int, heads: int) -> Array:
            blocks = [
                partial(WindowAttentionBlock, heads, self.expansion, self.window_size, shifted, **dtypes)
                for shifted in (False, True)
            ]
            return repeat(self, blocks, count, x, name, scan=self.scan, remat=self.remat)

        images = images.astype(jnp.float32)
        padded = 2 * pad_to_multiple(images, self.size_multiple) - 1
        x = pixel_unshuffle(padded, 2)
        if self.prior_decoder is not None:
            x = jnp.concatenate([x, self._decoded(self.prior_limit * padded[..., -3:])], axis=-1)
        embedded = x = conv(self.width, 3, name="embed")(x)
        skips = []
        for level in range(3):
            x = stage(x, f"encoder_{level}", self.blocks[level], self.heads[level])
            skips.append(x)
            x = pixel_unshuffle(conv(x.shape[-1] // 2, 3, name=f"down_{level}")(x), 2)

        x = stage(x, "bottom", self.blocks[3], self.heads[3])

        for level in reversed(range(3)):
            x = pixel_shuffle(conv(2 * x.shape[-1], 3, name=f"up_{level}")(x), 2)
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            # On the first level both halves are kept.
            if level > 0:
                x = conv(x.shape[-1] // 2, 1, name=f"reduce_{level}")(x)
            x = stage(x, f"decoder_{level}", self.blocks[level], self.heads[level])
        x = stage(x, "refinement", self.refinement_blocks, self.heads[0])

        x = x + conv(x.shape[-1], 1, name="skip")(embedded)
        # The authors initialise this one as PyTorch does.
        x = Conv(12, 3, use_bias=False, name="output", **dtypes)(x)
        residual = pixel_shuffle(x, 2)[:, :height, :width]
        # The network sees and adds to images in [-1, 1].
        return images[..., :3] + residual.astype(jnp.float32) / 2

    def _decoded(self, latents: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 192"]:
        """The picture of four times the sides that the latents stand for, at half the resolution of the image."""
        batch, height, width, _ = latents.shape
        size, rows, columns = _DECODED_SQUARE, height // _DECODED_SQUARE, width // _DECODED_SQUARE
        squares = latents.reshape(batch, rows, size, columns, size, 3).swapaxes(2, 3).reshape(-1, size, size, 3)
        decode = nn.remat(_apply) if self.remat else _apply
        x = pixel_unshuffle(decode(self.prior_decoder, squares), 8)
        x = x.reshape(batch, rows, columns, size // 2, size // 2, 192).swapaxes(2, 3)
        return x.reshape(batch, height // 2, width // 2, 192)


def _apply(module: Any, x: Array) -> Array:
    return module(x)
