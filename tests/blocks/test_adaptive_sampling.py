"""Drawing without replacement, its log-probabilities and the policy gradient, against enumeration of all draws."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks.adaptive_sampling import (
    PixelRefiner,
    SamplingPolicy,
    draw_log_probs,
    gumbel_top_k,
    normalized_entropy,
    policy_gradient_loss,
)
from gamax.models import count_parameters

LOGITS = np.array([0.4, -1.1, 0.9, 0.0, -0.3])
PAIRS = np.array(list(itertools.permutations(range(5), 2)))
"""All ordered draws of two of five places."""
REWARDS = np.array([0.3, -0.8, 1.0, 0.1, 0.6])
TRIALS = 40_000


def probability(logits: Any, drawn: Sequence[int], xp: Any = np) -> Any:
    """Of an ordered draw, as a product of conditional probabilities."""
    weights, left, product = xp.exp(logits), list(range(len(logits))), 1.0
    for place in drawn:
        product = product * weights[place] / sum(weights[other] for other in left)
        left.remove(place)
    return product


def rewards_of(drawn: Sequence[int]) -> np.ndarray:
    """The second draw's reward depends on the first one, as a refined pixel's does on its context."""
    first, second = drawn
    return np.array([REWARDS[first], REWARDS[second] * (1 + 0.5 * first)])


def estimate(logits: jax.Array, drawn: Any, credits: Any) -> jax.Array:
    """What one draw says of the gradient of the expected sum of rewards."""
    return -len(drawn) * jax.grad(policy_gradient_loss)(logits, jnp.asarray(drawn), jnp.asarray(credits, jnp.float32))


def expected_estimate(credits_of: Any) -> np.ndarray:
    """The mean of the estimates over all ordered pairs, by their probabilities."""
    credits = jnp.asarray([credits_of(pair) for pair in PAIRS], jnp.float32)
    each = jax.jit(jax.vmap(estimate, (None, 0, 0)))(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(PAIRS), credits)
    weights = [probability(LOGITS, pair) for pair in PAIRS]
    return np.einsum("s,sn->n", weights, np.asarray(each, np.float64))


def to_go(pair: np.ndarray) -> np.ndarray:
    return np.cumsum(rewards_of(pair)[::-1])[::-1]


def exact_gradient() -> jax.Array:
    """Of the expected sum of rewards, differentiated as it is written."""
    return jax.grad(lambda logits: sum(probability(logits, pair, jnp) * rewards_of(pair).sum() for pair in PAIRS))(
        jnp.asarray(LOGITS, jnp.float32)
    )


@pytest.fixture(scope="module")
def many_draws() -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), TRIALS)
    draw = jax.jit(jax.vmap(lambda key: gumbel_top_k(key, jnp.asarray(LOGITS, jnp.float32), 2)))
    return np.asarray(draw(keys))


def test_draws_are_distinct_and_as_frequent_as_plackett_luce_says(many_draws):
    assert (many_draws[:, 0] != many_draws[:, 1]).all()
    for pair in PAIRS:
        expected = probability(LOGITS, pair)
        deviation = np.sqrt(expected * (1 - expected) / TRIALS)
        assert abs((many_draws == pair).all(1).mean() - expected) < 4.5 * deviation


def test_all_places_can_be_drawn():
    drawn = gumbel_top_k(jax.random.key(0), jnp.zeros(7), 7)
    assert sorted(drawn.tolist()) == list(range(7))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_log_probabilities_equal_enumeration(count):
    # The last draw of all places is certain.
    drawn = [3, 0, 4, 2, 1][:count]
    probabilities = [probability(LOGITS, drawn[: index + 1]) for index in range(count)]
    expected = np.diff(np.log(probabilities), prepend=0.0)
    with jax.enable_x64(True):
        result = draw_log_probs(jnp.asarray(LOGITS), jnp.asarray(drawn))
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)
    rounded = draw_log_probs(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(drawn))
    np.testing.assert_allclose(rounded, expected, atol=1e-6)


@pytest.mark.parametrize("drawn", [[2, 0, 1], [1, 3, 0, 2]])
def test_a_dominating_logit_leaves_values_and_gradients_right(drawn):
    # In float32 the sum over all places minus that of place 2 would be zero.
    logits = np.array([0.5, -0.5, 60.0, 0.0])

    @jax.jit
    def values_and_gradient(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = jnp.asarray(drawn)
        return draw_log_probs(logits, chosen), jax.grad(lambda logits: draw_log_probs(logits, chosen).sum())(logits)

    with jax.enable_x64(True):
        expected = values_and_gradient(jnp.asarray(logits))
    result = values_and_gradient(jnp.asarray(logits, jnp.float32))
    for actual, desired in zip(result, expected, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)
    # Drawing it first is certain; what follows are draws of the other three.
    if drawn[0] == 2:
        others = [probability(logits[[0, 1, 3]], [0]), probability(logits[[1, 3]], [0])]
        np.testing.assert_allclose(result[0], [0.0, *np.log(others)], atol=1e-6)


def test_reinforce_with_rewards_to_go_is_the_exact_gradient():
    np.testing.assert_allclose(expected_estimate(to_go), exact_gradient(), atol=1e-5)


def test_reinforce_averaged_over_draws_comes_to_the_exact_gradient(many_draws):
    indices = {tuple(pair): index for index, pair in enumerate(PAIRS)}
    credits = jnp.asarray([to_go(pair) for pair in PAIRS], jnp.float32)
    each = jax.jit(jax.vmap(estimate, (None, 0, 0)))(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(PAIRS), credits)
    estimates = np.asarray(each)[[indices[tuple(pair)] for pair in many_draws]]
    standard_errors = estimates.std(0) / np.sqrt(TRIALS)
    assert (standard_errors < 0.01).all()
    assert (abs(estimates.mean(0) - exact_gradient()) < 4 * standard_errors).all()


def test_own_credit_is_the_gradient_of_each_draw_given_those_before_it():
    def expectation_of_draws(logits: jax.Array) -> jax.Array:
        # What comes before a draw is held fixed: its part of the probability has no gradient.
        total = jnp.zeros(())
        for pair in PAIRS:
            own = rewards_of(pair)
            first = probability(logits, pair[:1], jnp)
            second = probability(logits, pair, jnp) / first
            total += first * own[0] / 4 + jax.lax.stop_gradient(first) * second * own[1]
        return total

    expected = jax.grad(expectation_of_draws)(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(expected_estimate(rewards_of), expected, atol=1e-5)
    # What it leaves out is not nothing.
    assert abs(expected - exact_gradient()).max() > 0.01


def test_own_credit_of_a_single_draw_is_the_exact_gradient():
    logits = jnp.asarray(LOGITS, jnp.float32)
    exact = jax.grad(lambda logits: (jax.nn.softmax(logits) * REWARDS).sum())(logits)
    estimates = [estimate(logits, [place], REWARDS[place, None]) for place in range(5)]
    mean = sum(probability(LOGITS, [place]) * value for place, value in enumerate(estimates))
    np.testing.assert_allclose(mean, exact, atol=1e-6)


def test_no_gradient_flows_into_the_advantages():
    drawn, logits = jnp.asarray([1, 3]), jnp.asarray(LOGITS, jnp.float32)
    gradient = jax.grad(lambda advantages: policy_gradient_loss(logits, drawn, advantages))(jnp.ones(2))
    np.testing.assert_array_equal(gradient, 0)


def test_entropy_is_one_for_equal_logits_and_zero_for_a_certain_place():
    assert normalized_entropy(jnp.full(9, 3.0)) == pytest.approx(1.0, abs=1e-6)
    assert normalized_entropy(jnp.zeros(9).at[4].set(200.0)) == pytest.approx(0.0, abs=1e-6)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum()
    expected = -(probabilities * np.log(probabilities)).sum() / np.log(5)
    assert normalized_entropy(jnp.asarray(LOGITS, jnp.float32)) == pytest.approx(expected, abs=1e-6)


def test_policy_and_refiner_have_the_sizes_of_the_reconstruction():
    pixels = jnp.zeros((1, 2, 2, 3))
    policy = jax.eval_shape(SamplingPolicy().init, jax.random.key(0), jnp.zeros((1, 2, 2, 32)), pixels, pixels)
    assert count_parameters(policy["params"]) == 20_257
    refiner = jax.eval_shape(PixelRefiner().init, jax.random.key(0), jnp.zeros((1, 4, 32)), jnp.zeros((1, 4, 30)))
    assert count_parameters(refiner["params"]) == 60_771


def random_tree(module: nn.Module, *inputs: jax.Array) -> Any:
    """Parameters in which nothing is zero."""
    rng = np.random.default_rng(1)
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), abstract)


def test_the_policy_is_three_convolutions():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(2, 4, 5, channels)) for channels in (6, 3, 3)]
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs]
    params = random_tree(SamplingPolicy(hidden=4), *arrays)
    x = np.concatenate(inputs, -1)
    for name in ("first", "second"):
        x = np.maximum(oracles.conv(x, params[name]), 0)
    expected = oracles.pointwise(x, params["logit"])[..., 0]
    logits = jax.jit(SamplingPolicy(hidden=4).apply)({"params": params}, *arrays)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * abs(expected).max())


def test_no_gradient_of_the_policy_reaches_features_and_estimate():
    inputs = [jax.random.normal(jax.random.key(0), (1, 3, 3, channels)) for channels in (6, 3, 3)]
    params = random_tree(SamplingPolicy(hidden=4), *inputs)

    def total(features: jax.Array, estimate: jax.Array, images: jax.Array) -> jax.Array:
        return SamplingPolicy(hidden=4).apply({"params": params}, features, estimate, images).sum()

    of_features, of_estimate, of_images = jax.jit(jax.grad(total, (0, 1, 2)))(*inputs)
    assert not of_features.any()
    assert not of_estimate.any()
    assert of_images.any()


def refined_by_hand(features: np.ndarray, colours: np.ndarray, params: Any) -> list[np.ndarray]:
    """With the full matrix of attention between tokens, which are an image of one row."""
    x = oracles.pointwise(np.concatenate([features, colours], -1)[:, None], params["intro"])
    for index in range(2):
        block = params[f"block_{index}"]
        y = oracles.layer_norm(x, block["attention_norm"])
        key, query = (np.exp(oracles.pointwise(y, block[name])) for name in ("key", "query"))
        key, query = key / key.sum(2, keepdims=True), query / query.sum(3, keepdims=True)
        matrix = np.einsum("brnd,brmd->brnm", query, key)
        x = x + oracles.pointwise(matrix @ oracles.pointwise(y, block["value"]), block["output"])
        y = oracles.pointwise(oracles.layer_norm(x, block["mlp_norm"]), block["expand"])
        x = x + oracles.pointwise(oracles.gelu(y), block["project"])
    return [oracles.pointwise(x, params[name])[:, 0] for name in ("colours", "features")]


def test_the_refiner_equals_numpy_and_is_near_in_bfloat16():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(2, 7, channels)) for channels in (6, 5)]
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs]
    options = {"width": 8, "descriptors": 4}
    params = random_tree(PixelRefiner(**options), *arrays)
    result = jax.jit(PixelRefiner(**options).apply)({"params": params}, *arrays)
    rounded = jax.jit(PixelRefiner(**options, dtype=jnp.bfloat16).apply)({"params": params}, *arrays)
    assert [part.dtype for part in rounded] == [jnp.float32, jnp.bfloat16]
    for actual, near, expected in zip(result, rounded, refined_by_hand(*inputs, params), strict=True):
        scale = abs(expected).max()
        np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)
        np.testing.assert_allclose(near.astype(jnp.float32), expected, atol=0.05 * scale)


def test_a_fresh_refiner_changes_nothing():
    features, colours = (jax.random.normal(jax.random.key(0), (1, 5, channels)) for channels in (6, 30))
    changes, _ = PixelRefiner(width=8).init_with_output(jax.random.key(1), features, colours)
    assert not any(change.any() for change in changes)
