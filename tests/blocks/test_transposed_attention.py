from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import Conv, TransposedAttention
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


def test_its_gradients_are_those_of_normalised_vectors(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 8)), jnp.float32)
    attention = TransposedAttention(2)
    params = random_params(attention, x.shape)

    def textbook(params: Any, x: jax.Array) -> jax.Array:
        qkv = Conv(24, 3, depthwise=True, use_bias=False).apply(
            {"params": params["qkv_spatial"]}, x @ params["qkv"]["kernel"][0, 0]
        )
        query, key, value = (part.reshape(2, 30, 2, 4) for part in jnp.split(qkv, 3, -1))
        query, key = (part / jnp.linalg.norm(part, axis=1, keepdims=True) for part in (query, key))
        cosines = jnp.einsum("bphc,bphd->bhcd", query, key)
        weights = jax.nn.softmax(cosines * params["temperature"][:, None, None])
        attended = jnp.einsum("bhcd,bphd->bphc", weights, value).reshape(x.shape)
        return attended @ params["project"]["kernel"][0, 0]

    def gradients(function: Callable[[Any, jax.Array], jax.Array]) -> Any:
        return jax.jit(jax.grad(lambda params, x: jnp.sin(function(params, x)).sum(), (0, 1)))(params, x)

    actual = gradients(lambda params, x: attention.apply({"params": params}, x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, gradients(textbook))
