from __future__ import annotations

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import GAMA, MIXERS
from gamax.errors import UserError
from gamax.models import VARIANTS, abstract_params, count_parameters, create_model
from gamax.models.gama_ir import GAMAIR

SMALL = {"width": 4, "depth": 5, "levels": 2, "blocks_per_level": 1}


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).random(shape), jnp.float32)


@cache
def jitted(model: nn.Module):
    return jax.jit(model.apply)


@jax.jit
def gradients(params: Any, x: jax.Array) -> Any:
    return jax.grad(lambda params, x: jnp.square(GAMAIR(**SMALL).apply({"params": params}, x)).sum(), (0, 1))(params, x)


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(GAMAIR(**SMALL), (1, 8, 8, 3))


@pytest.mark.parametrize(
    ("name", "mixer", "parameters"),
    [
        ("gama_ir_s", "gama", 10_423_500),
        ("gama_ir_s", "none", 10_420_854),
        ("gama_ir_s", None, 10_420_854),
        ("gama_ir_s", "squeeze_excite", 10_611_770),
        ("gama_ir_s", "sca", 11_927_646),
        ("gama_ir_s", "non_local", 13_436_370),
        ("gama_ir_l", "gama", 47_460_276),
        ("gama_ir_l", "none", 47_457_483),
        ("gama_ir_l", "squeeze_excite", 48_353_063),
        ("gama_ir_l", "sca", 54_557_323),
        ("gama_ir_l", "non_local", 61_661_483),
        *(
            ("gama_ir_s", partial(GAMA, kernel_size=size), parameters)
            for size, parameters in {1: 10_420_908, 3: 10_421_340, 5: 10_422_204, 9: 10_425_228}.items()
        ),
    ],
)
def test_parameters_with_every_mixer(name, mixer, parameters):
    assert count_parameters(abstract_params(create_model(name, mixer=mixer))) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("gama_ir_s", 5_376_612), ("gama_ir_l", 21_795_956)])
def test_parameters_with_three_levels(name, parameters):
    assert count_parameters(abstract_params(create_model(name, levels=3))) == parameters


@pytest.mark.parametrize("size", [(8, 12), (7, 13), (17, 3)])
@pytest.mark.parametrize("mixer", ["gama", "none"])
def test_the_whole_network_equals_numpy(size, mixer, random_params):
    x = np.random.default_rng(0).random((2, *size, 3))
    model = GAMAIR(**SMALL, mixer=mixer)
    params = random_params(model, (1, 8, 8, 3))
    expected = oracles.gama_ir(x, params, mixer, levels=2, blocks=1, bottom=1)
    result = jitted(model)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (2, 3), (17, 31), (16, 15), (33, 16)])
def test_the_output_has_the_shape_of_the_input(size):
    result, _ = jax.eval_shape(
        GAMAIR(width=4, depth=9, levels=4, blocks_per_level=1).init_with_output,
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, *size, 3), jnp.float32),
    )
    assert result.shape == (2, *size, 3)
    assert result.dtype == jnp.float32


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1)])
def test_images_smaller_than_the_padding_are_restored(size, params):
    assert jnp.isfinite(jitted(GAMAIR(**SMALL))({"params": params}, images(1, *size, 3))).all()


def test_blocks_with_zero_scales_contribute_nothing(params):
    """Then the network is intro, resampling and ending, whatever else the blocks hold."""
    model, x = GAMAIR(**SMALL), images(1, 9, 10, 3)
    params = with_zero_scales(params)

    h, w = x.shape[1:3]
    padded = np.pad(x, [(0, 0), (0, -h % 4), (0, -w % 4), (0, 0)], mode="reflect")
    first = oracles.conv(padded, params["intro"])
    second = oracles.pixel_unshuffle(oracles.pointwise(first, params["down_0"]), 2)
    bottom = oracles.pixel_unshuffle(oracles.pointwise(second, params["down_1"]), 2)
    second = second + oracles.pixel_shuffle(oracles.pointwise(bottom, params["up_1"]), 2)
    first = first + oracles.pixel_shuffle(oracles.pointwise(second, params["up_0"]), 2)
    skeleton = x + oracles.conv(first, params["ending"])[:, :h, :w]
    np.testing.assert_allclose(jitted(model)({"params": params}, x), skeleton, atol=1e-5)


def test_jit_eager_and_vmap_agree(random_params):
    model, x = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1), images(3, 8, 8, 3)
    params = random_params(model, (1, 8, 8, 3))
    expected = jitted(model)({"params": params}, x)
    with jax.disable_jit():
        eager = model.apply({"params": params}, x[:1])
    np.testing.assert_allclose(eager, expected[:1], atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda image: model.apply({"params": params}, image[None])[0]))(x)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)


def with_zero_scales(params: Any) -> Any:
    scales = [path for path, _ in jax.tree.leaves_with_path(params) if path[-1].key.endswith("l_scale")]
    assert len(scales) == 2 * SMALL["depth"]
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * 0 if path in scales else leaf, params)


def test_an_image_does_not_feel_the_others_in_its_batch(params):
    x = images(2, 8, 8, 3)
    apply = jitted(GAMAIR(**SMALL))
    with_nan = apply({"params": params}, jnp.stack([x[0], jnp.full_like(x[1], jnp.nan)]))
    np.testing.assert_array_equal(with_nan[0], apply({"params": params}, x)[0])
    assert jnp.isnan(with_nan[1]).all()


@pytest.mark.parametrize("x", [images(1, 9, 8, 3), jnp.zeros((1, 9, 8, 3)), jnp.full((1, 9, 8, 3), 0.5, jnp.float32)])
def test_gradients_are_finite_also_for_constant_images(x, params):
    # Training starts where the residual scales are zero.
    for values in (params, with_zero_scales(params)):
        leaves = jax.tree.leaves(gradients(values, x))
        assert all(jnp.isfinite(leaf).all() for leaf in leaves)
        assert any(leaf.any() for leaf in leaves)


def test_bfloat16_computation_stays_within_its_precision_of_float32(params):
    x = images(2, 16, 16, 3)
    exact = np.asarray(jitted(GAMAIR(**SMALL))({"params": params}, x))
    result = jitted(GAMAIR(**SMALL, dtype=jnp.bfloat16))({"params": params}, x)
    assert result.dtype == jnp.float32
    error = np.asarray(result) - exact
    residual = exact - np.asarray(x)
    # About 60 operations in a row, each rounding by up to 2^-8 = 0.4 %: their square root is 3 %.
    assert 0 < np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(residual**2))


def test_the_image_passes_unrounded_beside_a_bfloat16_network(params):
    silent = {**params, "ending": jax.tree.map(jnp.zeros_like, params["ending"])}
    x = images(1, 8, 8, 3)
    np.testing.assert_array_equal(jitted(GAMAIR(**SMALL, dtype=jnp.bfloat16))({"params": silent}, x), x)


def test_bfloat16_computes_with_float32_parameters_unless_told_otherwise():
    def dtypes(model: GAMAIR) -> set[np.dtype]:
        return {leaf.dtype for leaf in jax.tree.leaves(abstract_params(model))}

    assert dtypes(GAMAIR(**SMALL, dtype=jnp.bfloat16)) == {jnp.dtype(jnp.float32)}
    assert dtypes(GAMAIR(**SMALL, param_dtype=jnp.bfloat16)) == {jnp.dtype(jnp.bfloat16)}


def test_dense_convolutions_stand_in_for_the_pair():
    params = abstract_params(GAMAIR(**SMALL, spatial_conv="dense"))
    assert params["encoder_0_0"]["spatial"]["kernel"].shape == (3, 3, 4, 8)
    assert not any("expand" in block for block in params.values())


def test_a_module_class_and_a_lambda_fit_the_slot():
    class Halving(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("factor", nn.initializers.constant(0.5), (1,))

    for mixer in (Halving, lambda: Halving()):
        without, with_mixer = (
            count_parameters(abstract_params(GAMAIR(**SMALL, mixer=value))) for value in (None, mixer)
        )
        assert with_mixer - without == SMALL["depth"]


@pytest.mark.parametrize("mixer", [*MIXERS, None, GAMA])
def test_networks_with_a_local_mixer_or_none_are_free_of_global_statistics(mixer):
    assert GAMAIR(**SMALL, mixer=mixer).global_statistics == (mixer not in ("none", None, "pixel_dependent_filter"))


@pytest.mark.parametrize("levels", [1, 3])
def test_sides_are_padded_to_two_to_the_levels(levels):
    assert GAMAIR(levels=levels).size_multiple == 2**levels


def test_overrides_replace_the_options_of_a_variant():
    model = create_model("gama_ir_tiny", width=24, mixer="sca")
    assert (model.width, model.mixer, model.levels) == (24, "sca", VARIANTS["gama_ir_tiny"].options["levels"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: create_model("gama_ir_x"), r"unknown model 'gama_ir_x' \(did you mean 'gama_ir_"),
        (lambda: create_model("gama_ir_tny"), "did you mean 'gama_ir_tiny'"),
        (lambda: create_model("gama_ir_s", widht=8), r"gama_ir_s has no option 'widht' \(did you mean 'width'\?\)"),
        (lambda: create_model("gama_ir_s", parent=None), "has no option 'parent'"),
        (lambda: create_model("gama_ir_s", mixer="gamma"), r"unknown mixer 'gamma' \(did you mean 'gama'\?\)"),
        (lambda: create_model("gama_ir_s", spatial_conv="dens"), r"unknown spatial_conv 'dens' \(did you mean 'dense'"),
        (
            lambda: create_model("gama_ir_s", mixer="content_aware", local_window=64),
            "local_window is for the mixers gama",
        ),
        (lambda: create_model("gama_ir_s", depth=16), "4 levels of 2 x 2 blocks needs a depth of at least 17, not 16"),
        (lambda: create_model("gama_ir_s", width=7), "even width"),
        (lambda: create_model("gama_ir_s", width=0), "even width"),
        (lambda: create_model("gama_ir_s", levels=0), "levels"),
        (lambda: create_model("gama_ir_s", blocks_per_level=0), "blocks_per_level"),
    ],
)
def test_what_cannot_be_built_is_named(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("overrides", [{"width": "wide"}, {"depth": 8.5}, {"mixer": 3}])
def test_options_of_the_wrong_type_are_user_errors(overrides):
    with pytest.raises(UserError, match=next(iter(overrides))):
        create_model("gama_ir_tiny", **overrides)
