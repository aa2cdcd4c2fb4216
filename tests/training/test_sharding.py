from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from gamax.config import DataConfig, Experiment, OptimizerConfig, Stage, TrainingConfig, stages
from gamax.data.degradations import GaussianNoise
from gamax.errors import UserError
from gamax.models import create_model
from gamax.models.adaptive_sampling import AdaptiveSampling
from gamax.models.dmphn import DMPHN
from gamax.models.gama_ir import GAMAIR
from gamax.models.saphn import SAPHN
from gamax.training import sharding
from gamax.training.optimizer import make_optimizer
from gamax.training.program import compile_step
from gamax.training.state import create_state

# Halves the time to compile; what is tested is how the program is divided.
FAST = {"xla_backend_optimization_level": 0}
LEARNING_RATE = 1e-2
MODEL = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1)


def shape_of(requested, batch_size=8, patch_size=256, devices=8, state_bytes=1, device_bytes=1000, divisible=True):
    stage = Stage(0, patch_size, batch_size)
    sizes = {"state_bytes": state_bytes, "device_bytes": device_bytes}
    return sharding.mesh_shape(requested, devices, stage, **sizes, divisible=divisible)


@pytest.mark.parametrize(
    ("requested", "resolved"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 1), (2, 4, 1)), ((1, 2, -1), (1, 2, 4)), ((2, 2, 2), (2, 2, 2))],
)
def test_the_mesh_takes_all_devices(requested, resolved):
    assert shape_of(requested) == resolved
    mesh = sharding.make_mesh(resolved)
    assert tuple(mesh.shape.values()) == resolved
    assert mesh.axis_names == ("data", "fsdp", "rows")


@pytest.mark.parametrize(
    ("requested", "options", "message"),
    [
        ((3, 1, 1), {}, r"\(3, 1, 1\) does not fit 8 device"),
        ((3, -1, 1), {}, "must multiply to 8"),
        ((16, -1, 1), {}, "must multiply to 8"),
        ((2, 2, 1), {}, "must multiply to 8"),
        ((-1, -1, 1), {}, "at most one of them -1"),
        ((0, -1, 1), {}, "positive sizes"),
        ((-2, 1, 4), {}, "positive sizes"),
        ((2, 2, 2), {"batch_size": 6}, r"batch_size 6 is not divisible by the 4 devices .*; use a multiple of 4"),
        ((2, 2, 2), {"patch_size": 31}, "patch_size 31 is not divisible by the 2 devices along rows"),
        ("auto", {"batch_size": 6, "patch_size": 30}, "8 devices cannot share a batch of 6 .* use 6 device"),
        ("auto", {"batch_size": 1, "patch_size": 64}, "8 devices cannot share a batch of 1 .* use 1 device"),
        ("auto", {"batch_size": 6, "divisible": False}, "nor the rows of .* use 6 device.*mesh 2 1 4, where"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(requested, options, message):
    with pytest.raises(UserError, match=message):
        shape_of(requested, **options)


@pytest.mark.parametrize(
    ("options", "resolved"),
    [
        ({}, (8, 1, 1)),
        ({"devices": 1, "batch_size": 7, "patch_size": 33}, (1, 1, 1)),
        # A state of a third of a device goes over two, one of more than all devices over all of them.
        ({"state_bytes": 330}, (4, 2, 1)),
        ({"state_bytes": 10**6}, (1, 8, 1)),
        # More devices than crops: the rest split rows.
        ({"batch_size": 4}, (4, 1, 2)),
        ({"batch_size": 2, "state_bytes": 330}, (1, 2, 4)),
        ({"batch_size": 12, "patch_size": 128}, (4, 1, 2)),
        ({"devices": 6, "batch_size": 4, "patch_size": 96}, (2, 1, 3)),
    ],
)
def test_the_automatic_mesh_follows_from_devices_batch_and_state(options, resolved):
    assert shape_of("auto", **options) == resolved


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


def test_a_batch_is_split_over_data_and_fsdp_whole_images_on_each_device():
    images = jax.device_put(np.zeros((4, 6, 8, 3)), sharding.batch_sharding(sharding.make_mesh((2, 2, 2))))
    assert {shard.data.shape for shard in images.addressable_shards} == {(1, 6, 8, 3)}


def test_rows_are_split_for_the_network():
    mesh = sharding.make_mesh((2, 2, 2))
    split = jax.jit(lambda images: sharding.split_rows(mesh, images))(np.zeros((4, 6, 8, 3)))
    assert {shard.data.shape for shard in split.addressable_shards} == {(1, 3, 8, 3)}


def experiment_of(patch_size: int) -> Experiment:
    data = DataConfig(patch_size=patch_size, degradations=(GaussianNoise((10.0, 30.0)),))
    training = TrainingConfig(steps=10, batch_size=8, ema_decay=0.9, gradient_accumulation=1)
    return Experiment(data=data, optimizer=OptimizerConfig(LEARNING_RATE, 1e-4, gradient_clip=1.0), training=training)


def step_on(shape: tuple[int, int, int], model: nn.Module, patch_size: int, random_params: Any) -> Any:
    """State and metrics after one step on a mesh, and the program."""
    experiment, mesh = experiment_of(patch_size), make_submesh(shape)
    state = create_state(model, make_optimizer(experiment.optimizer), seed=0, patch_size=patch_size, ema=True)
    params = random_params(model, (1, patch_size, patch_size, 3))
    state = state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params))
    batch = {"target": np.random.default_rng(0).integers(0, 256, (8, patch_size, patch_size, 3), np.uint8)}
    program = compile_step(
        model, experiment, stages(experiment)[0], mesh, state, {"target": (3, np.uint8)}, compiler_options=FAST
    )
    result = program.step(jax.device_put(state, program.state_shardings), jax.device_put(batch, program.images))
    return *result, program


def make_submesh(shape: tuple[int, int, int]) -> Mesh:
    return sharding.make_mesh(shape, jax.devices()[: math.prod(shape)])


def check_step_on_a_mesh(
    shape: tuple[int, int, int], model: nn.Module, patch_size: int, one: Any, random_params: Any
) -> None:
    """The same loss, gradients, parameters and average as on one device; planned exchanges only, none of images.

    Gradients agree to 1e-4 of the largest of each array (they are float32 sums over up to 131,072 pixels in another
    order, which differ by up to 2e-5), the loss to 1e-5. Adam divides them by their own size, which brings out the
    rounding of those near zero: parameters agree to a tenth of the learning rate, on average to a thousandth.
    """
    state, metrics, program = step_on(shape, model, patch_size, random_params)
    expected, expected_metrics, _ = one
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)

    def close(actual: jax.Array, desired: jax.Array) -> None:
        np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-4 * abs(np.asarray(desired)).max())

    def near(actual: jax.Array, desired: jax.Array) -> None:
        np.testing.assert_allclose(actual, desired, rtol=0, atol=0.1 * LEARNING_RATE)
        assert abs(np.asarray(actual) - np.asarray(desired)).mean() < 1e-3 * LEARNING_RATE

    # The first moment is a tenth of the clipped gradient.
    jax.tree.map(close, state.opt_state[1].mu, expected.opt_state[1].mu)
    jax.tree.map(near, state.params, expected.params)
    jax.tree.map(near, state.ema_params, expected.ema_params)
    assert int(state.step) == 1

    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.is_fully_replicated]
    assert bool(split) == (program.mesh.shape["fsdp"] > 1)
    assert program.unplanned == set()
    kinds = {"all-gather": program.mesh.shape["fsdp"] > 1, "collective-permute": program.mesh.shape["rows"] > 1}
    assert set(program.collectives) == {"all-reduce", *(kind for kind, there in kinds.items() if there)}
    # What is gathered is parameters, each once: XLA on CPU sums whole gradients, so nothing is scattered.
    gathered = program.collectives.get("all-gather", (0, 0))
    assert gathered[0] == len(split)
    assert gathered[1] == sum(leaf.nbytes for leaf in split)


@pytest.fixture(scope="module")
def on_one_device(random_params):
    return step_on((1, 1, 1), MODEL, 32, random_params)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2)])
def test_a_step_on_eight_devices_equals_one_on_one(shape, on_one_device, random_params, monkeypatch):
    # So that arrays of this small network are split too.
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2)
    check_step_on_a_mesh(shape, MODEL, 32, on_one_device, random_params)


# The means of GAMA are filtered along each axis; with fewer than three rows on a device they would be gathered.
@pytest.fixture(scope="module", params=[("gama_ir_s", 128), ("nafnet_sidd_w32", 64)], ids=lambda param: param[0])
def full_size(request, random_params):
    name, patch_size = request.param
    model = create_model(name)
    return model, patch_size, step_on((1, 1, 1), model, patch_size, random_params)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2)])
def test_a_step_of_a_published_network_on_eight_devices_equals_one_on_one(shape, full_size, random_params):
    model, patch_size, one = full_size
    check_step_on_a_mesh(shape, model, patch_size, one, random_params)


def first_moments(state: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state[1].mu)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def check_gradients_on_a_mesh(shape: tuple[int, int, int], model: nn.Module, random_params: Any) -> None:
    """The gradients of one device, and no exchange that was not planned."""
    expected, expected_metrics, _ = step_on((1, 1, 1), model, 32, random_params)
    state, metrics, program = step_on(shape, model, 32, random_params)
    assert program.unplanned == set()
    # The first moments are those of clipped gradients, which do not show a factor that all have in common.
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-4)
    found, moments = first_moments(state), first_moments(expected)
    # Where gradients cancel, rounding of the larger ones is left.
    rounding = 1e-8 * max(abs(moment).max() for moment in moments.values())
    for name, moment in moments.items():
        # A soft-max does not notice what is added to all logits: rounding is all there is.
        if not name.endswith(("['logit']['bias']", "['key']['bias']")):
            np.testing.assert_allclose(
                found[name], moment, rtol=0, atol=1e-4 * abs(moment).max() + rounding, err_msg=name
            )


def test_networks_that_cut_patches_have_the_gradients_of_one_device_where_others_divide_rows(random_params):
    model = DMPHN(levels=(1, 2), widths=(2, 2, 2))
    assert not sharding.rows_divisible(model)
    check_gradients_on_a_mesh((2, 1, 4), model, random_params)


SMALL_SAPHN = SAPHN(widths=(2, 4, 4), blocks=1, kernel_size=1, max_offset=1, descriptors=2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2)])
@pytest.mark.parametrize(
    "model",
    [
        SMALL_SAPHN,
        AdaptiveSampling(SMALL_SAPHN, ratio=0.1, start=0.0),
        AdaptiveSampling(MODEL, ratio=0.1, start=0.0),
        GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1, mixer="content_aware"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_saphn_and_adaptive_sampling_have_the_gradients_of_one_device(model, shape, random_params, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2)
    check_gradients_on_a_mesh(shape, model, random_params)
