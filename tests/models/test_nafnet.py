from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import official
import oracles
import pytest

from gamax.benchmark.cost import model_multiply_adds
from gamax.blocks import BaselineBlock
from gamax.blocks.naf import PlainBlock
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import abstract_params, count_parameters, create_model
from gamax.models.nafnet import NAFNet

SMALL = {"width": 4, "encoder_blocks": (1, 0), "middle_blocks": 1, "decoder_blocks": (0, 1)}


def test_it_reproduces_the_official_block_of_baseline(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/nafnet/baseline_block.safetensors")
    official.check(BaselineBlock(config["DW_Expand"]), tensors, 1e-5, key_map(NAFNet()))


@pytest.mark.parametrize("name", ["nafnet", "baseline"])
def test_it_reproduces_the_official_networks(shared_folder, name):
    config, tensors = official.load(shared_folder / f"fixtures/nafnet/{name}_w16.safetensors")
    blocks = (tuple(config["enc_blk_nums"]), config["middle_blk_num"], tuple(config["dec_blk_nums"]))
    model = NAFNet(config["width"], *blocks, block="naf" if name == "nafnet" else "baseline")
    # Not a multiple of 8, so the padding is seen as well.
    assert all(side % 8 for side in tensors["input"].shape[2:])
    official.check(model, tensors, 1e-4)


@pytest.mark.parametrize("name", ["nafnet_local_w16", "nafnet_local_w16_both_axes"])
def test_it_reproduces_the_official_local_conversion(shared_folder, name):
    config, tensors = official.load(shared_folder / f"fixtures/nafnet/{name}.safetensors")
    blocks = (tuple(config["enc_blk_nums"]), config["middle_blk_num"], tuple(config["dec_blk_nums"]))
    window = int(1.5 * config["train_size"][-1])
    official.check(NAFNet(config["width"], *blocks, local_window=window), tensors, 1e-4)
    # With means over the whole image it is another function.
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        official.check(NAFNet(config["width"], *blocks), tensors, 1e-4)


@pytest.mark.parametrize("block", ["naf", "baseline"])
def test_a_window_that_covers_the_image_changes_nothing(block, random_params):
    params = random_params(NAFNet(**SMALL, block=block), (1, 8, 8, 3))
    x = jnp.asarray(np.random.default_rng(0).random((1, 12, 8, 3)), jnp.float32)
    plain, local, smaller = (
        jax.jit(NAFNet(**SMALL, block=block, local_window=window).apply)({"params": params}, x)
        for window in (None, 12, 8)
    )
    np.testing.assert_array_equal(local, plain)
    assert not np.allclose(smaller, plain)


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        *(("nafnet_sidd_w32", 16.05), ("nafnet_sidd_w64", 63.24), ("nafnet_gopro_w32", 15.96)),
        *(("nafnet_gopro_w64", 63.05), ("baseline_sidd_w32", 15.87), ("baseline_sidd_w64", 82.61)),
        *(("baseline_gopro_w32", 15.82), ("baseline_gopro_w64", 82.41)),
    ],
)
def test_published_variants_have_their_multiply_adds(name, giga):
    model = create_model(name)
    params = abstract_params(model)
    assert model_multiply_adds(model, params, 256, 256) / 1e9 == pytest.approx(giga, abs=0.006)


@pytest.mark.parametrize("block", ["naf", "baseline", "plain"])
@pytest.mark.parametrize("size", [(1, 1), (5, 9)])
def test_any_size_any_precision_and_gradients(block, size, random_params):
    model = NAFNet(**SMALL, block=block)
    params = random_params(model, (1, 8, 8, 3))
    x = jnp.asarray(np.random.default_rng(0).random((2, *size, 3)), jnp.float32)

    def loss(params: Any, dtype: Any) -> jax.Array:
        restored = NAFNet(**SMALL, block=block, dtype=dtype).apply({"params": params}, x)
        assert restored.shape == x.shape
        assert restored.dtype == jnp.float32
        return jnp.square(restored - 0.5).mean()

    exact, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, jnp.float32)))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["middle_0"]))
    rounded = jax.jit(lambda params: loss(params, jnp.bfloat16))(params)
    assert rounded == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize("block", [BaselineBlock(2), PlainBlock(2)])
def test_fresh_blocks_are_identities(block):
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 4))
    result, _ = block.init_with_output(jax.random.key(1), x)
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("expansion", [1, 2])
def test_the_plain_block_equals_numpy(expansion, random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 6))
    params = random_params(PlainBlock(expansion), x.shape)
    result = jax.jit(PlainBlock(expansion).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    y = oracles.conv(oracles.pointwise(x, params["expand"]), params["spatial"])
    y = oracles.pointwise(np.maximum(y, 0), params["project"])
    expected = x + np.asarray(params["spatial_scale"], np.float64) * y
    y = oracles.pointwise(
        np.maximum(oracles.pointwise(expected, params["channel_expand"]), 0), params["channel_project"]
    )
    expected = expected + np.asarray(params["channel_scale"], np.float64) * y
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    ("blocks", "parameters", "giga"),
    [(((2, 2, 4, 8), 12, (2, 2, 2, 2)), 25_082_147, 15.86), (((1, 1, 1, 28), 1, (1, 1, 1, 1)), 14_772_067, 15.82)],
)
def test_plain_networks_have_their_parameters_and_the_cost_of_baseline(blocks, parameters, giga):
    model = NAFNet(32, *blocks, block="plain")
    params = abstract_params(model)
    assert count_parameters(params) == parameters
    assert model_multiply_adds(model, params, 256, 256) / 1e9 == pytest.approx(giga, abs=0.006)


def test_plain_networks_are_local_and_have_no_pytorch_code(random_params):
    model = NAFNet(**SMALL, block="plain")
    assert not model.global_statistics
    with pytest.raises(UserError, match="no published PyTorch code for NAFNet with these options"):
        key_map(model)
    params = random_params(model, (1, 8, 8, 3))
    images = np.random.default_rng(0).random((1, 8, 80, 3)).astype(np.float32)
    changed = images.copy()
    changed[:, :, :4] = 0
    results = [np.asarray(jax.jit(model.apply)({"params": params}, x)) for x in (images, changed)]
    assert not np.allclose(results[0][:, :, :4], results[1][:, :, :4])
    np.testing.assert_array_equal(results[0][:, :, 60:], results[1][:, :, 60:])


def test_another_mixer_fills_the_slot_and_has_no_pytorch_code():
    slot = abstract_params(NAFNet(**SMALL, mixer="gama", dtype=jnp.bfloat16))["middle_0"]["mixing"]
    assert count_parameters(slot) == 147
    assert {leaf.dtype for leaf in jax.tree.leaves(slot)} == {jnp.dtype(jnp.float32)}
    assert "mixing" not in abstract_params(NAFNet(**SMALL, mixer=None))["middle_0"]
    with pytest.raises(UserError, match="no published PyTorch code for NAFNet with these options"):
        key_map(NAFNet(**SMALL, mixer="gama"))


def test_only_networks_with_a_global_mixer_have_global_statistics():
    assert NAFNet(**SMALL, mixer="efficient_attention").global_statistics
    assert not NAFNet(**SMALL, mixer=None).global_statistics
    assert NAFNet(**SMALL, block="baseline").global_statistics


def test_the_window_reaches_a_mixer_that_takes_one(random_params):
    params = random_params(NAFNet(**SMALL, mixer="gama"), (1, 8, 8, 3))
    x = jnp.asarray(np.random.default_rng(0).random((1, 12, 8, 3)), jnp.float32)
    plain, covering, local = (
        jax.jit(NAFNet(**SMALL, mixer="gama", local_window=window).apply)({"params": params}, x)
        for window in (None, 12, 4)
    )
    np.testing.assert_array_equal(covering, plain)
    assert not np.allclose(local, plain)


def test_lists_make_the_same_network_as_tuples():
    lists = create_model("nafnet_sidd_w32", encoder_blocks=[1, 1], decoder_blocks=[1, 1], local_window=384)
    assert hash(lists) == hash(
        create_model("nafnet_sidd_w32", encoder_blocks=(1, 1), decoder_blocks=(1, 1), local_window=384)
    )


def test_gradients_and_bfloat16_with_a_window(random_params):
    params = random_params(NAFNet(**SMALL), (1, 8, 8, 3))
    x = jnp.asarray(np.random.default_rng(0).random((1, 12, 9, 3)), jnp.float32)

    def loss(params: Any, dtype: Any) -> jax.Array:
        return jnp.square(NAFNet(**SMALL, local_window=4, dtype=dtype).apply({"params": params}, x)).mean()

    exact, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, jnp.float32)))(params)
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients["middle_0"]))
    assert jax.jit(lambda params: loss(params, jnp.bfloat16))(params) == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": "nav"}, r"unknown block 'nav' \(did you mean 'naf'\?\)"),
        ({"encoder_blocks": (1, 1)}, "as many numbers of encoder_blocks as of decoder_blocks"),
        ({"encoder_blocks": (), "decoder_blocks": ()}, "as many numbers"),
        ({"middle_blocks": -1}, "must not be negative"),
        ({"width": 0}, "width and expansion of at least 1"),
        ({"expansion": 0}, "width and expansion of at least 1"),
        ({"encoder_blocks": 2}, r"as many numbers of encoder_blocks as of decoder_blocks, not \(2,\) and"),
        (
            {"encoder_blocks": "[1, 1]"},
            r"'encoder_blocks' of nafnet_sidd_w32 must be several whole numbers such as 1,2, not '\[1, 1\]'",
        ),
        ({"encoder_blocks": True}, "several whole numbers"),
        ({"encoder_blocks": (1, 1.5, 1, 1)}, "several whole numbers"),
        ({"local_window": "none"}, "'local_window' of nafnet_sidd_w32 must be of type int or None, not 'none'"),
        ({"local_window": 384.5}, "type int or None"),
        ({"local_window": 15}, "local_window must be at least 16, not 15"),
        ({"local_window": 384, "block": "plain"}, "local_window is for the blocks naf and baseline"),
        ({"block": "baseline", "mixer": "gama"}, "mixer is for the block naf, not for baseline: leave it at sca"),
        ({"block": "plain", "mixer": None}, "mixer is for the block naf, not for plain"),
        ({"mixer": "gamma"}, r"unknown mixer 'gamma' \(did you mean 'gama'\?\)"),
        ({"mixer": 3}, "mixer must be a module class such as GAMA"),
        (
            {"mixer": "content_aware", "local_window": 384},
            "local_window is for the mixers gama, squeeze_excite and sca",
        ),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        create_model("nafnet_sidd_w32", **options)
