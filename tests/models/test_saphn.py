from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.benchmark.cost import model_multiply_adds
from gamax.errors import UserError
from gamax.models import abstract_params, count_parameters, create_model
from gamax.models.dmphn import DMPHN
from gamax.models.saphn import SAPHN
from gamax.training.losses import l1

SMALL = {"widths": (3, 4, 5), "blocks": 1, "kernel_size": 3, "max_offset": 1, "descriptors": 2}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((2, 16, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params(random_params):
    """Small, so that noise stays an image through a network without norms; but soft-maxes that are far from flat."""

    def scaled(path, leaf):
        steep = any(key.key in ("query", "key", "mask_head") for key in path)
        return (8.0 if steep else 0.4) * leaf

    return jax.tree_util.tree_map_with_path(scaled, random_params(SAPHN(**SMALL), (1, 8, 8, 3)))


def test_the_whole_network_equals_numpy(images, params):
    model = SAPHN(**SMALL)

    # In one program, which computes only once what is equal.
    @jax.jit
    def restore(params, images):
        variables = {"params": params}
        return model.apply(variables, images, method="outputs"), model.apply(variables, images)

    (restored, features), last = restore(params, images)
    expected = oracles.saphn(np.asarray(images, np.float64), params, max_offset=1)
    assert len(restored) == len(expected) == 3
    for level, oracle in zip(restored, expected, strict=True):
        np.testing.assert_allclose(level, oracle, atol=2e-6 * np.abs(oracle).max())
    assert features.shape == (2, 16, 8, 3)
    np.testing.assert_array_equal(last, restored[-1])


@pytest.mark.parametrize(
    ("name", "parameters", "giga"),
    [
        ("saphn", 14_463_583, 147.88),
        ("saphn_attention", 6_168_367, 57.36),
        # Counting takes five seconds each.
        pytest.param("saphn_1_2_4_8", 19_298_623, 197.24, marks=pytest.mark.slow),
        pytest.param("saphn_lite", 9_171_871, 90.20, marks=pytest.mark.slow),
    ],
)
def test_it_has_the_specified_size_and_cost(name, parameters, giga):
    model = create_model(name)
    params = abstract_params(model)
    assert count_parameters(params) == parameters
    # Of 256x256 pixels; what sampling takes is not counted.
    assert model_multiply_adds(model, params, 256, 256) / 1e9 == pytest.approx(giga, abs=0.005)


def test_without_its_modules_it_is_dmphn_and_the_image(images, random_params):
    plain = SAPHN(widths=(2, 3, 4), branches="none", level_attention=False)
    params = random_params(plain, (1, 8, 8, 3))
    theirs = {}
    for level in (1, 2, 3):
        theirs[f"encoder_{level}"] = params[f"encoder_{level}"]
        theirs[f"decoder_{level}"] = {**params[f"decoder_{level}"], "ending": params[f"ending_{level}"]}
    # DMPHN returns what the last level decodes, shifted; SAPHN adds it to the image.
    expected = jax.jit(DMPHN(widths=(2, 3, 4)).apply)({"params": theirs}, images) - 0.5 + images
    result = jax.jit(plain.apply)({"params": params}, images)
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


def test_fresh_level_attention_changes_nothing(images):
    options = {**SMALL, "branches": "none"}
    model = SAPHN(**options)
    params = model.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct(images.shape, jnp.float32))["params"]
    scales = {name for name in params if name.startswith("level_")}
    assert scales == {"level_attention_1", "level_attention_2", "level_scale_1", "level_scale_2"}
    without = {name: leaf for name, leaf in params.items() if name not in scales}
    result = jax.jit(SAPHN(**options, level_attention=False).apply)({"params": without}, images)
    np.testing.assert_array_equal(jax.jit(model.apply)({"params": params}, images), result)


def test_decoders_attend_to_the_encoder_or_to_themselves(images, random_params):
    options = {**SMALL, "branches": "attention"}
    params = random_params(SAPHN(**options), (1, 8, 8, 3))
    cross, own = (
        jax.jit(SAPHN(**options, decoder_attention=way).apply)({"params": params}, images) for way in ("cross", "self")
    )
    assert np.abs(cross - own).max() > 1e-3 * np.abs(own).max()


def test_lower_levels_are_supervised_if_asked_for(images, random_params):
    plain = SAPHN(levels=(1, 2), widths=(2, 2, 2), blocks=1, branches="none", level_attention=False)
    params = random_params(plain, (1, 8, 8, 3))
    targets, keys = jnp.full(images.shape, 0.5), jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def losses(params):
        variables = {"params": params}
        (*lower, restored), _ = plain.apply(variables, images, method="outputs")
        expected = l1(restored, targets), l1(restored, targets) + 0.3 * sum(l1(image, targets) for image in lower)
        computed = (
            plain.clone(level_weight=weight).apply(
                variables, images, targets, keys, jnp.float32(0), l1, method="training_loss"
            )[0]
            for weight in (0.0, 0.3)
        )
        return expected, tuple(computed)

    expected, computed = losses(params)
    np.testing.assert_allclose(computed, expected, rtol=1e-6)


def test_tiles_change_its_result_if_it_attends_or_cuts_patches():
    assert SAPHN().global_statistics
    assert SAPHN((1,)).global_statistics
    assert SAPHN(branches="none").global_statistics
    assert not SAPHN((1,), branches="filter").global_statistics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (1, 3)}, "start at 1 and double"),
        ({"widths": (32, 64)}, "three widths"),
        ({"blocks": 0}, "blocks of at least 1, not .* and 0"),
        ({"branches": "atention"}, "unknown branches 'atention' .did you mean 'attention'"),
        ({"decoder_attention": "none"}, "unknown decoder_attention 'none'"),
        ({"level_weight": -1.0}, "level_weight must be 0 or more, not -1.0"),
        ({"level_weight": float("nan")}, "level_weight must be 0 or more, not nan"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        SAPHN(**options)
