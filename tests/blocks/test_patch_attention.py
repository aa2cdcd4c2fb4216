from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import official
import oracles
import pytest

from gamax.blocks.patch_attention import PatchAttention
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import count_parameters
from gamax.models.lir import LIR


@pytest.mark.parametrize("patch", [4, 8])
def test_it_reproduces_the_official_module(shared_folder, patch):
    config, tensors = official.load(shared_folder / f"fixtures/lir/patch_attention_p{patch}.safetensors")
    assert config["patch_size"] == [patch, patch]
    # Alone it lacks the prefix that tells its beta from that of a filter.
    names = replace(key_map(LIR()), shapes=((r"^beta$", (1, -1, 1, 1)),))
    official.check(PatchAttention(patch, config["dim"] // config["mlp_dim"]), tensors, 1e-5, names)


@pytest.mark.parametrize(("patch", "size"), [(2, (4, 6)), (3, (3, 9)), (1, (2, 3))])
def test_it_equals_numpy(patch, size, random_params):
    x = np.random.default_rng(0).normal(size=(2, *size, 6))
    module = PatchAttention(patch, reduction=2)
    params = random_params(module, x.shape)
    expected = oracles.patch_attention(x, params, patch)
    result = jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


def test_a_pixel_reaches_its_grid_and_nothing_else(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 8, 4)), jnp.float32)
    module = PatchAttention(4, reduction=4)
    params = random_params(module, x.shape)
    apply = jax.jit(module.apply)
    changed = (apply({"params": params}, x) != apply({"params": params}, x.at[0, 5, 3].add(1))).any((0, 3))
    expected = np.zeros((12, 8), bool)
    expected[5 % 3 :: 3, 3 % 2 :: 2] = True
    np.testing.assert_array_equal(changed, expected)


def test_a_fresh_module_has_no_identity_path():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    params = PatchAttention(2, 4).init(jax.random.key(1), x)["params"]
    assert not params["skip_scale"].any()
    silent = {**params, "weight": jax.tree.map(jnp.zeros_like, params["weight"])}
    assert not PatchAttention(2, 4).apply({"params": silent}, x).any()


@pytest.mark.parametrize(
    ("patch", "reduction", "channels", "hidden", "features"),
    [(8, 16, 48, 192, 64), (4, 16, 48, 48, 16), (8, 16, 96, 384, 64), (8, 8, 96, 768, 64), (2, 8, 48, 24, 4)],
)
def test_the_perceptron_has_its_published_sizes(patch, reduction, channels, hidden, features, random_params):
    params = random_params(PatchAttention(patch, reduction), (1, patch, patch, channels))
    assert params["hidden"]["kernel"].shape == (hidden, features)
    assert params["weight"]["kernel"].shape == (features, 1)
    perceptron = hidden * features + 3 * features + features + 1
    assert count_parameters(params) == channels * (channels // reduction) + channels + perceptron


@pytest.mark.parametrize("size", [(10, 8), (8, 10)])
def test_sides_that_are_not_multiples_are_refused(size):
    with pytest.raises(UserError, match=rf"patches of 4x4 pixels do not divide {size[0]}x{size[1]}"):
        jax.eval_shape(PatchAttention(4, 2).init, jax.random.key(0), jnp.zeros((1, *size, 4)))
