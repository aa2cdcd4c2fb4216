from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import TransposedAttention
from gamax.errors import UserError


def by_the_formula(x: np.ndarray, params: Any, heads: int, windows: list[tuple[slice, slice]]) -> np.ndarray:
    """Channel attention in each window alone, averaged where windows overlap."""
    qkv = oracles.conv(oracles.conv(x, params["qkv"]), params["qkv_spatial"])
    total, count = np.zeros(x.shape), np.zeros((*x.shape[:3], 1))
    per_head = x.shape[-1] // heads
    for image, (rows, columns), head in itertools.product(range(len(x)), windows, range(heads)):
        of_head = slice(head * per_head, (head + 1) * per_head)
        query, key, value = (
            part[image, rows, columns, of_head].reshape(-1, per_head) for part in np.split(qkv, 3, axis=-1)
        )
        cosines = (query / np.linalg.norm(query, axis=0)).T @ (key / np.linalg.norm(key, axis=0))
        weights = np.exp(cosines * float(params["temperature"][head]))
        attended = value @ (weights / weights.sum(1, keepdims=True)).T
        total[image, rows, columns, of_head] += attended.reshape(total[image, rows, columns, of_head].shape)
    for rows, columns in windows:
        count[:, rows, columns] += 1
    return oracles.conv(total / count, params["project"])


@pytest.mark.parametrize(
    ("window", "rows", "columns"),
    [
        (None, [(0, 5)], [(0, 10)]),
        (10, [(0, 5)], [(0, 10)]),
        # Steps of at most three quarters of the window; one side may be smaller than it.
        (8, [(0, 5)], [(0, 8), (2, 10)]),
        (4, [(0, 4), (1, 5)], [(0, 4), (3, 7), (6, 10)]),
    ],
)
def test_it_equals_the_formula_whole_and_in_windows(window, rows, columns, random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 10, 4))
    params = random_params(TransposedAttention(2), x.shape)
    windows = [(slice(*row), slice(*column)) for row, column in itertools.product(rows, columns)]
    result = jax.jit(TransposedAttention(2, window).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, by_the_formula(x, params, 2, windows), atol=1e-5)


def test_attention_of_a_black_image_is_finite(random_params):
    attention, x = TransposedAttention(2), jnp.zeros((1, 4, 4, 4))
    params = random_params(attention, x.shape)
    result, gradients = jax.jit(jax.value_and_grad(lambda x: attention.apply({"params": params}, x).sum()))(x)
    assert result == 0
    assert jnp.isfinite(gradients).all()


def test_heads_that_do_not_divide_the_channels_are_named():
    with pytest.raises(UserError, match="6 channels cannot be divided among 4 heads"):
        jax.eval_shape(TransposedAttention(4).init, jax.random.key(0), jnp.zeros((1, 2, 2, 6)))
