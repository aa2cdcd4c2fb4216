from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import official
import oracles
import pytest

from gamax.blocks.residual import ProjectedResidualBlock, ResidualBlock, ResidualDecoder, ResidualEncoder
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import count_parameters
from gamax.models.dmphn import DMPHN


@pytest.mark.parametrize(("part", "module"), [("encoder", ResidualEncoder()), ("decoder", ResidualDecoder())])
def test_it_reproduces_the_official_encoder_and_decoder(shared_folder, part, module):
    _, tensors = official.load(shared_folder / f"fixtures/dmphn/{part}.safetensors")
    # Alone they have the names that they have inside the network, less where they are there.
    names = key_map(DMPHN())
    inside = ((r"^", f"{part}_1/"), *names.renamings, (rf"^{part}_lv1/", ""))
    official.check(module, tensors, 1e-5, replace(names, renamings=inside))


@pytest.mark.parametrize(
    ("module", "channels", "parameters"),
    [(ResidualEncoder(), 3, 868_288), (ResidualDecoder(), 128, 939_843), (ProjectedResidualBlock(32), 3, 10_272)],
)
def test_it_has_the_published_parameters(module, channels, parameters):
    x = jax.ShapeDtypeStruct((1, 4, 8, channels), jnp.float32)
    assert count_parameters(jax.eval_shape(module.init, jax.random.key(0), x)["params"]) == parameters


def test_the_residual_block_equals_numpy(random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    params = random_params(ResidualBlock(), x.shape)
    result = jax.jit(ResidualBlock().apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expected = x + oracles.conv(np.maximum(oracles.conv(x, params["first"]), 0), params["second"])
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


def test_the_projected_block_equals_numpy(random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    params = random_params(ProjectedResidualBlock(6), x.shape)
    result = jax.jit(ProjectedResidualBlock(6).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expected = x
    for name in ("first", "second"):
        expected = oracles.conv(expected, params[name])
        expected = np.where(expected > 0, expected, 0.01 * expected)
    expected = expected + oracles.pointwise(x, params["shortcut"])
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(("module", "channels"), [(ResidualEncoder(), 3), (ResidualDecoder(), 128)])
def test_weights_start_normal_with_the_authors_deviations_and_biases_at_zero(module, channels):
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, channels)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] == "bias":
            assert not leaf.any()
        else:
            # A transposed convolution has its outputs third.
            outputs = leaf.shape[2] if names[0].startswith("up") else leaf.shape[3]
            expected = 0.5 * np.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * outputs))
            assert leaf.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * leaf.size)), names


def test_the_encoder_refuses_sides_that_it_cannot_halve_twice():
    with pytest.raises(UserError, match="stride of 2 does not divide 3x4"):
        jax.eval_shape(ResidualEncoder().init, jax.random.key(0), jnp.zeros((1, 6, 8, 3)))
