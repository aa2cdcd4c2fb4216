from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.diffusion.autoencoder import Autoencoder, Quantizer
from gamax.errors import UserError
from gamax.models import abstract_params, count_parameters

SMALL = Autoencoder(width=8, multipliers=(1, 1), blocks=1, codes=8)


@pytest.fixture(scope="module")
def params(random_params) -> Any:
    return random_params(SMALL, (1, 4, 4, 3))


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((2, 6, 4, 3), np.float32))


def apply(method: str, params: Any, *arguments: Any, **options: Any) -> Any:
    return SMALL.apply({"params": params}, *arguments, method=method, **options)


def squared_error(restored: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.square(restored - target).mean()


def test_it_has_the_published_sizes():
    params = abstract_params(Autoencoder())
    # What the two 1x1 convolutions around the bottleneck have is not in the authors' counts.
    counts = {part: count_parameters(params[part]) - 12 for part in ("encoder", "decoder")}
    assert counts == {"encoder": 22_337_411, "decoder": 32_960_771}
    assert params["quantizer"]["codes"].shape == (8192, 3)
    assert Autoencoder().size_multiple == 4


@pytest.mark.parametrize("pixels", [(3, 4), (65, 64)], ids=["few", "more than are compared at once"])
def test_the_quantizer_takes_the_nearest_code_and_passes_no_gradient(pixels):
    rng = np.random.default_rng(0)
    codes, latents = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((7, 3), (2, *pixels, 3)))

    def total(latents: jax.Array) -> Any:
        quantised, numbers = Quantizer(7).apply({"params": {"codes": codes}}, latents)
        return quantised.sum(), (quantised, numbers)

    gradient, (quantised, numbers) = jax.jit(jax.grad(total, has_aux=True))(latents)
    distances = np.square(np.asarray(latents, np.float64)[..., None, :] - np.asarray(codes)).sum(-1)
    np.testing.assert_array_equal(numbers, distances.argmin(-1))
    np.testing.assert_array_equal(quantised, codes[numbers])
    assert not gradient.any()


def test_sides_that_nothing_divides_are_padded_by_reflection(params, images):
    restore = jax.jit(SMALL.apply)
    padded = np.pad(images[:, :5, :3], ((0, 0), (0, 1), (0, 1), (0, 0)), "reflect")
    result = restore({"params": params}, images[:, :5, :3])
    assert result.shape == (2, 5, 3, 3)
    np.testing.assert_allclose(result, restore({"params": params}, padded)[:, :5, :3], atol=1e-5)


def test_the_loss_is_that_of_its_parts_and_passes_straight_through_the_codes(params, images):
    """The parts are computed once more from encoder, codes and decoder; gradients from their definitions."""
    keys = jax.random.split(jax.random.key(0), 2)

    def total(params: Any) -> Any:
        arguments = images * 0, images, keys, jnp.float32(1), squared_error
        return apply("training_loss", params, *arguments)

    (loss, metrics), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    codes = np.asarray(params["quantizer"]["codes"], np.float64)
    latents, pull_encoder = jax.vjp(jax.jit(lambda params: apply("encode", params, images)), params)
    numbers = np.square(np.asarray(latents)[..., None, :] - codes).sum(-1).argmin(-1)
    quantised = jnp.asarray(codes[numbers], jnp.float32)
    assert 1 < len(np.unique(numbers)) < 8

    def reconstruction(params: Any, quantised: jax.Array) -> jax.Array:
        decoded = SMALL.apply({"params": params}, quantised, method=lambda module, x: module.decoder(x))
        return squared_error((decoded + 1) / 2, images)

    error, (decoder, pulled) = jax.jit(jax.value_and_grad(reconstruction, argnums=(0, 1)))(params, quantised)
    distance = float(jnp.square(quantised - latents).mean())
    assert loss == pytest.approx(float(error) + 1.25 * distance, rel=1e-5)
    shares = np.bincount(numbers.ravel()) / numbers.size
    perplexity = np.exp(-sum(share * np.log(share) for share in shares if share))
    expected = {"reconstruction": float(error), "codebook": distance, "perplexity": perplexity}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-4)

    (encoder,) = pull_encoder(pulled + 2 * (latents - quantised) / latents.size)
    moved = np.zeros(codes.shape)
    np.add.at(moved, numbers, 0.25 * 2 * np.asarray(quantised - latents) / latents.size)
    expected = {"encoder": encoder["encoder"], "decoder": decoder["decoder"], "quantizer": {"codes": moved}}
    for part, tree in expected.items():
        scale = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(tree))
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_allclose(a, b, atol=1e-4 * s), gradients[part], tree)


@pytest.mark.parametrize("sides", [(6, 5), (5, 4)])
def test_crops_that_it_cannot_halve_are_refused_before_training(sides):
    crops = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
    with pytest.raises(UserError, match=r"Autoencoder .*data\.patch_size must be a multiple of 2"):
        jax.eval_shape(
            lambda params, crops: apply("training_loss", params, crops, crops, None, None, squared_error),
            abstract_params(SMALL),
            crops,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"multipliers": ()}, "needs multipliers, blocks, latent channels and codes of at least 1"),
        ({"multipliers": (0, 1)}, "needs multipliers"),
        ({"blocks": 0}, "needs multipliers, blocks"),
        ({"codes": 0}, "codes of at least 1"),
        ({"latent_channels": 0}, "latent channels"),
        ({"width": 33}, "33 channels cannot be normalised in groups"),
        ({"width": 0}, "0 channels"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        Autoencoder(**options)
