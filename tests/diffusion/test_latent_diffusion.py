from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.ddim import ddim_schedule, ddim_step, signal_powers
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.errors import UserError
from gamax.models import abstract_params

FIRST_STAGE = Autoencoder(width=8, multipliers=(1, 1), blocks=1, codes=8)
UNET = Denoiser(width=8, head_channels=8, multipliers=(1,), blocks=1, attention_factors=())
SMALL = LatentDiffusion(FIRST_STAGE, UNET, steps=3, eta=0.5, seed=7)


@pytest.fixture(scope="module")
def params(random_params) -> Any:
    # Small, so that denoising keeps the size of the latents.
    return jax.tree.map(lambda leaf: 0.5 * leaf, random_params(SMALL, (1, 4, 4, 3)))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((2, 6, 4, 3), np.float32))


def absolute_error(restored: jax.Array, target: jax.Array) -> jax.Array:
    return abs(restored - target).mean()


def reduced(images: Any) -> np.ndarray:
    """Images of half the size in [-1, 1], each on its own."""
    return np.stack([2 * jax.image.resize(image, (3, 2, 3), "cubic") - 1 for image in images])


def test_the_loss_is_the_error_in_the_noise_and_trains_the_denoiser_alone(params, images):
    targets, keys = images[::-1], jax.random.split(jax.random.key(5), 2)

    def total(params: Any) -> Any:
        arguments = images, targets, keys, jnp.float32(1), absolute_error
        return SMALL.apply({"params": params}, *arguments, method="training_loss")

    (loss, metrics), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    encode = jax.jit(lambda params: FIRST_STAGE.apply({"params": params}, targets, method="encode"))
    latents = np.asarray(encode(params["autoencoder"]))
    drawn = [jax.random.split(key) for key in keys]
    times = np.array([jax.random.randint(key, (), 0, 1000) for key, _ in drawn])
    noise = np.stack([jax.random.normal(key, (3, 2, 3)) for _, key in drawn])
    signal = signal_powers()[times][:, None, None, None]
    noisy = (np.sqrt(signal) * latents + np.sqrt(1 - signal) * noise).astype(np.float32)
    inputs = np.concatenate([noisy, reduced(images)], -1)
    predicted = jax.jit(UNET.apply)({"params": params["denoiser"]}, inputs, times)
    assert loss == pytest.approx(abs(np.asarray(predicted) - noise).mean(), rel=1e-4)
    assert metrics["latent_power"] == pytest.approx(np.square(latents).mean(), rel=1e-4)

    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["autoencoder"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["denoiser"]))


def test_applied_to_images_of_any_size_it_samples_and_decodes(params, images):
    images = images[:, :5, :3]
    restore = jax.jit(SMALL.apply)
    result = restore({"params": params}, images)
    np.testing.assert_array_equal(restore({"params": params}, images), result)

    condition = reduced(np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), "reflect"))
    start, steps = jax.random.split(jax.random.key(7))
    latents = jnp.stack([jax.random.normal(start, (3, 2, 3))] * 2)
    predict = jax.jit(UNET.apply)
    for index, (time, *signals) in enumerate(zip(*ddim_schedule(3), strict=True)):
        inputs = jnp.concatenate([latents, condition], -1)
        predicted = predict({"params": params["denoiser"]}, inputs, jnp.full(2, time))
        fresh = jax.random.normal(jax.random.fold_in(steps, index), (3, 2, 3))
        latents = ddim_step(latents, predicted, fresh, *map(jnp.asarray, signals), 0.5)
    decode = jax.jit(lambda params: FIRST_STAGE.apply({"params": params}, latents, method="decode"))
    expected = decode(params["autoencoder"])[:, :5, :3]
    np.testing.assert_allclose(result, expected, atol=1e-4 * abs(expected).max())


def test_its_parts_work_in_its_precision():
    halves = LatentDiffusion(FIRST_STAGE, UNET, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    shapes = jax.eval_shape(halves.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
    assert set(shapes) == {"autoencoder", "denoiser"}


@pytest.mark.parametrize("sides", [(8, 6), (6, 8)])
def test_crops_that_the_denoiser_cannot_halve_are_refused_before_training(sides):
    """The autoencoder alone, and the unet of one level, would take sides of 6."""
    model = LatentDiffusion(FIRST_STAGE, UNET.clone(multipliers=(1, 1)))
    crops = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))

    def total(params: Any, crops: jax.Array, keys: jax.Array) -> Any:
        arguments = crops, crops, keys, jnp.float32(1), absolute_error
        return model.apply({"params": params}, *arguments, method="training_loss")

    with pytest.raises(UserError, match=r"LatentDiffusion .*data\.patch_size must be a multiple of 4"):
        jax.eval_shape(total, abstract_params(model), crops, keys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps of sampling must be from 1 to 999, not 0"),
        ({"steps": 1000}, "from 1 to 999, not 1000"),
        ({"eta": -0.1}, "eta must be from 0 to 1"),
        ({"first_stage": Autoencoder(latent_channels=4)}, "equal latent channels, not 4 and 3"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        LatentDiffusion(**options)


def test_the_place_in_a_batch_changes_nothing(params, images):
    restored = jax.jit(SMALL.apply)({"params": params}, jnp.stack([images[0]] * 2))
    np.testing.assert_array_equal(restored[0], restored[1])
