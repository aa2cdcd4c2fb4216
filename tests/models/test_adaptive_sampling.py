"""Adaptive sampling on a tiny network: what is chosen and refined, the loss with its gradients, and that it learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gamax.blocks import Conv
from gamax.blocks.adaptive_sampling import (
    PixelRefiner,
    SamplingPolicy,
    draw_log_probs,
    gumbel_top_k,
    normalized_entropy,
)
from gamax.errors import UserError
from gamax.models.adaptive_sampling import AdaptiveSampling
from gamax.training.program import collectives
from gamax.training.sharding import batch_sharding, make_mesh, split_rows

# Halves the time to compile.
FAST = {"xla_backend_optimization_level": 0}


class Tiny(nn.Module):
    """Two convolutions and a residual, after a coarse output that is half of the image."""

    level_weight: float = 0.0

    @property
    def size_multiple(self) -> int:
        return 4

    @property
    def input_channels(self) -> int:
        return 3

    @nn.compact
    def outputs(self, images: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        features = nn.relu(Conv(8, 3, name="intro")(images))
        return [0.5 * images, images + 0.1 * Conv(3, 3, name="ending")(features)], features

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.outputs(images)[0][-1]


class FixedReward(AdaptiveSampling):
    """Rewards are the errors before, so that a test can know them."""

    def reward(self, before: jax.Array, after: jax.Array) -> jax.Array:
        return before


class PermutedReward(AdaptiveSampling):
    """Every draw gets the reward of another one, in the order that is given as a variable."""

    def reward(self, before: jax.Array, after: jax.Array) -> jax.Array:
        return super().reward(before, after)[:, self.get_variable("test", "order")]


def l1(restored: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.abs(restored - targets).mean()


@pytest.fixture(scope="module")
def images() -> tuple[jax.Array, jax.Array]:
    """Four degraded images and their targets."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.random((4, 8, 6, 3)), jnp.float32) for _ in range(2))


@pytest.fixture(scope="module")
def params(random_params) -> Any:
    return random_params(AdaptiveSampling(Tiny()), (1, 8, 6, 3))


KEYS = jax.random.split(jax.random.key(3), 4)


def test_it_has_a_policy_head_only_if_the_policy_is_learned(params, random_params):
    assert set(params) == {"network", "policy_head", "refiner"}
    assert set(random_params(AdaptiveSampling(Tiny(), policy="uniform"), (1, 8, 6, 3))) == {"network", "refiner"}


def test_it_takes_the_sizes_of_its_network_but_no_padding():
    model = AdaptiveSampling(Tiny())
    assert (model.size_multiple, model.input_channels, model.global_statistics) == (4, 3, True)
    assert model.padded_size(13, 7) == (13, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": nn.Dense(3)}, "a method 'outputs', which Dense has not"),
        ({"policy": "lerned"}, "unknown policy 'lerned' .*'learned'"),
        ({"baseline": "meen"}, "unknown baseline 'meen' .*'mean'"),
        ({"stages": 0}, "at least one stage, not 0"),
        ({"ratio": 0.0}, "above 0 and at most 1, not 0.0"),
        ({"ratio": 1.5}, "above 0 and at most 1, not 1.5"),
        ({"start": 1.0}, "from 0 to below 1, not 1.0"),
        ({"policy_weight": -1.0}, "must be 0 or more, not -1.0 and 0.001"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        AdaptiveSampling(**{"network": Tiny(), **options})


def test_a_fresh_one_restores_what_its_network_does(images):
    model = AdaptiveSampling(Tiny())
    params = jax.jit(model.init)(jax.random.key(0), images[0])["params"]
    expected = jax.jit(Tiny().apply)({"params": params["network"]}, images[0])
    np.testing.assert_array_equal(jax.jit(model.apply)({"params": params}, images[0]), expected)


def test_the_pixels_of_the_largest_logits_are_refined_and_no_others(images, params):
    # 5 of 48 pixels.
    model = AdaptiveSampling(Tiny(), ratio=1 / 9)
    apply = jax.jit(partial(model.apply, method="outputs", mutable="intermediates"))
    ((_, *estimates), features), sown = apply({"params": params}, images[0])
    assert features.shape == (4, 8, 6, 8)
    sown = sown["intermediates"]
    (_, before), known = Tiny().apply({"params": params["network"]}, images[0], method="outputs")
    np.testing.assert_allclose(estimates[0], before, atol=1e-6)
    assert len(estimates) == 1 + 2
    for stage, (chosen, logits) in enumerate(zip(sown["chosen"], sown["logits"], strict=True)):
        before, after = estimates[stage], estimates[stage + 1]
        known = jnp.asarray(known)
        expected = SamplingPolicy().apply({"params": params["policy_head"]}, known, before, images[0])
        np.testing.assert_allclose(logits, expected, atol=1e-4 * abs(expected).max())
        np.testing.assert_array_equal(chosen, np.argsort(-np.asarray(logits).reshape(4, -1))[:, :5])

        padded = np.pad(before, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        places = [[(index, *divmod(int(place), 6)) for place in row] for index, row in enumerate(chosen)]
        colours = [
            [np.append(padded[b, i : i + 3, j : j + 3].ravel(), images[0][b, i, j]) for b, i, j in row]
            for row in places
        ]
        at_places = jnp.stack([jnp.stack([known[place] for place in row]) for row in places])
        changes = PixelRefiner().apply({"params": params["refiner"]}, at_places, jnp.asarray(colours))
        expected, known = np.array(before), np.array(known)
        for row, colour_row, feature_row in zip(places, *changes, strict=True):
            for place, colour, feature in zip(row, colour_row, feature_row, strict=True):
                expected[place] += colour
                known[place] += feature
        np.testing.assert_allclose(after, expected, atol=1e-4 * abs(expected).max())
        untouched = (expected == np.asarray(before)).all(-1)
        assert untouched.sum() == 4 * (48 - 5)
        np.testing.assert_array_equal(after[untouched], before[untouched])
    np.testing.assert_allclose(features, known, atol=1e-4 * abs(known).max())


def test_the_uniform_policy_takes_other_places_in_every_stage_but_always_the_same(images, params):
    model = AdaptiveSampling(Tiny(), policy="uniform")
    apply = jax.jit(partial(model.apply, mutable="intermediates"))
    variables = {"params": {name: params[name] for name in ("network", "refiner")}}
    restored, sown = apply(variables, images[0])
    _, again = apply(variables, images[1])
    first, second = sown["intermediates"]["chosen"]
    np.testing.assert_array_equal(first, again["intermediates"]["chosen"][0])
    assert (first == first[0]).all()
    assert (first != second).any()
    assert not sown["intermediates"]["logits"][0].any()
    rounded = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images[0])
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, restored, atol=0.05 * abs(restored).max())


def test_where_all_pixels_are_refined_the_loss_is_that_of_what_it_restores(images, params):
    model = AdaptiveSampling(Tiny(level_weight=0.3), ratio=1.0, stages=1, baseline="uniform", policy_weight=0.0)
    restore = jax.jit(partial(model.apply, method="outputs", mutable="intermediates"), compiler_options=FAST)
    (outputs, _), sown = restore({"params": params}, images[0])
    losses = [l1(restored, images[1]) for restored in outputs]
    apply = jax.jit(partial(model.apply, loss=l1, method="training_loss"), compiler_options=FAST)
    total, metrics = apply({"params": params}, *images, KEYS, 0.6)
    np.testing.assert_allclose(total, 0.3 * losses[0] + (losses[1] + losses[2]) / 2, rtol=1e-5)
    assert set(metrics) == {"reward", "reward_uniform", "precision", "entropy"}
    np.testing.assert_allclose(metrics["reward"], losses[1] - losses[2], rtol=1e-4)
    np.testing.assert_allclose(metrics["reward_uniform"], losses[1] - losses[2], rtol=1e-4)
    assert metrics["precision"] == 1.0
    logits = sown["intermediates"]["logits"][0].reshape(4, -1)
    np.testing.assert_allclose(metrics["entropy"], jax.vmap(normalized_entropy)(logits).mean(), rtol=1e-5)


@pytest.mark.parametrize("baseline", ["mean", "uniform", "greedy"])
def test_advantages_are_rewards_less_the_baseline_over_their_deviation(baseline, images, params):
    model = FixedReward(Tiny(), stages=1, ratio=1 / 6, baseline=baseline, policy_weight=2.0, entropy_weight=0.5)
    apply = jax.jit(partial(model.apply, loss=lambda *_: jnp.zeros(()), method="training_loss"), compiler_options=FAST)
    total, metrics = apply({"params": params}, *images, KEYS, 1.0)

    restored, features = Tiny().apply({"params": params["network"]}, images[0], method="outputs")
    logits = SamplingPolicy().apply({"params": params["policy_head"]}, features, restored[-1], images[0])
    logits = logits.reshape(4, -1)
    errors = np.abs(restored[-1] - images[1]).mean(-1).reshape(4, -1)
    expected, hits = [], []
    for key, own_logits, error in zip(KEYS, logits, errors, strict=True):
        draw_key, baseline_key = jax.random.split(jax.random.fold_in(key, 0))
        drawn = gumbel_top_k(draw_key, own_logits, 8)
        others = {
            "mean": drawn,
            "uniform": gumbel_top_k(baseline_key, jnp.zeros(48), 8),
            "greedy": np.argsort(-np.asarray(own_logits))[:8],
        }
        advantages = (error[drawn] - error[others[baseline]].mean()) / (error[drawn].std() + 1e-6)
        policy_loss = -(advantages * draw_log_probs(own_logits, drawn)).mean()
        expected.append(policy_loss - 0.5 * normalized_entropy(own_logits))
        hits.append(len(set(drawn.tolist()) & set(np.argsort(-error)[:8].tolist())) / 8)
    np.testing.assert_allclose(total, 2.0 * np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(metrics["precision"], np.mean(hits), rtol=1e-6)


@pytest.fixture(scope="module")
def differentiated() -> Any:
    """Loss with metrics, and gradients, of parameters, a batch with keys, progress and weight of the image losses."""

    def of_batch(params: Any, images: jax.Array, targets: jax.Array, keys: jax.Array, progress: Any, scale: Any) -> Any:
        def loss(params: Any) -> Any:
            def scaled(restored: jax.Array, targets: jax.Array) -> jax.Array:
                return scale * l1(restored, targets)

            model = AdaptiveSampling(Tiny(level_weight=0.5), stages=1, baseline="uniform")
            return model.apply({"params": params}, images, targets, keys, progress, scaled, method="training_loss")

        return jax.value_and_grad(loss, has_aux=True)(params)

    return of_batch


@pytest.fixture(scope="module")
def one_device(differentiated) -> Any:
    return jax.jit(differentiated, compiler_options=FAST)


def test_image_losses_reach_network_and_refiner_and_the_policy_loss_the_policy(images, params, one_device):
    _, gradients = one_device(params, *images, KEYS, 1.0, 1.0)
    # Nothing comes after the features of the last stage, here the only one.
    assert not any(leaf.any() for leaf in gradients["refiner"].pop("features").values())
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients))
    _, policy_alone = one_device(params, *images, KEYS, 1.0, 0.0)
    assert not any(leaf.any() for name in ("network", "refiner") for leaf in jax.tree.leaves(policy_alone[name]))
    # Ten times the image losses change nothing for the policy.
    _, larger = one_device(params, *images, KEYS, 1.0, 10.0)
    for other in (policy_alone, larger):
        jax.tree.map(np.testing.assert_array_equal, other["policy_head"], gradients["policy_head"])


def test_before_the_start_the_network_alone_is_trained(images, params, one_device):
    (total, metrics), gradients = one_device(params, *images, KEYS, 0.59, 1.0)

    def alone(params: Any) -> jax.Array:
        (coarse, restored), _ = Tiny().apply({"params": params}, images[0], method="outputs")
        return l1(restored, images[1]) + 0.5 * l1(coarse, images[1])

    expected, network = jax.jit(jax.value_and_grad(alone))(params["network"])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), gradients["network"], network)
    assert not any(leaf.any() for name in ("policy_head", "refiner") for leaf in jax.tree.leaves(gradients[name]))
    (_, started), _ = one_device(params, *images, KEYS, 0.6, 1.0)
    assert metrics == dict.fromkeys(started, 0.0)
    assert started["entropy"] > 0


def close(actual: Any, desired: Any) -> None:
    def leaf_close(actual: jax.Array, desired: jax.Array) -> None:
        # A softmax does not see the bias of its logits, whose gradient is nothing but rounding.
        np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-4 * abs(np.asarray(desired)).max() + 1e-7)

    jax.tree.map(leaf_close, actual, desired)


def test_parts_of_a_batch_add_up_to_the_whole(images, params, one_device):
    whole = one_device(params, *images, KEYS, 1.0, 1.0)
    # Each half twice, so that nothing is compiled anew.
    batches = [[x[jnp.array(part)] for x in (*images, KEYS)] for part in ([0, 2, 0, 2], [1, 3, 1, 3])]
    halves = [one_device(params, *batch, 1.0, 1.0) for batch in batches]
    close(jax.tree.map(lambda first, second: (first + second) / 2, *halves), whole)


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 1, 2)])
def test_a_mesh_changes_nothing_and_whole_images_are_not_moved(shape, images, params, one_device, differentiated):
    mesh = make_mesh(shape, jax.devices()[:4])
    whole = NamedSharding(mesh, PartitionSpec())
    batch = jax.device_put((*images, KEYS), batch_sharding(mesh))

    def on_mesh(params: Any, images: jax.Array, targets: jax.Array, keys: jax.Array) -> Any:
        images, targets = split_rows(mesh, (images, targets))
        return differentiated(params, images, targets, keys, 1.0, 1.0)

    program = jax.jit(on_mesh, out_shardings=whole).lower(jax.device_put(params, whole), *batch).compile(FAST)
    close(program(jax.device_put(params, whole), *batch), one_device(params, *images, KEYS, 1.0, 1.0))
    if shape[2] == 1:
        assert set(collectives(program.as_text())) == {"all-reduce"}


SIZE = 32
DRAWS = SIZE * SIZE // 16


def quarters(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random textures with one quarter blurred, another one in each image; the textures; the quarter `[B, H W]`."""
    texture_key, quarter_key = jax.random.split(key)
    targets = jax.random.uniform(texture_key, (count, SIZE, SIZE, 3))
    blurred = sum(jnp.roll(targets, shift, 2) for shift in range(-2, 3)) / 5
    half = jnp.arange(SIZE) // (SIZE // 2)
    inside = 2 * half[:, None] + half == jax.random.randint(quarter_key, (count, 1, 1), 0, 4)
    return jnp.where(inside[..., None], blurred, targets), targets, inside.reshape(count, -1)


def shares_drawn_in_the_quarter(model: PermutedReward, orders: list[np.ndarray], steps: int, seed: int) -> list[float]:
    """For each order of rewards, the part of its draws that the trained policy has in the quarters of new images."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params: Any, state: Any, order: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        images, targets, _ = quarters(key, 8)
        keys = jax.random.split(jax.random.fold_in(key, 1), 8)

        def loss(params: Any) -> Any:
            variables = {"params": params, "test": {"order": order}}
            return model.apply(variables, images, targets, keys, 1.0, l1, method="training_loss")

        gradients, _ = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def share(params: Any) -> jax.Array:
        images, _, inside = quarters(jax.random.key(99), 16)
        _, sown = model.apply({"params": params}, images, mutable="intermediates")
        keys = jax.random.split(jax.random.key(7), 16)
        draw = jax.vmap(gumbel_top_k, (0, 0, None))
        drawn = [draw(keys, logits.reshape(16, -1), DRAWS) for logits in sown["intermediates"]["logits"]]
        return jnp.stack([jnp.take_along_axis(inside, places, 1) for places in drawn]).mean()

    fresh = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    shares = []
    for order in orders:
        params, state = fresh, optimizer.init(fresh)
        for index in range(steps):
            params, state = step(params, state, order, jax.random.fold_in(jax.random.key(seed), index))
        shares.append(float(share(params)))
    return shares


def test_the_policy_finds_the_blurred_quarter_but_not_with_shuffled_rewards():
    in_order, shuffled = np.arange(DRAWS), np.random.default_rng(0).permutation(DRAWS)
    model = PermutedReward(Tiny(), stages=1)
    learned, not_learned = shares_drawn_in_the_quarter(model, [in_order, shuffled], steps=200, seed=0)
    assert learned > 0.8
    assert not_learned < 0.45


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("baseline", ["mean", "uniform", "greedy"])
def test_the_policy_of_two_stages_learns_with_every_baseline(baseline, seed):
    model = PermutedReward(Tiny(), baseline=baseline)
    assert shares_drawn_in_the_quarter(model, [np.arange(DRAWS)], steps=200, seed=seed)[0] > 0.8
