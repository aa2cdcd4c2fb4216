from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from gamax.benchmark.cost import model_multiply_adds
from gamax.blocks import LayerNorm, TransposedAttentionBlock
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import abstract_params, create_model
from gamax.models.restormer import Restormer

SMALL = {"width": 4, "blocks": (1, 0, 0, 1), "refinement_blocks": 1, "heads": (1, 2, 2, 4)}


@pytest.mark.parametrize("kind", ["withbias", "biasfree"])
def test_it_reproduces_the_official_block(shared_folder, kind):
    config, tensors = official.load(shared_folder / f"fixtures/restormer/transformer_block_{kind}.safetensors")
    block = TransposedAttentionBlock(config["num_heads"], config["ffn_expansion_factor"], kind == "biasfree")
    official.check(block, tensors, 1e-5, key_map(Restormer()))


@pytest.mark.parametrize("name", ["restormer_dim16", "restormer_dim16_dual_pixel"])
def test_it_reproduces_the_official_networks(shared_folder, name):
    config, tensors = official.load(shared_folder / f"fixtures/restormer/{name}.safetensors")
    model = Restormer(
        width=config["dim"],
        blocks=tuple(config["num_blocks"]),
        refinement_blocks=config["num_refinement_blocks"],
        heads=tuple(config["heads"]),
        expansion=config["ffn_expansion_factor"],
        bias_free=config["LayerNorm_type"] == "BiasFree",
        dual_pixel=config["dual_pixel_task"],
    )
    official.check(model, tensors, 1e-4)


@pytest.mark.parametrize("name", ["restormer", "restormer_denoising"])
def test_published_variants_have_their_multiply_adds(name):
    model = create_model(name)
    assert model_multiply_adds(model, abstract_params(model), 256, 256) / 1e9 == pytest.approx(154.88, abs=0.006)


@pytest.mark.parametrize("size", [(1, 1), (9, 14)])
def test_any_size_any_precision_and_gradients(size, random_params):
    model = Restormer(**SMALL)
    params = random_params(model, (1, 8, 8, 3))
    x = jnp.asarray(np.random.default_rng(0).random((2, *size, 3)), jnp.float32)

    def loss(params: Any, dtype: Any) -> jax.Array:
        restored = Restormer(**SMALL, dtype=dtype).apply({"params": params}, x)
        assert restored.shape == x.shape
        assert restored.dtype == jnp.float32
        return jnp.square(restored - 0.5).mean()

    exact, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, jnp.float32)))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["refinement_0"]["feed_forward"]))
    rounded = jax.jit(lambda params: loss(params, jnp.bfloat16))(params)
    assert rounded == pytest.approx(float(exact), rel=0.05)


def test_the_bias_free_norm_keeps_the_mean():
    x = np.random.default_rng(0).normal(3, 2, (2, 3, 4, 5))
    scale = np.arange(1.0, 6)
    params = {"scale": jnp.asarray(scale, jnp.float32)}
    result = LayerNorm(epsilon=0.1, bias_free=True).apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, x / np.sqrt(x.var(-1, keepdims=True) + 0.1) * scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": (1, 2, 3)}, "four levels"),
        ({"heads": (1, 2)}, "four levels"),
        ({"refinement_blocks": -1}, "must not be negative"),
        ({"heads": (0, 1, 1, 1)}, "be at least 1"),
        ({"heads": (1, 2, 4, 7)}, "heads divide on every level"),
        ({"width": 3, "heads": (1, 1, 1, 1)}, "even width"),
        ({"expansion": 0.01}, "leave a hidden channel"),
        ({"expansion": float("nan")}, "leave a hidden channel"),
        ({"expansion": "wide"}, "'expansion' of restormer must be of type float"),
        ({"blocks": 4}, "four levels"),
        ({"blocks": "4, 6"}, "several whole numbers"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        create_model("restormer", **options)


@pytest.mark.parametrize(("dual_pixel", "channels"), [(False, 1), (False, 6), (True, 3)])
def test_images_of_another_number_of_channels_are_refused(dual_pixel, channels):
    model = create_model("restormer", dual_pixel=dual_pixel, expansion=2)
    with pytest.raises(UserError, match=rf"takes images of . channels.*, not {channels}"):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32))
