from __future__ import annotations

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from gamax.benchmark.cost import model_multiply_adds
from gamax.blocks import BaselineBlock
from gamax.errors import UserError
from gamax.models import abstract_params, create_model
from gamax.models.nafnet import NAFNet

SMALL = {"width": 4, "encoder_blocks": (1, 0), "middle_blocks": 1, "decoder_blocks": (0, 1)}
MODULES = {
    **{
        "conv1": "expand",
        "conv2": "spatial",
        "conv3": "project",
        "conv4": "channel_expand",
        "conv5": "channel_project",
    },
    **{"norm1": "spatial_norm", "norm2": "channel_norm", "beta": "spatial_scale", "gamma": "channel_scale"},
    **{"sca.1": "mixing/weight", "se.1": "mixing/squeeze", "se.3": "mixing/excite"},
}


def load(path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def from_official(tensors: dict[str, np.ndarray], levels: int = 0) -> Any:
    """Parameters of the authors' module as ours; every tensor is used once."""
    params = {}
    for key, value in tensors.items():
        if not key.startswith("param."):
            continue
        name, value = key.removeprefix("param."), value.astype(np.float32)
        name = re.sub(r"^encoders\.(\d+)\.(\d+)\.", r"encoder_\1_\2/", name)
        name = re.sub(r"^middle_blks\.(\d+)\.", r"middle_\1/", name)
        name = re.sub(r"^decoders\.(\d+)\.(\d+)\.", lambda m: f"decoder_{levels - 1 - int(m[1])}_{m[2]}/", name)
        name = re.sub(r"^downs\.(\d+)", r"down_\1", name)
        name = re.sub(r"^ups\.(\d+)\.0", lambda m: f"up_{levels - 1 - int(m[1])}", name)
        for official, ours in MODULES.items():
            name = re.sub(rf"(^|/){re.escape(official)}(?=\.|$)", rf"\1{ours}", name)
        if name.endswith("scale"):
            params[name] = value.ravel()
        elif name.endswith("norm.weight"):
            params[name.replace(".weight", "/scale")] = value
        elif name.endswith(".bias"):
            params[name.replace(".bias", "/bias")] = value
        else:
            # A 2x2 kernel with stride 2 is a matrix on the unshuffled pixels, channels before rows before columns.
            kernel = value.reshape(len(value), -1, 1, 1) if "down_" in name else value
            params[name.replace(".weight", "/kernel")] = kernel.transpose(2, 3, 1, 0)
    assert len(params) == sum(key.startswith("param.") for key in tensors)
    return unflatten_dict({tuple(name.split("/")): jnp.asarray(value) for name, value in params.items()})


def check_against(expected_shapes: Any, params: Any) -> None:
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_shapes)


def assert_close(result: jax.Array, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(result, expected.transpose(0, 2, 3, 1), atol=tolerance * abs(expected).max())


def test_it_reproduces_the_official_block_of_baseline(shared_folder):
    config, tensors = load(shared_folder / "fixtures/nafnet/baseline_block.safetensors")
    block, params = BaselineBlock(config["DW_Expand"]), from_official(tensors)
    x = jnp.asarray(tensors["input"].transpose(0, 2, 3, 1))
    check_against(jax.eval_shape(block.init, jax.random.key(0), x)["params"], params)
    assert_close(jax.jit(block.apply)({"params": params}, x), tensors["output"], 1e-5)


@pytest.mark.parametrize("name", ["nafnet", "baseline"])
def test_it_reproduces_the_official_networks(shared_folder, name):
    config, tensors = load(shared_folder / f"fixtures/nafnet/{name}_w16.safetensors")
    blocks = (tuple(config["enc_blk_nums"]), config["middle_blk_num"], tuple(config["dec_blk_nums"]))
    model = NAFNet(config["width"], *blocks, block="naf" if name == "nafnet" else "baseline")
    params = from_official(tensors, levels=len(blocks[0]))
    x = jnp.asarray(tensors["input"].transpose(0, 2, 3, 1))
    # Not a multiple of 8, so the padding is seen as well.
    assert x.shape[1] % 8
    assert x.shape[2] % 8
    check_against(abstract_params(model), params)
    assert_close(jax.jit(model.apply)({"params": params}, x), tensors["output"], 1e-4)


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


@pytest.mark.parametrize("block", ["naf", "baseline"])
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


def test_fresh_blocks_are_identities():
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 4))
    result, _ = BaselineBlock(2).init_with_output(jax.random.key(1), x)
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": "nav"}, r"unknown block 'nav' \(did you mean 'naf'\?\)"),
        ({"encoder_blocks": (1, 1)}, "as many numbers of encoder_blocks as of decoder_blocks"),
        ({"encoder_blocks": (), "decoder_blocks": ()}, "as many numbers"),
        ({"middle_blocks": -1}, "must not be negative"),
        ({"width": 7}, "even width"),
        ({"expansion": 0}, "expansion of at least 1"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        create_model("nafnet_sidd_w32", **options)
