from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import official
import oracles
import pytest

from gamax.blocks.adaptive_attention import AttentionBlock, EAABlock, ResBlock, ResidualGate
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import count_parameters
from gamax.models.lir import LIR


def test_it_reproduces_the_official_attention_block(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/lir/attention_block.safetensors")
    block = AttentionBlock(config["patch_size"][0], config["dim"] // config["mlp_dim"])
    official.check(block, tensors, 1e-5, key_map(LIR()))


def test_it_reproduces_the_official_eaa_block(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/lir/eaa_block.safetensors")
    official.check(EAABlock(config["patch_size"], config["dim_scale"]), tensors, 2e-5, key_map(LIR()))


def test_the_residual_blocks_equal_numpy(random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 16))
    for module in (ResBlock(), ResBlock(channel_attention=True), ResidualGate()):
        params = random_params(module, x.shape)
        if isinstance(module, ResidualGate):
            y = oracles.gate(oracles.pointwise(oracles.layer_norm(x, params["norm"]), params["expand"]))
        else:
            y = oracles.conv(oracles.conv(x, params["expand"]), params["spatial"])
            y = oracles.conv(oracles.gelu(oracles.layer_norm(y, params["norm"])), params["project"])
            y = oracles.squeeze_excite(y, params["attention"]) if module.channel_attention else y
        expected = x + np.asarray(params["residual_scale"], np.float64) * y
        result = jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


def test_parts_have_their_published_parameters(random_params):
    params = random_params(EAABlock(8, 16), (1, 32, 32, 48))
    counts = {name: count_parameters(part) for name, part in params.items()}
    assert counts["attention_1"] + counts["downsample_1"] == 59_300
    assert counts["filter_2"] + counts["attention_2"] + counts["downsample_2"] == 47_598
    assert counts["filter_3"] + counts["attention_3"] == 26_862
    assert counts["filter_4"] + counts["attention_4"] + counts["upsample_4"] == 63_726
    assert counts["filter_5"] + counts["attention_5"] + counts["upsample_5"] == 197_553
    assert counts["degradation"] == 36_864
    parts = {name: count_parameters(part) for name, part in params["attention_1"].items()}
    assert parts == {
        "convolutions": 10_320,
        "patch_attention": 12_737,
        "gate": 4_848,
        "channel_attention": 10_659,
    }
    # Hidden channels of the channel attention.
    assert params["attention_1"]["channel_attention"]["attention"]["squeeze"]["bias"].shape == (3,)
    assert params["attention_5"]["channel_attention"]["attention"]["squeeze"]["bias"].shape == (6,)


@pytest.mark.parametrize("module", [ResBlock(), ResBlock(channel_attention=True), ResidualGate()])
def test_fresh_residuals_are_identities(module):
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 16))
    np.testing.assert_array_equal(jax.jit(module.init_with_output)(jax.random.key(1), x)[0], x)


def test_a_window_makes_the_channel_attention_local(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 9, 16)), jnp.float32)
    params = random_params(ResBlock(channel_attention=True), x.shape)
    # The one hidden unit of the channel attention must not be silent.
    params["attention"]["squeeze"]["bias"] += 5

    def restored(window: int | None, x: jax.Array) -> jax.Array:
        return jax.jit(ResBlock(channel_attention=True, window=window).apply)({"params": params}, x)

    changed = x.at[0, -1].add(1)
    np.testing.assert_array_equal(restored(12, x), restored(None, x))
    # The changed row touches the rows above through the convolution, the ones above that through means alone.
    assert (restored(None, x) != restored(None, changed)).any((2, 3)).all()
    touched = (restored(4, x) != restored(4, changed)).any((0, 2, 3))
    np.testing.assert_array_equal(touched, np.arange(12) >= 8)


def test_sides_that_the_stages_cannot_take_are_refused():
    for size, words in (((16, 32), "at least 8 pixels"), ((40, 40), "patches of 4x4 pixels do not divide 10x10")):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(EAABlock(8, 8).init, jax.random.key(0), jnp.zeros((1, *size, 16)))
