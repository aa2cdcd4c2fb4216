"""The first stage of latent diffusion: an autoencoder with a vector-quantised bottleneck (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gamax.blocks.convolution import Conv, torch_uniform
from gamax.blocks.padding import pad_to_multiple
from gamax.diffusion.layers import ResidualBlock, SelfAttention, double, group_norm, number_of_groups
from gamax.errors import UserError

_EPSILON = 1e-6
_PIXELS_AT_ONCE = 4096


class Encoder(nn.Module):
    """Images `[B, H, W, 3]` in [-1, 1] to latents, each level but the last halving the sides.

    `width` times the `multipliers` are the channels of the levels, each of `blocks` residual blocks; two more with
    attention between them follow. 22,337,411 parameters with the published numbers, without the last 1x1 convolution.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Returns latents, float32, not quantised."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        residual = _residual_block(self.remat, dtypes)
        x = Conv(self.width, name="input", **dtypes)(images)
        for level, multiplier in enumerate(self.multipliers):
            for index in range(self.blocks):
                x = residual(self.width * multiplier, name=f"level_{level}_{index}")(x)
            if level < len(self.multipliers) - 1:
                init = torch_uniform(9 * x.shape[-1])
                # Zeros on the right and at the bottom alone.
                x = nn.Conv(
                    x.shape[-1],
                    (3, 3),
                    strides=2,
                    padding=((0, 1), (0, 1)),
                    kernel_init=init,
                    bias_init=init,
                    name=f"downsample_{level}",
                    **dtypes,
                )(x)
        x = _middle(x, residual, dtypes)
        x = nn.silu(group_norm(x, _EPSILON, "output_norm", dtypes))
        x = Conv(self.latent_channels, name="output", **dtypes)(x)
        return Conv(self.latent_channels, 1, name="project", **dtypes)(x).astype(jnp.float32)


class Decoder(nn.Module):
    """Latents `[B, H, W, C]` to images in about [-1, 1], each level but the first doubling the sides.

    The levels of the `Encoder` the other way round, with one more residual block on each. 32,960,771 parameters with
    the published numbers, without the first 1x1 convolution.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """Returns images, float32, not clipped."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        residual = _residual_block(self.remat, dtypes)
        x = Conv(latents.shape[-1], 1, name="project", **dtypes)(latents)
        x = Conv(self.width * self.multipliers[-1], name="input", **dtypes)(x)
        x = _middle(x, residual, dtypes)
        for level in reversed(range(len(self.multipliers))):
            features = self.width * self.multipliers[level]
            for index in range(self.blocks + 1):
                x = residual(features, name=f"level_{level}_{index}")(x)
            if level > 0:
                x = Conv(features, name=f"upsample_{level}", **dtypes)(double(x))
        x = nn.silu(group_norm(x, _EPSILON, "output_norm", dtypes))
        return Conv(3, name="output", **dtypes)(x).astype(jnp.float32)


def _residual_block(remat: bool, dtypes: dict[str, Any]) -> Callable[..., nn.Module]:
    return partial(nn.remat(ResidualBlock) if remat else ResidualBlock, epsilon=_EPSILON, **dtypes)


def _middle(x: Array, residual: Callable[..., Any], dtypes: dict[str, Any]) -> Array:
    channels = x.shape[-1]
    x = residual(channels, name="middle_0")(x)
    x = SelfAttention(channels, _EPSILON, joint=False, name="middle_attention", **dtypes)(x)
    return residual(channels, name="middle_1")(x)


def check_crops(network: str, crops: Float[Array, "b h w c"], multiple: int) -> None:
    """Raises `UserError` unless the sides of crops for training are multiples of `multiple`."""
    height, width = crops.shape[1:3]
    if height % multiple or width % multiple:
        raise UserError(
            f"{network} with these options cannot train on crops of {height}x{width} pixels: data.patch_size must be a "
            f"multiple of {multiple}"
        )


class Quantizer(nn.Module):
    """Replaces every latent vector `[B, H, W, C]` by the nearest of `codes` learned ones (arXiv 1711.00937)."""

    codes: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"]]:
        """Returns the codes in the place of the latents, and their numbers; no gradient passes to the latents.

        Latents that are not numbers stay so.
        """
        # As wide as the latents of a fresh encoder. The authors start within 1 / codes: latents then shrink to that
        # first, and a short training never leaves it.
        codes = self.param(
            "codes",
            lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -0.5, 0.5),
            (self.codes, latents.shape[-1]),
            self.param_dtype,
        )
        squares = jnp.square(codes).sum(-1)

        def nearest(latent: Float[Array, " c"]) -> Int[Array, ""]:
            return jnp.argmin(squares - 2 * jnp.dot(codes, latent, precision=lax.Precision.HIGHEST))

        # A few at a time: the distances of all would take codes times pixels.
        flat = lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
        numbers = lax.map(nearest, flat, batch_size=_PIXELS_AT_ONCE).reshape(latents.shape[:-1])
        known = jnp.isfinite(lax.stop_gradient(latents)).all(-1, keepdims=True)
        return jnp.where(known, codes[numbers], jnp.nan), numbers


class Autoencoder(nn.Module):
    """Encodes `[B, H, W, 3]` images in [0, 1] of any size, quantises the latents and decodes them; not clipped.

    With three multipliers a latent stands for 4x4 pixels, as in the published VQ-f4 (the default). Images are padded by
    reflection. Trained here by the loss of the configuration on what it makes of the target images, plus
    `commitment_weight` times the squared distance of the latents to their codes and `codebook_weight` times the same
    for the codes: the weights that the authors' code gives. The authors add a perceptual and an adversarial loss, which
    are not here: a reconstruction.

    Raises `UserError` for numbers that make no network.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    latent_channels: int = 3
    codes: int = 8192
    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if not self.multipliers or min(*self.multipliers, self.blocks, self.latent_channels, self.codes) < 1:
            raise UserError("an Autoencoder needs multipliers, blocks, latent channels and codes of at least 1")
        for multiplier in self.multipliers:
            number_of_groups(self.width * multiplier)
        super().__post_init__()

    def setup(self) -> None:
        """Makes encoder, quantizer and decoder."""
        options = {"remat": self.remat, "dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = Encoder(self.width, self.multipliers, self.blocks, self.latent_channels, **options)
        self.quantizer = Quantizer(self.codes, self.param_dtype)
        self.decoder = Decoder(self.width, self.multipliers, self.blocks, **options)

    @property
    def input_channels(self) -> int:
        """The number of channels of the images."""
        return 3

    @property
    def size_multiple(self) -> int:
        """The sides of the images for one latent; the network pads to a multiple of it."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def global_statistics(self) -> bool:
        """Whether tiling changes the result: group norms and attention see the whole image, so it does."""
        return True

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Returns the images as far as the codes keep them, float32."""
        height, width = images.shape[1:3]
        latents = self.encode(pad_to_multiple(images.astype(jnp.float32), self.size_multiple))
        return self.decode(latents)[:, :height, :width]

    def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the latents of images in [0, 1], not quantised; the sides must be multiples of `size_multiple`."""
        return self.encoder(2 * images - 1)

    def decode(self, latents: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
        """Quantises latents and returns the images for them, in about [0, 1]."""
        return (self.decoder(self.quantizer(latents)[0]) + 1) / 2

    def training_loss(
        self,
        images: Float[Array, "b h w 3"],
        targets: Float[Array, "b h w 3"],
        keys: Any,
        progress: Any,
        loss: Callable[[Array, Array], Array],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of reconstructing the targets, with the metrics `reconstruction`, `codebook` and `perplexity`.

        The perplexity is that of the codes in the batch: how many of them are in use, from 1 to `codes`. `UserError` if
        `size_multiple` does not divide the sides.
        """
        del images, keys, progress
        check_crops("Autoencoder", targets, self.size_multiple)
        latents = self.encode(targets)
        quantised, numbers = self.quantizer(latents)
        commitment = jnp.square(lax.stop_gradient(quantised) - latents).mean()
        codebook = jnp.square(quantised - lax.stop_gradient(latents)).mean()
        # The gradient of the decoder passes to the encoder as if nothing had been quantised.
        through = latents + lax.stop_gradient(quantised - latents)
        reconstruction = loss((self.decoder(through) + 1) / 2, targets)
        shares = jnp.bincount(numbers.ravel(), length=self.codes) / numbers.size
        perplexity = jnp.exp(jax.scipy.special.entr(shares).sum())
        total = reconstruction + self.commitment_weight * commitment + self.codebook_weight * codebook
        return total, {"reconstruction": reconstruction, "codebook": codebook, "perplexity": perplexity}
