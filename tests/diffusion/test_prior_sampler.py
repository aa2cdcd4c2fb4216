from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gamax.data.prior_sampler import PriorSampler, _step
from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.ddim import ddim_schedule, ddim_step
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.diffusion.patchwise import predict_in_windows
from gamax.errors import UserError
from gamax.interop.weights import save_weights
from gamax.models import abstract_params, create_model

UNET = Denoiser(width=8, head_channels=8, multipliers=(1,), blocks=1, attention_factors=())
MODEL = LatentDiffusion(Autoencoder(width=8, multipliers=(1, 1), blocks=1, codes=8), UNET)


@pytest.fixture(scope="module")
def sampler() -> PriorSampler:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(UNET.init, jax.random.key(0), jnp.zeros((1, 8, 8, 6)), jnp.zeros(1))["params"]

    def values(leaf: Any) -> jax.Array:
        # What passes through the network keeps its size, so that latents do.
        deviation = 0.3 if leaf.ndim == 1 else 0.5 / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(0, deviation, leaf.shape), jnp.float32)

    params = jax.tree.map(values, shapes)
    return PriorSampler(MODEL, {"denoiser": params}, steps=3, window=8, stride=4, windows_at_once=2)


def photograph(channels: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (11, 7, channels), dtype)


def latents_step_by_step(sampler: PriorSampler, image: np.ndarray) -> np.ndarray:
    scale = np.iinfo(image.dtype).max
    views = [view / np.float64(scale) for view in np.split(image, image.shape[2] // 3, 2)]
    condition = np.pad(2 * sum(views) / len(views) - 1, ((0, 5), (0, 1), (0, 0)), "reflect").astype(np.float32)
    key = jax.random.fold_in(jax.random.key(sampler.seed), zlib.crc32(image.tobytes()))
    latents = jax.random.normal(jax.random.fold_in(key, 0), (16, 8, 3))

    @jax.jit
    def predict(latents: jax.Array, time: jax.Array) -> jax.Array:
        return predict_in_windows(
            lambda windows: UNET.apply(
                {"params": sampler.params["denoiser"]}, windows, jnp.full(len(windows), time, int)
            ),
            jnp.concatenate([latents, condition], -1),
            window=8,
            stride=4,
            at_once=3,
        )

    for index, (time, *signals) in enumerate(zip(*ddim_schedule(sampler.steps), strict=True)):
        fresh = jax.random.normal(jax.random.fold_in(key, index + 1), latents.shape)
        latents = ddim_step(latents, predict(latents, time), fresh, *map(jnp.asarray, signals), sampler.eta)
    return np.asarray(latents)[:11, :7]


@pytest.mark.parametrize(
    ("channels", "dtype"), [(3, np.uint8), (6, np.uint16)], ids=["8 bits", "the mean of two views of 16 bits"]
)
def test_it_equals_the_steps_one_by_one(channels, dtype, sampler):
    image, fractions = photograph(channels, dtype), []
    expected = latents_step_by_step(sampler, image)
    result = sampler.latents(image, fractions.append)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-4 * abs(expected).max())
    assert fractions == pytest.approx([1 / 3, 1])


def test_the_prior_is_the_latents_clamped_to_the_limit_in_16_bits(sampler):
    image = photograph(3, np.uint8)
    latents = sampler.latents(image).astype(np.float64)
    for limit in (1.0, 2.5):
        prior = replace(sampler, limit=limit)(image)
        expected = np.clip((latents / limit + 1) / 2, 0, 1) * 65535
        assert prior.dtype == np.uint16
        # Integers are nearest to numbers that were rounded to float32.
        np.testing.assert_allclose(prior, expected, atol=0.51)
        assert ((prior > 0) & (prior < 65535)).any()
    assert (abs(latents) > 1).any()


def test_it_depends_on_seed_and_photograph_alone(sampler):
    image = photograph(3, np.uint8)
    prior = sampler(image)
    np.testing.assert_array_equal(replace(sampler)(image.copy()), prior)
    # As from other noise, not merely moved a little.
    others = [replace(sampler, seed=43)(image), sampler(np.where(image == image.max(), 0, image))]
    assert all((other != prior).mean() > 0.5 for other in others)


def test_devices_and_windows_at_once_change_it_by_rounding_alone(sampler):
    image = photograph(3, np.uint8)
    alone = replace(sampler, windows_at_once=3)
    # What the sampler otherwise makes of all devices of the process, eight here.
    vars(alone)["_mesh"] = jax.make_mesh((1,), ("windows",), (AxisType.Auto,), devices=jax.devices()[:1])
    expected = sampler.latents(image)
    np.testing.assert_allclose(alone.latents(image), expected, atol=1e-4 * abs(expected).max())


def test_settings_are_what_the_prior_depends_on(sampler):
    expected = {"steps": 3, "eta": 1.0, "seed": 42, "window": 8, "stride": 4, "limit": 1.0, "dtype": "float32"}
    with jax.default_matmul_precision("highest"):
        settings = json.loads(json.dumps(sampler.settings()))
    assert settings == {**expected, "matmul_precision": "highest"}


def test_it_comes_from_the_weights_of_a_latent_diffusion_model(tmp_path):
    for name in ("ldm_small", "gama_ir_tiny"):
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(create_model(name)))
        save_weights(tmp_path / f"{name}.safetensors", zeros, name, {})
    sampler = PriorSampler.from_weights(tmp_path / "ldm_small.safetensors", seed=3)
    assert sampler.model == create_model("ldm_small")
    assert sampler.seed == 3
    with pytest.raises(UserError, match=r"holds a GAMAIR, but a prior is sampled from a latent diffusion model"):
        PriorSampler.from_weights(tmp_path / "gama_ir_tiny.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps of a prior must be from 1 to 999, not 0"),
        ({"steps": 1000}, "from 1 to 999"),
        ({"eta": 1.5}, "eta of a prior must be from 0 to 1, not 1.5"),
        ({"seed": -1}, "seed of a prior"),
        ({"window": 12}, "window of a prior must be a multiple of 8, not 12"),
        ({"stride": 0}, "stride of a prior must be from 1 to the window, not 0"),
        ({"stride": 129}, "from 1 to the window"),
        ({"limit": 0.0}, "limit of a prior must be above 0"),
        ({"limit": float("nan")}, "limit of a prior"),
        ({"windows_at_once": 0}, "windows_at_once of a prior must be at least 1"),
    ],
)
def test_values_that_the_model_cannot_have_are_named(options, words):
    with pytest.raises(UserError, match=words):
        PriorSampler(LatentDiffusion(), {}, **options)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)])
def test_other_images_are_named(image, sampler):
    with pytest.raises(UserError, match=r"8- or 16-bit images \[H, W, 3\] or \[H, W, 6\], not"):
        sampler(image)


def test_one_program_serves_all_steps_and_photographs_of_a_padded_size(sampler):
    _step.clear_cache()
    for height in (17, 20):
        sampler.latents(np.zeros((height, 7, 3), np.uint8))
    assert _step._cache_size() == 1
