from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.blocks import GAMA, SqueezeExcite, TransposedAttention
from gamax.blocks.pooling import window_mean
from gamax.errors import UserError


@pytest.mark.parametrize(("height", "width", "window"), [(9, 12, 4), (9, 12, 5), (9, 12, 10), (3, 40, 7), (6, 6, 1)])
def test_window_means_equal_a_loop(height, width, window):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3))
    expected = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            starts = []
            for position, side in ((row, height), (column, width)):
                size = min(window, side)
                starts.append((min(max(position - (size - 1) // 2, 0), side - size), size))
            (top, rows), (left, columns) = starts
            expected[:, row, column] = x[:, top : top + rows, left : left + columns].mean((1, 2))
    np.testing.assert_allclose(window_mean(jnp.asarray(x, jnp.float32), window), expected, atol=1e-5)


def test_a_window_as_large_as_the_image_is_the_image():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.float32)
    for window in (None, 7, 100):
        np.testing.assert_allclose(window_mean(x, window), x.mean((1, 2), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("block", [SqueezeExcite(4, 0), GAMA(7, 0), TransposedAttention(1, 0)])
def test_an_empty_window_is_named(block):
    with pytest.raises(UserError, match="a window needs at least one pixel, not 0"):
        jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
