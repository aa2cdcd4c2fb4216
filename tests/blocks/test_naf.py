from __future__ import annotations

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import GAMA, MIXERS, NAFBlock, SimplifiedChannelAttention, simple_gate
from gamax.errors import UserError
from gamax.models import count_parameters, create_model


class Doubling(nn.Module):
    """What a user might write."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("factor", nn.initializers.constant(2.0), ())


def test_simple_gate_multiplies_the_halves():
    np.testing.assert_array_equal(simple_gate(jnp.arange(6.0).reshape(1, 1, 1, 6)), [[[[0 * 3, 1 * 4, 2 * 5]]]])


@pytest.mark.parametrize("name", oracles.MIXERS)
def test_a_fresh_block_is_the_identity(name):
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    np.testing.assert_array_equal(jax.jit(NAFBlock(MIXERS[name]).init_with_output)(jax.random.key(1), x)[0], x)


@pytest.mark.parametrize(
    ("name", "slot"), [("none", 0), ("gama", 147), ("squeeze_excite", 212), ("sca", 1806), ("non_local", 3633)]
)
def test_parameters_are_6_c_squared_plus_32_c_plus_the_slot(name, slot, random_params):
    params = random_params(NAFBlock(MIXERS[name]), (1, 4, 4, 42))
    assert count_parameters(params) == 6 * 42**2 + 32 * 42 + slot


@pytest.mark.parametrize(
    ("name", "spatial_conv"), [*((name, "depthwise") for name in oracles.MIXERS), ("none", "dense"), ("gama", "dense")]
)
def test_the_whole_block_equals_numpy(name, spatial_conv, random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 6))
    block = NAFBlock(MIXERS[name], spatial_conv)
    params = random_params(block, x.shape)
    result = jax.jit(block.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expected = oracles.naf_block(x, params, name)
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


def test_it_reproduces_the_official_block_of_nafnet(shared_folder):
    from safetensors import safe_open

    with safe_open(shared_folder / "fixtures" / "nafnet" / "nafblock.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["config"])["cls"] == "NAFBlock"

    def layer(name: str) -> dict[str, np.ndarray]:
        return {"kernel": tensors[f"param.{name}.weight"].transpose(2, 3, 1, 0), "bias": tensors[f"param.{name}.bias"]}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": tensors[f"param.{name}.weight"], "bias": tensors[f"param.{name}.bias"]}

    layers = {"expand": 1, "spatial": 2, "project": 3, "channel_expand": 4, "channel_project": 5}
    params = {
        "spatial_norm": norm("norm1"),
        "channel_norm": norm("norm2"),
        **{name: layer(f"conv{number}") for name, number in layers.items()},
        "mixing": {"weight": layer("sca.1")},
        "spatial_scale": tensors["param.beta"].ravel(),
        "channel_scale": tensors["param.gamma"].ravel(),
    }
    x = jnp.asarray(tensors["input"].transpose(0, 2, 3, 1))
    block = NAFBlock(SimplifiedChannelAttention)
    result = jax.jit(block.apply)({"params": jax.tree.map(jnp.asarray, params)}, x)
    expected = tensors["output"].transpose(0, 2, 3, 1)
    # The tolerance that the fixtures state.
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    ("mixer", "parameters"), [(Doubling, 1), (lambda: Doubling(), 1), (partial(GAMA, kernel_size=3), 27)]
)
def test_any_callable_that_makes_a_module_fits_the_slot(mixer, parameters, random_params):
    params = random_params(NAFBlock(mixer), (1, 4, 4, 4))
    assert count_parameters(params["mixing"]) == parameters


def test_a_users_mixer_stands_between_gate_and_projection(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), jnp.float32)
    params = random_params(NAFBlock(Doubling), x.shape)
    without = {**params, "project": {**params["project"], "kernel": params["project"]["kernel"] * 3}}
    del without["mixing"]
    params["mixing"] = {"factor": jnp.float32(3)}
    result = jax.jit(NAFBlock(Doubling).apply)({"params": params}, x)
    expected = jax.jit(NAFBlock().apply)({"params": without}, x)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("position", ["first", "gate", "last"])
def test_the_mixer_stands_where_it_was_asked_for(position, random_params):
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 4))
    block = NAFBlock(GAMA, mixer_position=position)
    params = random_params(block, x.shape)
    result = jax.jit(block.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, oracles.naf_block(x, params, "gama", position), atol=1e-4)


def test_a_position_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="unknown mixer_position 'middle'"):
        create_model("gama_ir_tiny", mixer_position="middle")
    with pytest.raises(UserError, match="unknown mixer_position 'end'"):
        NAFBlock(GAMA, mixer_position="end").init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))


@pytest.mark.parametrize("mixer", [GAMA(), "gama", 3])
def test_a_mixer_that_makes_no_module_is_named(mixer):
    with pytest.raises(UserError, match="mixer must be a module class such as GAMA"):
        NAFBlock(mixer).init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))


def test_a_block_works_inside_nnx():
    from flax import nnx

    images = jax.random.normal(jax.random.key(0), (1, 6, 5, 4))
    module = nnx.bridge.ToNNX(NAFBlock(GAMA), rngs=nnx.Rngs(0)).lazy_init(images)
    # A fresh block is the identity.
    np.testing.assert_allclose(module(images), images, atol=1e-6)
