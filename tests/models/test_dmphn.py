from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from gamax.benchmark.cost import model_multiply_adds
from gamax.blocks.residual import ResidualDecoder, ResidualEncoder
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.interop.torch_weights import export_tensors
from gamax.models import abstract_params, count_parameters
from gamax.models.dmphn import DMPHN

WIDTHS = (2, 3, 4)


def test_it_reproduces_the_official_network(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/dmphn/dmphn_1_2_4_narrow.safetensors")
    official.check(DMPHN(widths=tuple(config["channels"])), tensors, 1e-4)


@pytest.mark.parametrize(
    ("levels", "parameters", "giga"), [((1, 2, 4), 5_424_393, 48.859447), ((1, 2, 4, 8), 7_232_524, 65.145930)]
)
def test_it_has_the_published_size_and_cost(levels, parameters, giga):
    model = DMPHN(levels)
    params = abstract_params(model)
    assert count_parameters(params) == parameters
    counted = model_multiply_adds(model, params, 256, 256) / 1e9
    assert counted == pytest.approx(giga, abs=1e-6)


def test_four_levels_follow_the_paper_patch_by_patch(random_params):
    model = DMPHN((1, 2, 4, 8), WIDTHS)
    params = random_params(model, (1, 16, 8, 3))
    # Wider by 8 than a multiple of 16, which the network takes without padding.
    image = np.random.default_rng(0).random((1, 32, 24, 3)).astype(np.float32)

    def encode(patch: jax.Array, level: int) -> jax.Array:
        return jax.jit(ResidualEncoder(WIDTHS).apply)({"params": params[f"encoder_{level}"]}, patch)

    def decode(features: jax.Array, level: int) -> jax.Array:
        return jax.jit(ResidualDecoder(3, WIDTHS).apply)({"params": params[f"decoder_{level}"]}, features)

    whole = image - 0.5
    top, bottom = np.split(whole, 2, 1)
    quarters = [*np.split(top, 2, 2), *np.split(bottom, 2, 2)]

    eighth_features = [[encode(half, 4) for half in np.split(quarter, 2, 1)] for quarter in quarters]
    below = [jnp.concatenate(pair, 1) for pair in eighth_features]
    residuals = [decode(features, 4) for features in below]

    features = [encode(quarter + residual, 3) for quarter, residual in zip(quarters, residuals, strict=True)]
    below = [
        jnp.concatenate(features[first : first + 2], 2) + jnp.concatenate(below[first : first + 2], 2)
        for first in (0, 2)
    ]
    residuals = [decode(features, 3) for features in below]

    features = [encode(half + residual, 2) for half, residual in zip((top, bottom), residuals, strict=True)]
    features = jnp.concatenate(features, 1) + jnp.concatenate(below, 1)
    expected = decode(encode(whole + decode(features, 2), 1) + features, 1) + 0.5

    result = jax.jit(model.apply)({"params": params}, image)
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(("levels", "size"), [(1, (4, 4)), (2, (8, 4)), (3, (8, 8)), (4, (16, 8)), (5, (16, 16))])
def test_it_pads_to_the_smallest_sizes_that_can_be_cut(levels, size, random_params):
    model = DMPHN(tuple(2**level for level in range(levels)), WIDTHS)
    params = random_params(model, (1, 8, 8, 3))
    images = np.random.default_rng(0).random((2, 2 * size[0] - 1, 2 * size[1] - 1, 3)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="reflect")
    result, whole = (jax.jit(model.apply)({"params": params}, x) for x in (images, padded))
    np.testing.assert_array_equal(result, whole[:, :-1, :-1])
    assert model.size_multiple == size[0]


def test_images_of_a_batch_do_not_mix(random_params):
    model = DMPHN((1, 2, 4, 8), WIDTHS)
    params = random_params(model, (1, 16, 8, 3))
    images = jnp.asarray(np.random.default_rng(0).random((3, 16, 16, 3)), jnp.float32)
    together = jax.jit(model.apply)({"params": params}, images)
    alone = jax.jit(model.apply)({"params": params}, images[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5 * abs(alone).max())


def test_its_tensors_have_the_names_and_shapes_of_the_authors():
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(DMPHN((1, 2, 4, 8))))
    shapes = {name: value.shape for name, value in export_tensors(params, key_map(DMPHN((1, 2, 4, 8)))).items()}
    expected = {"encoder.layer1": (32, 3, 3, 3), "encoder.layer5": (64, 32, 3, 3), "encoder.layer9": (128, 64, 3, 3)}
    expected |= {"decoder.layer16": (128, 64, 4, 4), "decoder.layer20": (64, 32, 4, 4)}
    expected |= {"decoder.layer24": (3, 32, 3, 3)}
    blocks = {"encoder": {2: 32, 6: 64, 10: 128}, "decoder": {13: 128, 17: 64, 21: 32}}
    for part, layers in blocks.items():
        for first, width in layers.items():
            for layer in (first, first + 1):
                expected |= {f"{part}.layer{layer}.{index}": (width, width, 3, 3) for index in (0, 2)}
    assert len(shapes) == 4 * 60
    for level in range(1, 5):
        for name, shape in expected.items():
            part, layer = name.split(".", 1)
            key = f"{part}_lv{level}.{layer}"
            assert shapes[f"{key}.weight"] == shape
            # Transposed convolutions have their outputs second.
            outputs = shape[1] if layer in ("layer16", "layer20") else shape[0]
            assert shapes[f"{key}.bias"] == (outputs,)


def test_tiles_change_its_result_if_it_cuts_patches():
    assert DMPHN().global_statistics
    assert not DMPHN((1,)).global_statistics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": ()}, r"start at 1 and double, such as 1,2,4, not \(\)"),
        ({"levels": (1, 2, 3)}, r"start at 1 and double, such as 1,2,4, not \(1, 2, 3\)"),
        ({"levels": (2, 4)}, "start at 1 and double"),
        ({"widths": (32, 64)}, r"three widths of at least 1, not \(32, 64\)"),
        ({"widths": ()}, "three widths"),
        ({"widths": (8, 0, 8)}, "three widths of at least 1"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        DMPHN(**options)
