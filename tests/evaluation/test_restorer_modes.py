"""Self-ensemble, rows over devices, gray and dual-pixel images, padding: each against its plain definition."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamax.blocks import Conv, pad_to_multiple, pixel_shuffle, pixel_unshuffle
from gamax.blocks.convolution import conv
from gamax.errors import UserError
from gamax.evaluation.restorer import Restorer, apply_network, mean_over_symmetries, pad_image
from gamax.interop.weights import save_weights
from gamax.models import create_model
from gamax.models.gama_ir import GAMAIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer
from gamax.training.program import collectives

# Sees 8 pixels around each; see test_restorer.py.
LOCAL = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1, mixer="none")
NETWORKS = {
    "gama_ir": GAMAIR(width=4, depth=5, levels=2, blocks_per_level=1),
    "nafnet": NAFNet(width=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1), middle_blocks=1),
    "restormer": Restormer(width=8, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2)),
}


SMALL: dict[str, dict[str, Any]] = {
    "gama_ir_tiny": {"width": 4, "depth": 3, "levels": 1},
    "nafnet_sidd_w32": {"width": 4, "encoder_blocks": (1,), "middle_blocks": 1, "decoder_blocks": (1,)},
    "restormer": {"width": 4, "blocks": (1, 0, 0, 1), "refinement_blocks": 0, "heads": (1, 2, 2, 4)},
    "unet": {"width": 2},
    "dmphn_1_2_4": {"widths": (2, 2, 2)},
    "saphn": {"widths": (2, 2, 2), "blocks": 1, "kernel_size": 1, "max_offset": 1},
    "lir": {"width": 16, "encoder_blocks": (1, 0), "middle_blocks": 0, "decoder_blocks": (0, 0)},
    "swintormer": {"width": 8, "blocks": (2, 0, 0, 1), "refinement_blocks": 0, "window_size": 2, "heads": (1, 2, 2, 2)},
}


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.fixture(scope="module")
def params(random_params) -> dict[str, Any]:
    networks = {**NETWORKS, "local": LOCAL}
    return {name: random_params(network, (1, 16, 16, 3)) for name, network in networks.items()}


def relative_difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max() / np.abs(second).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_over_eight_devices_give_the_result_of_one(name, params):
    # Neither side can be divided by eight, nor by the multiple of the network.
    image = picture(101, 45, 3)
    one, eight = (Restorer(NETWORKS[name], params[name], rows=rows)(image) for rows in (1, 8))
    assert relative_difference(eight, one) < 1e-5


def test_rows_work_with_the_self_ensemble(params):
    image = picture(33, 41, 3)
    one, eight = (Restorer(LOCAL, params["local"], self_ensemble=True, rows=rows)(image) for rows in (1, 8))
    assert relative_difference(eight, one) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_exchange_no_features_but_halos_and_sums(name, params):
    restorer, images = Restorer(NETWORKS[name], params[name], rows=8), picture(1, 512, 64, 3)
    program = apply_network.lower(restorer.model, params[name], images, mesh=restorer._mesh).compile()
    exchanges = collectives(program.as_text())
    # What is put together whole is the result alone.
    assert exchanges.pop("all-gather") == (1, images.nbytes)
    assert set(exchanges) == {"all-reduce", "collective-permute"}


@pytest.mark.parametrize("rows", [0, 9, -1])
def test_rows_need_as_many_devices(rows, params):
    with pytest.raises(UserError, match=rf"rows must be from 1 to the 8 device\(s\), not {rows}"):
        Restorer(LOCAL, params["local"], rows=rows)


def test_rows_are_for_whole_images(params):
    with pytest.raises(UserError, match="tile and rows exclude each other"):
        Restorer(LOCAL, params["local"], tile=64, rows=2)


def symmetries(image: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(flipped, turns) for flipped in (image, image[::-1]) for turns in range(4)]


def undo(images: list[np.ndarray]) -> list[np.ndarray]:
    turned = [np.rot90(image, -(index % 4)) for index, image in enumerate(images)]
    return [*turned[:4], *(image[::-1] for image in turned[4:])]


@pytest.mark.parametrize("tile", [None, 32])
def test_the_self_ensemble_is_the_mean_over_eight_flips_and_turns(tile, params):
    image = picture(20, 31, 3)
    restore = Restorer(LOCAL, params["local"])
    expected = np.mean(undo([restore(np.ascontiguousarray(variant)) for variant in symmetries(image)]), 0)
    ensemble = Restorer(LOCAL, params["local"], self_ensemble=True, tile=tile)(image)
    assert relative_difference(ensemble, expected) < 1e-5
    assert relative_difference(restore(image), expected) > 1e-3


@settings(max_examples=8)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 9))
def test_the_self_ensemble_of_an_equivariant_function_is_that_function(height, width, seed):
    values = jax.random.uniform(jax.random.key(seed), (1, height, width, 2))
    # A kernel that flips and turns into itself, and a function of single pixels.
    kernel = jnp.tile(jnp.array([[1.0, 2, 1], [2, 5, 2], [1, 2, 1]])[:, :, None, None] / 17, (1, 1, 2, 2))

    def equivariant(images: jax.Array) -> jax.Array:
        return jnp.sin(3 * conv(images, kernel)) + images.mean((1, 2), keepdims=True)

    np.testing.assert_allclose(mean_over_symmetries(equivariant, values), equivariant(values), atol=2e-6)


@settings(max_examples=8)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 7))
def test_the_self_ensemble_of_any_function_is_equivariant(height, width, which):
    values = np.random.default_rng(which).random((height, width, 2), np.float32)

    def ensemble(image: np.ndarray) -> np.ndarray:
        def lopsided(images: jax.Array) -> jax.Array:
            return jnp.cumsum(images, 1) * jnp.arange(images.shape[2])[:, None]

        return np.asarray(mean_over_symmetries(lopsided, jnp.asarray(image)[None])[0])

    first, second = (symmetries(item)[which] for item in (values, ensemble(values)))
    np.testing.assert_allclose(ensemble(np.ascontiguousarray(first)), second, rtol=1e-5)


class Neighbours(nn.Module):
    """Sees 5 pixels around each, in the phase of its two pixels wide steps; quick to compile."""

    size_multiple: int = 2
    input_channels: int = 3
    dtype: type = np.float32

    @nn.compact
    def __call__(self, images):
        x = pad_to_multiple(images, 2)
        inner = pixel_shuffle(Conv(12, 3)(pixel_unshuffle(jnp.tanh(Conv(3, 3)(x)), 2)), 2)
        return (x + inner)[:, : images.shape[1], : images.shape[2]]


@pytest.fixture(scope="module")
def neighbours(random_params) -> Any:
    return random_params(Neighbours(), (1, 8, 8, 3))


@settings(max_examples=25)
@given(st.integers(2, 90), st.integers(2, 90))
def test_tiles_with_full_overlap_equal_the_whole_image(neighbours, height, width):
    image = picture(height, width, 3)
    # A quarter of the overlap is discarded: 6 pixels, more than the network sees.
    tiled = Restorer(Neighbours(), neighbours, tile=48, overlap=24)(image)
    assert relative_difference(tiled, Restorer(Neighbours(), neighbours)(image)) < 1e-5


@settings(max_examples=25)
@given(st.integers(12, 50), st.integers(12, 50), st.integers(0, 60), st.integers(0, 60))
def test_padding_never_changes_the_interior_of_a_local_network(neighbours, height, width, below, beside):
    image, restorer = picture(height, width, 3), Restorer(Neighbours(), neighbours)
    (padded,) = restorer.start([image], (height + below, width + beside))()
    # With what one more row or column rounds up to, the border changes 6 pixels at most.
    inside = np.s_[: height - 6 * (below > 0), : width - 6 * (beside > 0)]
    np.testing.assert_allclose(padded[inside], restorer(image)[inside], atol=1e-5)


@pytest.mark.parametrize("size", [(21, 15), (37, 70)])
@pytest.mark.parametrize("name", SMALL)
def test_padding_as_the_network_pads_changes_nothing(name, size, random_params):
    """So that images whose sides are padded to the same ones share a program and no pixel changes."""
    network = create_model(name, **SMALL[name])
    # Small, so that noise stays an image through networks without norms.
    params = jax.tree.map(lambda leaf: 0.3 * leaf, random_params(network, (1, 64, 64, 3)))
    restorer, image = Restorer(network, params), picture(*size, 3)
    (padded,) = restorer.start([image], restorer.padded_size(size))()
    assert relative_difference(padded, restorer(image)) < 1e-6


def test_further_padding_reflects_as_often_as_needed():
    image = np.arange(6.0, dtype=np.float32).reshape(2, 3, 1)
    padded = pad_image(image, (5, 8), LOCAL)[..., 0]
    np.testing.assert_array_equal(padded[0], [0, 1, 2, 1, 0, 1, 2, 1])
    np.testing.assert_array_equal(padded[:, 0], [0, 3, 0, 3, 0])


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_gray_images_go_through_rgb_networks_three_times(dtype, tile, params):
    gray = (picture(20, 37, 1) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    restored = Restorer(LOCAL, params["local"], tile=tile)(gray)
    floats = gray.astype(np.float32) / (255 if dtype == np.uint8 else 1)
    expected = Restorer(LOCAL, params["local"], tile=tile)(np.repeat(floats, 3, 2)).mean(2, keepdims=True)
    assert restored.shape == gray.shape
    assert restored.dtype == dtype
    if dtype == np.uint8:
        np.testing.assert_array_equal(restored, np.rint(np.clip(expected, 0, 1) * 255).astype(np.uint8))
    else:
        np.testing.assert_allclose(restored, expected, atol=1e-6)


@pytest.mark.parametrize("tile", [None, 16])
def test_networks_for_two_views_and_for_gray_images_take_these(tile, random_params):
    for channels, options in ((6, {"dual_pixel": True}), (1, {"image_channels": 1})):
        network = Restormer(width=8, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 1, 1), **options)
        weights = random_params(network, (1, 8, 8, channels))
        restored = Restorer(network, weights, tile=tile, overlap=8 if tile else None)(picture(16, 24, channels))
        assert restored.shape == (16, 24, 3 if channels == 6 else 1)


def test_an_output_that_is_not_finite_is_no_image():
    network = Neighbours()
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, jnp.nan), network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    )
    with pytest.raises(UserError, match="output is not finite"):
        Restorer(network, params)(np.zeros((8, 8, 3), np.uint8))
    assert np.isnan(Restorer(network, params)(np.zeros((8, 8, 3), np.float32))).any()
    with pytest.raises(UserError, match="values up to nan"):
        Restorer(network, params)(np.full((8, 8, 3), np.nan, np.float32))


def test_settings_name_everything_that_the_result_depends_on(params):
    settings = Restorer(NAFNet(local_window=384), {}, self_ensemble=True, rows=2).settings()
    assert settings == {
        "dtype": "float32",
        "matmul_precision": "highest",
        "padding": "right and bottom to a multiple of 16, with zeros",
        "tile": None,
        "overlap": None,
        "local_window": 384,
        "self_ensemble": True,
        "rows": 2,
    }
    assert Restorer(LOCAL, params["local"]).settings()["padding"] == "right and bottom to a multiple of 2, reflected"


def test_a_local_window_is_asked_for_or_turned_off(tmp_path, random_params):
    network = create_model("unet", width=2)
    save_weights(tmp_path / "unet.safetensors", random_params(network, (1, 64, 64, 3)), "unet", {"width": 2})
    # It has none to turn off.
    assert Restorer.from_weights(tmp_path / "unet.safetensors", local_window=0).settings()["local_window"] is None
    with pytest.raises(UserError, match="UNet has no local_window"):
        Restorer.from_weights(tmp_path / "unet.safetensors", local_window=384)
