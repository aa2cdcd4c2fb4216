"""Latent diffusion conditioned on a degraded image: the prior of Swintormer (arXiv 2112.10752, 2401.05907)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from gamax.blocks.padding import pad_to_multiple
from gamax.diffusion.autoencoder import Autoencoder, check_crops
from gamax.diffusion.ddim import TRAINED_STEPS, add_noise, ddim_sample, signal_powers
from gamax.diffusion.denoiser import Denoiser
from gamax.errors import UserError


class LatentDiffusion(nn.Module):
    """Draws the latents of a clean image, given a degraded one of the size of the latents.

    The denoiser is trained to predict the noise in the latents of clean images at random times; beside the noisy
    latents it sees the degraded image, reduced to their size and in [-1, 1]. The autoencoder is not trained
    (`frozen_parts`). The published super-resolution model has the default sizes.

    Applied to `[B, H, W, 3]` images in [0, 1] of any size it restores them: samples latents with `steps` of DDIM and
    the fixed `seed`, and decodes. A prior for Swintormer is sampled at the size of the image itself, as if a picture
    four times as large were to be found: see `gamax.data.prior_sampler`.

    Raises `UserError` for numbers that make no network.
    """

    first_stage: Autoencoder = Autoencoder()
    unet: Denoiser = Denoiser()
    steps: int = 20
    eta: float = 1.0
    seed: int = 42
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    frozen_parts: ClassVar[tuple[str, ...]] = ("autoencoder",)
    # It is trained to predict noise, not by what it samples.
    restores_in_training: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps < TRAINED_STEPS:
            raise UserError(f"steps of sampling must be from 1 to {TRAINED_STEPS - 1}, not {self.steps}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must be from 0 to 1, not {self.eta}")
        if self.first_stage.latent_channels != self.unet.latent_channels:
            raise UserError(
                f"autoencoder and denoiser must have equal latent channels, not {self.first_stage.latent_channels} "
                f"and {self.unet.latent_channels}"
            )
        super().__post_init__()

    def setup(self) -> None:
        """Makes autoencoder and denoiser, with the precision and `remat` of this module."""
        options = {"remat": self.remat, "dtype": self.dtype, "param_dtype": self.param_dtype}
        self.autoencoder = self.first_stage.clone(parent=None, **options)
        self.denoiser = self.unet.clone(parent=None, **options)

    @property
    def input_channels(self) -> int:
        """The number of channels of the images."""
        return 3

    @property
    def size_multiple(self) -> int:
        """The network pads the sides of images to a multiple of this."""
        return self.first_stage.size_multiple * self.unet.size_multiple

    @property
    def global_statistics(self) -> bool:
        """Whether tiling changes the result: group norms and attention see the whole image, so it does."""
        return True

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Returns images restored by sampling and decoding, float32; the same for the same input."""
        height, width = images.shape[1:3]
        images = pad_to_multiple(images.astype(jnp.float32), self.size_multiple)
        if self.is_initializing():
            self.autoencoder.encode(images)
        condition = self.condition(images)
        return self.autoencoder.decode(self.sample(condition, jax.random.key(self.seed)))[:, :height, :width]

    def sample(self, condition: Float[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b h w c"]:
        """Draws latents for degraded images in [-1, 1] of the size of the latents, from the same noise for each."""
        start_key, step_key = jax.random.split(key)
        noise = jax.random.normal(start_key, (*condition.shape[1:3], self.unet.latent_channels))
        noise = jnp.broadcast_to(noise, (len(condition), *noise.shape))
        if self.is_initializing():
            return self.denoiser(jnp.concatenate([noise, condition], -1), jnp.zeros(len(noise)))
        # Linen's modules cannot be called inside a loop of JAX; their functions can.
        denoiser, variables = self.denoiser.unbind()

        def predict_noise(latents: Array, times: Array) -> Any:
            return denoiser.apply(variables, jnp.concatenate([latents, condition], -1), times)

        return ddim_sample(predict_noise, noise, step_key, self.steps, self.eta)

    def training_loss(
        self,
        images: Float[Array, "b h w 3"],
        targets: Float[Array, "b h w 3"],
        keys: Key[Array, " b"],
        progress: Any,
        loss: Callable[[Array, Array], Array],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`loss(predicted noise, noise)` at random times; the mean squared error is the published objective.

        The latents are those of the targets, before quantisation. Each image has its time and noise from its key.
        `UserError` if `size_multiple` does not divide the sides.
        """
        del progress
        check_crops("LatentDiffusion", targets, self.size_multiple)
        latents = lax.stop_gradient(self.autoencoder.encode(targets))
        time_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        times = jax.vmap(lambda key: jax.random.randint(key, (), 0, TRAINED_STEPS))(time_keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(noise_keys)
        noisy = add_noise(latents, noise, jnp.asarray(signal_powers(), jnp.float32)[times])
        predicted = self.denoiser(jnp.concatenate([noisy, self.condition(images)], -1), times)
        return loss(predicted, noise), {"latent_power": jnp.square(latents).mean()}

    def condition(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 3"]:
        """Degraded images in [0, 1] reduced to the size of their latents, in [-1, 1]."""
        batch, height, width, channels = images.shape
        factor = self.first_stage.size_multiple
        shape = (batch, height // factor, width // factor, channels)
        return 2 * jax.image.resize(images, shape, "bicubic", antialias=True) - 1
