from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gamax.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig
from gamax.data.degradations import GaussianNoise
from gamax.errors import UserError
from gamax.models.gama_ir import GAMAIR
from gamax.training import sharding
from gamax.training.optimizer import make_optimizer
from gamax.training.state import create_state
from gamax.training.step import make_train_step

# Halves the time to compile; what is tested is how the program is divided.
FAST = {"xla_backend_optimization_level": 0}
MODEL = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1)


@pytest.mark.parametrize(
    ("shape", "resolved"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 1), (2, 4, 1)), ((1, 2, -1), (1, 2, 4)), ((2, 2, 2), (2, 2, 2))],
)
def test_the_mesh_takes_all_devices(shape, resolved):
    mesh = sharding.make_mesh(shape)
    assert tuple(mesh.shape.values()) == resolved
    assert mesh.axis_names == ("data", "fsdp", "rows")
    assert mesh.size == 8


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 1, 1), r"\(3, 1, 1\) does not fit 8 device"),
        ((3, -1, 1), "must multiply to 8"),
        ((16, -1, 1), "must multiply to 8"),
        ((2, 2, 1), "must multiply to 8"),
        ((-1, -1, 1), "at most one of them -1"),
        ((0, -1, 1), "positive sizes"),
        ((-2, 1, 4), "positive sizes"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(shape, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(shape)


def test_batches_and_rows_must_divide_over_the_mesh():
    mesh = sharding.make_mesh((2, 2, 2))
    sharding.check_batch(mesh, 8, 30)
    with pytest.raises(UserError, match=r"is 6, not divisible by the 4 devices .*; use a multiple of 4"):
        sharding.check_batch(mesh, 6, 30)
    with pytest.raises(UserError, match="patch_size 31 is not divisible by the 2 devices along rows"):
        sharding.check_batch(mesh, 8, 31)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((128, 256), (None, "fsdp")),
        ((256, 128), ("fsdp",)),
        ((3, 3, 1024, 512), (None, None, "fsdp")),
        ((1022, 512), (None, "fsdp")),  # the longest axis is not divisible by 4
        ((1023, 1021), ()),  # none is
        ((64, 64), ()),  # too small to be worth it
        ((), ()),
    ],
)
def test_large_arrays_are_split_along_their_longest_divisible_axis(shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    mesh = sharding.make_mesh((2, 4, 1))
    (result,) = sharding.state_sharding(mesh, [leaf])
    assert tuple(result.spec) == spec
    (whole,) = sharding.state_sharding(sharding.make_mesh((8, 1, 1)), [leaf])
    assert whole.spec == PartitionSpec()


def test_a_batch_is_split_over_data_and_fsdp_and_its_rows_over_rows():
    images = jax.device_put(np.zeros((4, 6, 8, 3)), sharding.batch_sharding(sharding.make_mesh((2, 2, 2))))
    assert {shard.data.shape for shard in images.addressable_shards} == {(1, 3, 8, 3)}


@pytest.fixture(scope="module")
def step():
    config = OptimizerConfig(1e-2, 1e-4, gradient_clip=1.0)
    data = DataConfig(patch_size=16, degradations=(GaussianNoise((10.0, 30.0)),))
    training = TrainingConfig(steps=10, batch_size=8, ema_decay=0.9)
    experiment = Experiment(data=data, optimizer=config, training=training)
    return make_optimizer(config), make_train_step(MODEL, experiment)


@pytest.fixture(scope="module")
def start(step, random_params):
    state = create_state(MODEL, step[0], seed=0, patch_size=16, ema=True)
    params = random_params(MODEL, (1, 16, 16, 3))
    batch = {"target": np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)}
    return state.replace(params=params, ema_params=params), batch


@pytest.fixture(scope="module")
def on_one_device(step, start):
    return jax.jit(step[1], compiler_options=FAST)(*start)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 1, 4), (1, 2, 4)])
def test_a_step_on_eight_devices_equals_one_on_one(shape, step, start, on_one_device, monkeypatch):
    # So that arrays of this small network are split too.
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2)
    (state, batch), mesh = start, sharding.make_mesh(shape)
    sharding.check_batch(mesh, 8, 16)
    shardings, images = sharding.state_sharding(mesh, state), sharding.batch_sharding(mesh)
    split = [item for item in jax.tree.leaves(shardings.params) if item.spec != PartitionSpec()]
    assert bool(split) == (mesh.shape["fsdp"] > 1)
    train_step = jax.jit(
        step[1],
        in_shardings=(shardings, images),
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=FAST,
    )
    result, metrics = train_step(jax.device_put(state, shardings), jax.device_put(batch, images))
    expected, expected_metrics = on_one_device

    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)

    def close(actual: jax.Array, desired: jax.Array) -> None:
        np.testing.assert_allclose(actual, desired, atol=1e-5 * abs(np.asarray(desired)).max())

    jax.tree.map(close, result.params, expected.params)
    jax.tree.map(close, result.ema_params, expected.ema_params)
    # The first moment is the clipped gradient itself.
    jax.tree.map(close, result.opt_state[1].mu, expected.opt_state[1].mu)
    assert int(result.step) == 1
