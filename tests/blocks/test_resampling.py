from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import pad_to_multiple, pixel_shuffle, pixel_unshuffle


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_unshuffle_puts_channel_before_row_before_column_and_shuffle_undoes_it(factor, channels):
    shape = (2, 2 * factor, 5 * factor, channels)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    packed = pixel_unshuffle(jnp.asarray(x), factor)
    np.testing.assert_array_equal(packed, oracles.pixel_unshuffle(x, factor))
    np.testing.assert_array_equal(pixel_shuffle(packed, factor), x)
    np.testing.assert_array_equal(oracles.pixel_shuffle(np.asarray(packed), factor), x)


def test_the_example_of_torch_pixel_shuffle():
    # torch.nn.PixelShuffle(2)(arange(8).reshape(1, 8, 1, 1)): two channels of 2x2, each filled row by row.
    result = pixel_shuffle(jnp.arange(8).reshape(1, 1, 1, 8), 2)
    np.testing.assert_array_equal(result[0, :, :, 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(result[0, :, :, 1], [[4, 5], [6, 7]])


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="divisible by 2, not 4x5"):
        pixel_unshuffle(jnp.zeros((1, 4, 5, 3)), 2)
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        pixel_shuffle(jnp.zeros((1, 4, 4, 6)), 2)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(5, 7, "reflect", "reflect"), (16, 5, "reflect", "reflect"), (3, 6, "edge", "reflect"), (4, 1, "edge", "edge")],
)
def test_padding_reflects_and_repeats_the_edge_where_a_side_is_too_short(height, width, rows, columns):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.pad(x, [(0, 0), (0, -height % 8), (0, 0), (0, 0)], mode=rows)
    expected = np.pad(expected, [(0, 0), (0, 0), (0, -width % 8), (0, 0)], mode=columns)
    np.testing.assert_array_equal(pad_to_multiple(jnp.asarray(x), 8), expected)


def test_sides_that_fit_are_left_alone():
    x = jnp.ones((1, 8, 16, 3))
    assert pad_to_multiple(x, 8) is x
