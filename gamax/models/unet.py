"""The plain UNet that transformers are compared with, in the layout of Uformer's code (arXiv 2106.03106).

Written from its description; there are no published weights.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv, ConvTranspose
from gamax.blocks.padding import pad_to_multiple
from gamax.blocks.residual import ProjectedResidualBlock
from gamax.errors import UserError

_HALVINGS = 4


class UNet(nn.Module):
    """Restores `[B, H, W, 3]` images in [0, 1] of any size; the output is not clipped.

    `width` channels at full resolution, doubled at each of four halvings; one block on each level of encoder and
    decoder, and concatenated skips. Images are padded by reflection. Raises `UserError` for numbers that make no
    network.
    """

    width: int = 32
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"UNet needs a width of at least 1, not {self.width}")
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """The network pads sides to a multiple of this; tiles must start on one."""
        return 2**_HALVINGS

    @property
    def input_channels(self) -> int:
        """Channels of the images it is initialised for."""
        return 3

    @property
    def global_statistics(self) -> bool:
        """Whether an output pixel depends on the whole input, so that tiling changes it: every part is local."""
        return False

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns restored images of the same shape, float32."""
        height, width, channels = images.shape[1:]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        # Computed again for the gradient or not, a block has the same name and parameters.
        block = partial(nn.remat(ProjectedResidualBlock) if self.remat else ProjectedResidualBlock, **dtypes)

        x, skips = pad_to_multiple(images, self.size_multiple), []
        for level in range(_HALVINGS):
            x = block(self.width << level, name=f"encoder_{level}")(x)
            skips.append(x)
            x = Conv(x.shape[-1], 4, stride=2, name=f"down_{level}", **dtypes)(x)

        x = block(self.width << _HALVINGS, name="middle")(x)

        for level in reversed(range(_HALVINGS)):
            features = self.width << level
            x = ConvTranspose(features, 2, name=f"up_{level}", **dtypes)(x)
            x = block(features, name=f"decoder_{level}")(jnp.concatenate([x, skips.pop()], axis=-1))

        residual = Conv(channels, 3, name="ending", **dtypes)(x)[:, :height, :width]
        return images.astype(jnp.float32) + residual.astype(jnp.float32)
