from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.errors import UserError
from gamax.evaluation.restorer import Restorer, _tile_weights, apply_network
from gamax.models.gama_ir import GAMAIR


class Line(nn.Module):
    """`slope * image + offset`, exactly."""

    slope: float = 1.0
    offset: float = 0.0
    size_multiple: int = 1
    input_channels: int = 3
    dtype: type = np.float32

    def __call__(self, images):
        return self.slope * images + self.offset


# Sees 8 pixels around each: 3x3 filters in intro, ending and two blocks, and one in the block at half resolution, whose
# pixels are two wide.
LOCAL = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1, mixer="none")
GLOBAL = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1, mixer="gama")


@pytest.fixture(scope="module")
def local(random_params):
    return random_params(LOCAL, (1, 8, 8, 3))


def picture(*shape: int, dtype: type = np.float32) -> np.ndarray:
    values = np.random.default_rng(0).random((*shape, 3))
    white = 1 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    return (values * white).astype(dtype)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (64, 16), (64, 0), (96, 48), (8, 2)])
@pytest.mark.parametrize("extra", [2, 10, 62, 64, 150])
def test_the_weights_of_all_tiles_add_up_to_one(tile, overlap, extra):
    size, total = tile + extra, np.zeros(tile + extra)
    weights = _tile_weights(size, tile, overlap)
    for start, weight in weights.items():
        assert weight.shape == (tile,)
        assert weight.min() > 0
        total[start : start + tile] += weight
    # Each of up to three weights is rounded to float32.
    np.testing.assert_allclose(total, 1, atol=3 * 2**-25)
    assert min(weights) == 0
    assert max(weights) == size - tile
    assert all(b - a <= tile - overlap for a, b in zip(sorted(weights), sorted(weights)[1:], strict=False))


@pytest.mark.parametrize("size", [(65, 64), (97, 133), (131, 70), (64, 201)])
def test_tiles_equal_the_whole_image_for_a_local_network(size, local):
    image = picture(*size)
    whole, tiled = Restorer(LOCAL, local)(image), Restorer(LOCAL, local, tile=64, overlap=32)(image)
    assert tiled.shape == image.shape
    # The ends of a tile, which see zeros beyond it, keep a weight of one millionth.
    np.testing.assert_allclose(tiled, whole, atol=1e-5 * abs(whole).max())


@pytest.mark.parametrize("size", [(40, 150), (150, 40), (9, 100), (20, 101)])
def test_tiles_equal_the_whole_image_also_where_a_side_is_shorter_than_a_tile(size, local):
    image = picture(*size)
    whole, tiled = Restorer(LOCAL, local)(image), Restorer(LOCAL, local, tile=64, overlap=32)(image)
    np.testing.assert_allclose(tiled, whole, atol=1e-5 * abs(whole).max())


def test_an_image_of_one_tile_or_less_is_restored_whole(random_params):
    params, image = random_params(GLOBAL, (1, 8, 8, 3)), picture(31, 32)
    np.testing.assert_array_equal(Restorer(GLOBAL, params, tile=32, overlap=16)(image), Restorer(GLOBAL, params)(image))


def test_whole_images_give_the_networks_own_result(random_params):
    params, image = random_params(GLOBAL, (1, 8, 8, 3)), picture(31, 22)
    expected = GLOBAL.apply({"params": params}, jnp.asarray(image)[None])[0]
    # The program and the single operations round differently.
    np.testing.assert_allclose(Restorer(GLOBAL, params)(image), expected, atol=1e-5)


def test_tiles_change_the_result_of_a_network_with_global_statistics(random_params):
    params, image = random_params(GLOBAL, (1, 8, 8, 3)), picture(40, 44)
    tiled = Restorer(GLOBAL, params, tile=32, overlap=16)(image)
    assert abs(tiled - Restorer(GLOBAL, params)(image)).max() > 1e-3


@pytest.mark.parametrize(("tile", "programs"), [(32, 1), (None, 4)])
def test_many_sizes_are_one_compilation_in_tiles_and_one_each_whole(tile, programs):
    sizes = [(33, 40), (70, 35), (64, 64), (91, 33)]
    before = apply_network._cache_size()
    for size in (*sizes, *sizes):
        # A new restorer shares the programs of the others with an equal network; no other test has this one.
        Restorer(Line(offset=0.125), {}, tile=tile)(picture(*size))
    assert apply_network._cache_size() - before == programs


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
def test_integers_keep_their_type_and_floats_become_float32(dtype, tile):
    image = picture(20, 33, dtype=dtype)
    result = Restorer(Line(), {}, tile=tile, overlap=4)(image)
    assert result.dtype == (dtype if np.issubdtype(dtype, np.integer) else np.float32)
    # Blended tiles add up to one within a rounding of float32.
    np.testing.assert_allclose(result, image.astype(result.dtype), rtol=3e-7 if tile else 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_rounded_and_clamped(dtype):
    white = np.iinfo(dtype).max
    image = np.array([[[10, 20, 30]] * 2] * 2, dtype)
    # 0.6 of a step above, then far below black and far above white.
    np.testing.assert_array_equal(Restorer(Line(offset=0.6 / white), {})(image), image + 1)
    np.testing.assert_array_equal(Restorer(Line(offset=-2.0), {})(image), np.zeros_like(image))
    np.testing.assert_array_equal(Restorer(Line(offset=2.0), {})(image), np.full_like(image, white))


def test_floats_are_not_clipped():
    image = picture(6, 6)
    assert Restorer(Line(slope=3.0, offset=-1.0), {})(image).max() > 1
    assert Restorer(Line(slope=3.0, offset=-1.0), {})(image).min() < 0


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_input_stays_as_it_was_and_the_result_is_writable(dtype, tile):
    image = picture(20, 33, dtype=dtype)
    before = image.copy()
    result = Restorer(Line(slope=0.5), {}, tile=tile, overlap=4)(image)
    result += 1
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 1, 3), (0, 4, 3)])
def test_an_image_that_is_too_small_is_named(shape):
    with pytest.raises(UserError, match=f"{shape[1]}x{shape[0]} pixels is too small"):
        Restorer(Line(), {})(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (33, 16, "tile must be a multiple of 2, not 33"),
        (32, 15, "overlap must be a multiple of 2 .* not 15"),
        (32, 18, "from 0 to half the tile of 32, not 18"),
        (32, -2, "from 0 to half the tile of 32, not -2"),
        (0, 0, "tile"),
        (-32, 0, "tile"),
    ],
)
def test_tiles_that_cannot_work_are_named(tile, overlap, message, local):
    with pytest.raises(UserError, match=message):
        Restorer(LOCAL, local, tile=tile, overlap=overlap)


def test_images_must_have_the_channels_of_the_network():
    with pytest.raises(
        UserError, match=r"this Line takes images \[H, W, 3\] or \[H, W, 1\], .* not uint8 of shape \[4, 5, 6\]"
    ):
        Restorer(Line(), {})(np.zeros((4, 5, 6), np.uint8))
    with pytest.raises(UserError, match=r"this Line takes images \[H, W, 6\], .* not uint8 of shape \[4, 5, 3\]"):
        Restorer(Line(input_channels=6), {})(np.zeros((4, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ("multiple", "tile", "overlap"), [(1, 512, 96), (64, 512, 64), (32, 64, 0), (256, 512, 256), (256, 256, 0)]
)
def test_default_overlaps_suit_the_network(multiple, tile, overlap):
    assert Restorer(Line(size_multiple=multiple), {}, tile=tile).settings()["overlap"] == overlap
