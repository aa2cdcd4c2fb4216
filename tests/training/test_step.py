from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.blocks import Conv
from gamax.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig
from gamax.data.degradations import GaussianNoise
from gamax.models.swintormer import Swintormer
from gamax.training.optimizer import cosine_schedule, make_optimizer
from gamax.training.sharding import batch_sharding, make_mesh
from gamax.training.state import TrainState, create_state
from gamax.training.step import make_train_step, network_keys


class Network(Conv):
    """The step does not care which network it trains; this one compiles fast."""

    input_channels: ClassVar[int] = 3


MODEL = Network(3, 3)
CONFIG = OptimizerConfig(1e-2, 1e-4, gradient_clip=1.0)
OPTIMIZER = make_optimizer(CONFIG)
NOISY = DataConfig(patch_size=8, augment=True, degradations=(GaussianNoise((10.0, 30.0)),))
PAIRED = DataConfig(dataset="paired_folder", source="pairs", patch_size=8, augment=False)


@cache
def train_step(data: DataConfig = NOISY, ema_decay: float | None = 0.9) -> Any:
    training = TrainingConfig(steps=100, loss="mse", ema_decay=ema_decay)
    return jax.jit(make_train_step(MODEL, Experiment(data=data, optimizer=CONFIG, training=training)))


def batch(*names: str) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)) for name in names or ("target",)}


@pytest.fixture(scope="module")
def state(random_params) -> TrainState:
    fresh = create_state(MODEL, OPTIMIZER, seed=0, patch_size=8, ema=True)
    params = random_params(MODEL, (1, 8, 8, 3))
    return fresh.replace(params=params, ema_params=jax.tree.map(lambda leaf: leaf + 1, params))


def assert_equal(actual: Any, desired: Any) -> None:
    def values(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    jax.tree.map(lambda a, b: np.testing.assert_array_equal(values(a), values(b)), actual, desired)


def differs(first: Any, second: Any) -> bool:
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), first, second)))


def test_the_loss_is_that_of_the_network_on_the_pairs_before_the_update(state):
    images = batch("input", "target")
    _, metrics = train_step(PAIRED)(state, images)
    inputs, targets = (np.asarray(images[name], np.float32) / 255 for name in ("input", "target"))
    restored = jax.jit(MODEL.apply)({"params": state.params}, jnp.asarray(inputs))
    assert float(metrics["loss"]) == pytest.approx(
        np.square(np.asarray(restored, np.float64) - targets).mean(), rel=1e-5
    )


def test_the_update_follows_the_gradient(state):
    images = batch("input", "target")
    inputs, targets = (jnp.asarray(images[name], jnp.float32) / 255 for name in ("input", "target"))

    def loss(params: Any) -> jax.Array:
        return jnp.square(MODEL.apply({"params": params}, inputs) - targets).mean()

    gradient = jax.jit(jax.grad(loss))(state.params)
    norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(gradient)))
    result, metrics = train_step(PAIRED)(state, images)
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    updates, _ = OPTIMIZER.update(gradient, state.opt_state, state.params)
    # The first step of Adam is the sign of the gradient times 1e-2 for all but the smallest elements.
    jax.tree.map(
        lambda new, old, update: np.testing.assert_allclose(new - old, -1e-2 * update, atol=1e-5),
        result.params,
        state.params,
        updates,
    )


def test_the_loss_falls_on_a_fixed_batch():
    state, images = create_state(MODEL, OPTIMIZER, seed=0, patch_size=8, ema=True), batch("input", "target")
    losses = []
    for _ in range(20):
        state, metrics = train_step(PAIRED)(state, images)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 20


def test_the_moving_average_follows_the_updated_parameters(state):
    result, _ = train_step()(state, batch())
    expected = jax.tree.map(lambda average, new: 0.9 * average + 0.1 * new, state.ema_params, result.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), result.ema_params, expected)


def test_without_a_moving_average_there_is_none():
    state = create_state(MODEL, OPTIMIZER, seed=0, patch_size=8, ema=False)
    assert state.ema_params is None
    assert train_step(ema_decay=None)(state, batch())[0].ema_params is None


@pytest.mark.parametrize("poison", [1e30, np.nan], ids=["overflow", "nan"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(poison, state):
    params = {**state.params, "bias": jnp.array([0, poison, 0], jnp.float32)}
    broken = state.replace(params=params, skipped=jnp.int32(4))
    result, metrics = train_step()(broken, batch())
    assert not np.isfinite(metrics["gradient_norm"])
    expected = broken.replace(step=jnp.int32(1), skipped=jnp.int32(5), skipped_total=jnp.int32(1))
    assert_equal(result, expected)
    assert (int(metrics["skipped"]), int(metrics["skipped_total"])) == (5, 1)


def test_an_overflowing_loss_is_skipped_though_its_gradient_is_zero(state):
    params = {**state.params, "bias": jnp.array([0, 3e19, 0], jnp.float32)}
    training = TrainingConfig(steps=100, loss="psnr")
    step = jax.jit(make_train_step(MODEL, Experiment(data=NOISY, optimizer=CONFIG, training=training)))
    result, metrics = step(state.replace(params=params), batch())
    assert not np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["gradient_norm"])
    assert_equal(result.params, params)
    assert int(metrics["skipped"]) == 1


def test_the_learning_rate_follows_the_step_not_the_number_of_updates(state):
    # No update was made in the 40 steps before, as if all had been skipped.
    _, metrics = train_step()(state.replace(step=jnp.int32(40)), batch())
    assert float(metrics["learning_rate"]) == pytest.approx(float(cosine_schedule(CONFIG, 100)(40)))
    assert float(metrics["learning_rate"]) < 0.7 * CONFIG.learning_rate


def test_a_finite_update_ends_the_count(state):
    result, metrics = train_step()(state.replace(skipped=jnp.int32(4)), batch())
    assert (int(result.skipped), int(metrics["skipped"]), int(result.step)) == (0, 0, 1)
    assert differs(result.params, state.params)


def test_a_step_is_a_pure_function_of_state_and_batch(state):
    assert_equal(train_step()(state, batch()), train_step()(state, batch()))


def test_noise_and_augmentation_differ_from_step_to_step_and_from_seed_to_seed(state):
    first, later, other = (
        train_step()(changed, batch())[1]["loss"]
        for changed in (state, state.replace(step=jnp.int32(1)), state.replace(key=jax.random.key(5)))
    )
    assert len({float(first), float(later), float(other)}) == 3


def test_the_seed_decides_the_state_before_the_first_step():
    first, again, other = (create_state(MODEL, OPTIMIZER, seed, patch_size=8, ema=True) for seed in (0, 0, 1))
    assert_equal(first, again)
    assert_equal(first.params, first.ema_params)
    assert differs(first.params, other.params)
    assert (int(first.step), int(first.skipped)) == (0, 0)


def test_the_state_before_the_first_step_has_the_parameters_of_the_networks_own_initialisation():
    key, _ = jax.random.split(jax.random.key(3))
    expected = jax.jit(MODEL.init)(key, jnp.zeros((1, 8, 8, 3)))["params"]
    state = create_state(MODEL, OPTIMIZER, seed=3, patch_size=8, ema=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params, expected)


@pytest.mark.parametrize("loss", ["mse", "psnr"])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_same_update(loss, parts, state):
    def updated(parts: int) -> Any:
        training = TrainingConfig(steps=100, batch_size=4, loss=loss)
        experiment = Experiment(data=NOISY, optimizer=CONFIG, training=training)
        return jax.jit(make_train_step(MODEL, experiment, gradient_accumulation=parts))(state, batch())

    (whole, whole_metrics), (divided, metrics) = updated(1), updated(parts)
    assert differs(divided.params, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), divided.params, whole.params)
    assert float(metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(whole_metrics["gradient_norm"]), rel=1e-4)


def test_parts_of_a_divided_batch_move_no_images_between_devices(state):
    mesh = make_mesh((2, 4, 1))
    training = TrainingConfig(steps=100, batch_size=16, loss="mse")
    experiment = Experiment(data=NOISY, optimizer=CONFIG, training=training)
    step = make_train_step(MODEL, experiment, mesh=mesh, gradient_accumulation=2)
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8, sharding=batch_sharding(mesh))
    program = jax.jit(step).lower(state, {"target": images}).compile().as_text()
    assert not any(name in program for name in ("all-gather", "all-to-all", "collective-permute"))


class OwnLoss(nn.Module):
    """A network that computes its loss itself, twice that of its result."""

    def setup(self) -> None:
        self.conv = Conv(3, 3)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.conv(images)

    def training_loss(self, images, targets, keys, progress, loss):
        drawn = jax.vmap(lambda key: jax.random.uniform(key))(keys)
        return 2 * loss(self(images), targets), {"progress": progress, "drawn": drawn.mean()}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_network_may_compute_its_loss_with_a_key_for_each_image(parts, state):
    plain, training = train_step(PAIRED), TrainingConfig(steps=100, loss="mse", ema_decay=0.9)
    experiment = Experiment(data=PAIRED, optimizer=CONFIG, training=training)
    step = jax.jit(make_train_step(OwnLoss(), experiment, gradient_accumulation=parts))
    inner = {"params": state.params, "ema_params": state.ema_params}
    wrapped = state.replace(
        step=jnp.int32(40),
        opt_state=OPTIMIZER.init({"conv": state.params}),
        **{name: {"conv": params} for name, params in inner.items()},
    )
    _, metrics = step(wrapped, batch("input", "target"))
    _, expected = plain(state.replace(step=jnp.int32(40)), batch("input", "target"))
    assert float(metrics["loss"]) == pytest.approx(2 * float(expected["loss"]), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(2 * float(expected["gradient_norm"]), rel=1e-5)
    assert float(metrics["progress"]) == pytest.approx(0.4)
    keys = network_keys(jax.random.fold_in(state.key, 40), 4)
    drawn = np.mean([jax.random.uniform(key) for key in keys])
    assert float(metrics["drawn"]) == pytest.approx(drawn, rel=1e-6)


def test_two_views_and_a_prior_reach_the_network_in_its_order(random_params):
    left, right, prior = jnp.asarray(np.random.default_rng(0).integers(0, 65536, (3, 2, 16, 16, 3), np.uint16))
    images = {"input": jnp.concatenate([left, right, prior], axis=-1), "target": right}
    training, data = TrainingConfig(steps=3, loss="mse"), DataConfig(dataset="dpdd_dual", prior="prior", augment=True)
    experiment = Experiment(data=data, optimizer=CONFIG, training=training)
    model = Swintormer(
        width=4,
        blocks=(0, 0, 0, 0),
        refinement_blocks=0,
        heads=(1, 1, 1, 1),
        window_size=2,
        dual_pixel=True,
        prior=True,
    )
    shapes = jax.eval_shape(lambda: create_state(model, OPTIMIZER, seed=0, patch_size=16, ema=False))
    assert shapes.params["embed"]["kernel"].shape[-2:] == (36, 4)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes.replace(key=None))
    state = state.replace(key=jax.random.key(0))
    step = jax.jit(make_train_step(model, experiment))
    # Without weights its output is the first view that it is given, which is the right one.
    _, metrics = step(state, images)
    assert float(metrics["loss"]) == pytest.approx(0, abs=1e-12)
    # The prior counts: another one has another loss.
    state, losses = state.replace(params=random_params(model, (1, 16, 16, 9))), []
    for other in (prior, 65535 - prior):
        _, metrics = step(state, {**images, "input": jnp.concatenate([left, right, other], axis=-1)})
        losses.append(float(metrics["loss"]))
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
