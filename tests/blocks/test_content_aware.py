from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gamax.blocks import NAFBlock
from gamax.blocks.content_aware import ContentAwareModule
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.blocks.pixel_dependent_filter import PixelDependentFilter
from gamax.errors import UserError
from gamax.models import count_parameters


@pytest.mark.parametrize(("channels", "parameters"), [(32, 50_797), (64, 156_781), (128, 538_765)])
def test_it_has_as_many_parameters_as_its_description(channels, parameters):
    image = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
    variables = jax.eval_shape(ContentAwareModule().init, jax.random.key(0), image)
    assert count_parameters(variables["params"]) == parameters


def test_every_pixel_mixes_attention_and_filter(random_params):
    rng = np.random.default_rng(0)
    x, source = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 6, 4, 5), (2, 3, 2, 5)))
    module = ContentAwareModule(kernel_size=3)
    params = random_params(module, x.shape)
    apply = jax.jit(lambda x, source: module.apply({"params": params}, x, source, mutable="intermediates"))
    result, state = apply(x, source)
    attended = EfficientAttention().apply({"params": params["attention"]}, x, source)
    filtered = PixelDependentFilter(3).apply({"params": params["filter"]}, x)
    weight = 1 / (1 + np.exp(-oracles.conv(np.asarray(x, np.float64), params["fusion_head"])))
    np.testing.assert_allclose(state["intermediates"]["fusion"][0], weight, atol=1e-6)
    np.testing.assert_allclose(result, weight * attended + (1 - weight) * filtered, atol=1e-5)

    def alone(branch: str) -> jax.Array:
        variables = {"params": {branch: params[branch]}}
        return ContentAwareModule(branch, kernel_size=3).apply(variables, x, source)

    np.testing.assert_allclose(alone("attention"), attended, atol=1e-6)
    np.testing.assert_allclose(alone("filter"), filtered, atol=1e-6)


def test_it_mixes_in_a_naf_block_in_bfloat16(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5, 4)), jnp.float32)
    block = NAFBlock(lambda: ContentAwareModule(kernel_size=3, dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    exact_block = NAFBlock(lambda: ContentAwareModule(kernel_size=3))
    params = random_params(exact_block, x.shape)

    def loss(params: Any, block: NAFBlock) -> jax.Array:
        return jnp.square(block.apply({"params": params}, x).astype(jnp.float32)).mean()

    exact = jax.jit(lambda params: loss(params, exact_block))(params)
    value, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, block)))(params)
    assert value == pytest.approx(float(exact), rel=0.02)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_devices_that_share_a_batch_and_its_rows_change_nothing(random_params):
    mesh = jax.make_mesh((2, 4), ("data", "rows"), axis_types=(AxisType.Auto,) * 2)
    shared, whole = NamedSharding(mesh, P("data", "rows")), NamedSharding(mesh, P())
    module = ContentAwareModule(kernel_size=3)
    params = random_params(module, (2, 8, 5, 4))
    x, weights = np.random.default_rng(0).normal(size=(2, 2, 8, 5, 4)).astype(np.float32)

    def result_and_gradients(params: Any, x: jax.Array) -> Any:
        result, pull_back = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
        return result, pull_back(weights)

    expected = jax.jit(result_and_gradients)(params, x)
    function = jax.jit(result_and_gradients, out_shardings=(shared, (whole, shared)))
    results = function(jax.device_put(params, whole), jax.device_put(x, shared))
    for value, alone in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, alone, atol=1e-5 * max(1, abs(alone).max()))


def test_branches_that_do_not_exist_are_named(random_params):
    with pytest.raises(UserError, match="one of 'both', 'attention', 'filter', not 'neither'"):
        random_params(ContentAwareModule("neither"), (1, 4, 4, 2))
