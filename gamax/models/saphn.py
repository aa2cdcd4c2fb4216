"""SAPHN: the patch hierarchy of DMPHN with blocks that look at the content (arXiv 2402.06117, 2004.05343).

Established by the papers: a patch-hierarchical network derived from DMPHN whose blocks combine global attention, also
between encoder and decoder, with local filters that differ from pixel to pixel. Reconstruction, as no code is public:
all else. Expected parameters: 14,463,583 (of this reconstruction, not the paper's). The adaptive sampling of the paper
is `gamax.models.adaptive_sampling`, which refines what this network restores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.content_aware import ContentAwareModule
from gamax.blocks.convolution import Conv, ConvTranspose
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.blocks.naf import residual_scale
from gamax.blocks.patch_hierarchy import check_levels, encode_patches, pad_to_patches, patch_multiples
from gamax.errors import UserError, nearest

Branches = Literal["both", "attention", "filter", "none"]


class SAPHN(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped. Reconstruction.

    `levels` are numbers of patches as in `DMPHN`, with one encoder and one decoder each, of `widths` channels at full,
    half and quarter resolution and `blocks` content-aware residual blocks at each of these. `branches` says what the
    content-aware modules are made of: `both`, or `attention` or `filter` alone, or `none` for plain blocks.
    `kernel_size` and `max_offset` (pixels) are those of the filters, `descriptors` those of the attention (None for a
    quarter of the channels, at least 16). `decoder_attention="cross"` has a decoder's blocks attend to what the encoder
    made at their level and resolution instead of to themselves. `level_attention` adds to what a level takes over from
    the level below what it finds there by attention, with a scale that starts at zero. The output is the image plus a
    residual. A `level_weight` above zero supervises what every lower level restores, too: the loss has that weight.
    Images are padded by reflection. Raises `UserError` for numbers that make no network.
    """

    levels: tuple[int, ...] = (1, 2, 4)
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    branches: Branches = "both"
    kernel_size: int = 5
    max_offset: int = 2
    descriptors: int | None = None
    decoder_attention: Literal["cross", "self"] = "cross"
    level_attention: bool = True
    level_weight: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if len(self.widths) != 3 or min(self.widths) < 1 or self.blocks < 1:
            raise UserError(f"SAPHN needs three widths and blocks of at least 1, not {self.widths} and {self.blocks}")
        if self.branches not in get_args(Branches):
            raise UserError(f"unknown branches {nearest(str(self.branches), get_args(Branches))}")
        if self.decoder_attention not in ("cross", "self"):
            raise UserError(f"unknown decoder_attention {nearest(str(self.decoder_attention), ('cross', 'self'))}")
        if not self.level_weight >= 0:
            raise UserError(f"level_weight must be 0 or more, not {self.level_weight}")
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
        """Whether tiling changes the result: attention sees the whole image, and patches end in its middle."""
        return len(self.levels) > 1 or self.branches in ("both", "attention")

    @property
    def rows_divisible(self) -> bool:
        """Whether several devices can share the rows of an image in training: not if patches are cut from it."""
        return len(self.levels) == 1

    @property
    def samples_pixels(self) -> bool:
        """Whether features are taken from places that depend on the image, so devices exchange more than halos."""
        return self.branches in ("both", "filter")

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that images are padded to."""
        multiples = patch_multiples(self.levels, 4)
        return height + -height % multiples[0], width + -width % multiples[1]

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        return self.outputs(images)[0][-1]

    @nn.compact
    def outputs(self, images: Float[Array, "b h w c"]) -> tuple[list[Array], Array]:
        """The images as restored by every level, and the features of the last.

        Args:
            images: `[B, H, W, 3]` in [0, 1].

        Returns:
            One image `[B, H, W, 3]` for each level, float32, from the smallest patches to the whole image, which is
            what `__call__` returns; and `[B, H, W, widths[0]]` before the last convolution.
        """
        height, width, channels = images.shape[1:]
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block: Callable[..., nn.Module] = partial(
            nn.remat(ContentAwareBlock) if self.remat else ContentAwareBlock,
            self.branches,
            self.kernel_size,
            self.max_offset,
            self.descriptors,
            **dtypes,
        )
        padded = pad_to_patches(images.astype(jnp.float32), patch_multiples(self.levels, 4))

        def encode(patches: Array, level: int) -> tuple[Array, list[Array]]:
            scales = ContentAwareEncoder(self.widths, self.blocks, block, name=f"encoder_{level}", **dtypes)(patches)
            return scales[-1], scales

        def fuse(own: tuple[Array, list[Array]], below: tuple[Array, Any], level: int) -> tuple[Array, list[Array]]:
            (features, scales), (lower, _) = own, below
            features = features + lower
            if self.level_attention:
                found = EfficientAttention(self.descriptors, name=f"level_attention_{level}", **dtypes)(
                    scales[-1], lower
                )
                scale = residual_scale(self, f"level_scale_{level}", self.widths[-1], found.dtype)
                features = features + scale * found
            return features, scales

        def decode(encoded: tuple[Array, list[Array]], level: int) -> Array:
            features, scales = encoded
            sources = scales if self.decoder_attention == "cross" else [None] * len(scales)
            decoder = ContentAwareDecoder(self.widths, self.blocks, block, name=f"decoder_{level}", **dtypes)
            return decoder(features, sources)

        def ending(features: Array, level: int) -> Array:
            return Conv(channels, 3, name=f"ending_{level}", **dtypes)(features).astype(jnp.float32)

        encoded, restored = encode_patches(
            padded - 0.5, self.levels, encode, lambda encoded, level: ending(decode(encoded, level), level), fuse
        )
        features = decode(encoded, 1)
        restored.append(padded - 0.5 + ending(features, 1))
        return [image[:, :height, :width] + 0.5 for image in restored], features[:, :height, :width]

    def training_loss(
        self,
        images: Float[Array, "b h w c"],
        targets: Float[Array, "b h w c"],
        keys: Array,
        progress: Float[Array, ""],
        loss: Callable[[Array, Array], Array],
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of the restored images, and `level_weight` times that of what every lower level restores.

        Args:
            images: `[B, H, W, 3]` in [0, 1].
            targets: of the same shape.
            keys: of random numbers, which this network does not need.
            progress: the part of the training that is done, which does not matter here either.
            loss: of restored images and targets.

        Returns:
            The loss, and no further figures.
        """
        del keys, progress
        (*lower, restored), _ = self.outputs(images)
        total = loss(restored, targets)
        if self.level_weight:
            total = total + self.level_weight * sum(loss(image, targets) for image in lower)
        return total, {}


class ContentAwareBlock(nn.Module):
    """`x + conv(module(relu(conv(x)), source))`, two 3x3 convolutions around a `ContentAwareModule`. Reconstruction.

    With the branches `none` there is no module: the residual block of DMPHN, initialised as PyTorch does.
    """

    branches: Branches = "both"
    kernel_size: int = 5
    max_offset: int = 2
    descriptors: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], source: Float[Array, "b h2 w2 d"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape, with attention to `source`, or to themselves without one."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.astype(self.dtype or x.dtype)
        y = nn.relu(Conv(x.shape[-1], 3, name="first", **dtypes)(x))
        if self.branches != "none":
            module = ContentAwareModule(
                self.branches, self.kernel_size, self.max_offset, self.descriptors, name="mixing", **dtypes
            )
            y = module(y, source)
        return x + Conv(x.shape[-1], 3, name="second", **dtypes)(y)


class ContentAwareEncoder(nn.Module):
    """The encoder of one level: a 3x3 convolution for each width, from the second on with stride 2, and blocks.

    Maps `[B, H, W, C]` to features of every scale, `[B, H, W, widths[0]]` first, halved from each to the next.
    """

    widths: tuple[int, ...]
    blocks: int
    block: Callable[..., nn.Module]
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> list[Array]:
        """Encodes patches whose sides can be halved as often."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scales = []
        for scale, features in enumerate(self.widths):
            name, stride = (f"down_{scale - 1}", 2) if scale else ("intro", 1)
            x = Conv(features, 3, stride, name=name, **dtypes)(x)
            for index in range(self.blocks):
                x = self.block(name=f"blocks_{scale}_{index}")(x)
            scales.append(x)
        return scales


class ContentAwareDecoder(nn.Module):
    """The decoder of one level but for its last convolution: blocks for each width, transposed convolutions between.

    Maps `[B, H, W, widths[-1]]` to `[B, 4 H, 4 W, widths[0]]` with three widths.
    """

    widths: tuple[int, ...]
    blocks: int
    block: Callable[..., nn.Module]
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], sources: list[Any]) -> Float[Array, "b h2 w2 d"]:
        """Decodes features; `sources` are what the blocks of each scale attend to, None for themselves."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for scale in reversed(range(len(self.widths))):
            for index in range(self.blocks):
                x = self.block(name=f"blocks_{scale}_{index}")(x, sources[scale])
            if scale > 0:
                x = ConvTranspose(self.widths[scale - 1], 4, name=f"up_{scale - 1}", **dtypes)(x)
        return x
