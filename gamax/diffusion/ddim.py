"""The noise schedule of latent diffusion and the DDIM sampler (arXiv 2010.02502)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

TRAINED_STEPS = 1000


def signal_powers(
    steps: int = TRAINED_STEPS, start: float = 0.0015, end: float = 0.0155
) -> Float[np.ndarray, " steps"]:
    """The share of the signal in the variance at every time, float64: the products of 1 - beta up to it.

    The betas are the squares of numbers evenly spaced from sqrt(`start`) to sqrt(`end`), the schedule that latent
    diffusion calls linear (arXiv 2112.10752).
    """
    betas = np.linspace(np.sqrt(start), np.sqrt(end), steps) ** 2
    return np.cumprod(1 - betas)


def sampling_times(steps: int, trained_steps: int = TRAINED_STEPS) -> list[int]:
    """Times for so many steps, in falling order and evenly spaced: 951, 901, ..., 1 for 20 of 1000."""
    return [trained_steps * index // steps + 1 for index in range(steps)][::-1]


def add_noise(
    latents: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], signal: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Latents mixed with standard normal noise so that `signal` of the variance is theirs, image by image."""
    signal = signal[:, None, None, None]
    return jnp.sqrt(signal) * latents + jnp.sqrt(1 - signal) * noise


def ddim_step(
    latents: Float[Array, "*shape"],
    predicted_noise: Float[Array, "*shape"],
    fresh_noise: Float[Array, ...],
    signal: Float[Array, ""],
    next_signal: Float[Array, ""],
    eta: float,
) -> Float[Array, "*shape"]:
    """One step from the time of `signal` to the earlier one of `next_signal`; equations 12 and 16 of arXiv 2010.02502.

    Args:
        latents: noisy, at the time of `signal`.
        predicted_noise: of the denoiser, in units of one standard deviation.
        fresh_noise: standard normal.
        signal: the share of the signal in the variance, as `signal_powers` gives it.
        next_signal: the same of the time to go to; 1 ends with the estimate of the clean latents.
        eta: 0 is deterministic, 1 as random as the diffusion itself (DDPM).
    """
    clean = (latents - jnp.sqrt(1 - signal) * predicted_noise) / jnp.sqrt(signal)
    sigma = eta * jnp.sqrt((1 - next_signal) / (1 - signal) * (1 - signal / next_signal))
    # Rounding may take it below zero, where eta is 1 and the next signal is nearly this one.
    direction = jnp.sqrt(jnp.maximum(1 - next_signal - sigma**2, 0))
    return jnp.sqrt(next_signal) * clean + direction * predicted_noise + sigma * fresh_noise


def ddim_schedule(steps: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Times, signals and next signals of every step of sampling, float32.

    The last step goes to time 0, the least noise that the denoiser was trained with, as the published sampler does.
    """
    powers, times = signal_powers(), np.array(sampling_times(steps))
    following = np.array([*times[1:], 0])
    return times.astype(np.float32), powers[times].astype(np.float32), powers[following].astype(np.float32)


def ddim_sample(
    predict_noise: Callable[[Array, Array], Array],
    noise: Float[Array, "b h w c"],
    key: Key[Array, ""],
    steps: int,
    eta: float,
) -> Float[Array, "b h w c"]:
    """Clean latents from standard normal noise, in a compiled loop.

    Args:
        predict_noise: of noisy latents `[B, H, W, C]` and the times `[B]`.
        noise: what sampling starts from.
        key: of the noise that is added on the way, the same to all images, if `eta` is not 0.
        steps: how often the denoiser is applied.
        eta: that of `ddim_step`.
    """

    def step(latents: Array, index_and_schedule: tuple[Array, ...]) -> tuple[Array, None]:
        index, time, signal, next_signal = index_and_schedule
        predicted = predict_noise(latents, jnp.full(len(latents), time))
        # One for all images: what is drawn for one must not depend on its place among others.
        fresh = jax.random.normal(jax.random.fold_in(key, index), latents.shape[1:])
        return ddim_step(latents, predicted, fresh, signal, next_signal, eta), None

    schedule = tuple(map(jnp.asarray, ddim_schedule(steps)))
    latents, _ = jax.lax.scan(step, noise, (jnp.arange(len(schedule[0])), *schedule))
    return latents
