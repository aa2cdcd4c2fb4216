from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.blocks import Conv
from gamax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    LoggingConfig,
    OptimizerConfig,
    TrainingConfig,
    stages,
)
from gamax.data.datasets import PreparedDataset
from gamax.errors import StoppedError, UserError
from gamax.training import loop, sharding
from gamax.training.checkpoints import Checkpoints
from gamax.training.optimizer import make_optimizer
from gamax.training.program import compile_step, state_and_gradient_bytes
from gamax.training.state import TrainState, abstract_state, create_state, initial_state
from gamax.training.step import make_train_step


class TwoParts(nn.Module):
    """A part in front of another, each of one convolution."""

    input_channels: ClassVar[int] = 3

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return Conv(3, 3, name="second")(nn.gelu(Conv(4, 3, name="first")(images)))


class WithTrainedFirst(TwoParts):
    """Its first part is never trained."""

    frozen_parts: ClassVar[tuple[str, ...]] = ("first",)


MODEL = TwoParts()
CROPS = {"input": (3, np.uint8), "target": (3, np.uint8)}


def experiment(frozen: tuple[str, ...] = ("first",), **training: Any) -> Experiment:
    defaults = {"steps": 4, "batch_size": 8, "loss": "mse", "ema_decay": 0.5, "gradient_accumulation": 1}
    return Experiment(
        data=DataConfig(dataset="paired_folder", patch_size=8, augment=False),
        optimizer=OptimizerConfig(1e-2, 1e-3, weight_decay=0.1, gradient_clip=0.01),
        training=TrainingConfig(**{**defaults, **training}, frozen=frozen),
        logging=LoggingConfig(every=1, tensorboard=False),
    )


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (8, 8, 8, 3), np.uint8) for name in CROPS}


def step_on(shape: tuple[int, int, int], parts: int = 1) -> TrainState:
    """The state after one step on a mesh, with the batch in `parts`."""
    chosen = experiment(gradient_accumulation=parts)
    mesh = sharding.make_mesh(shape, jax.devices()[: math.prod(shape)])
    program = compile_step(MODEL, chosen, stages(chosen)[0], mesh, abstract_state(MODEL, chosen), CROPS)
    state = jax.device_put(initial_state(MODEL, chosen), program.state_shardings)
    return program.step(state, jax.device_put(batch(), program.images))[0]


def names(tree: Any) -> str:
    return " ".join(jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree))


@pytest.fixture(scope="module")
def stepped() -> tuple[TrainState, TrainState, dict[str, Any]]:
    """Before and after three steps, and the metrics of the first."""
    step = jax.jit(make_train_step(MODEL, experiment()))
    before = initial_state(MODEL, experiment())
    state, first = step(before, batch())
    for _ in range(2):
        state, _ = step(state, batch())
    return before, state, first


def test_a_frozen_part_stays_to_the_bit_and_has_no_state(stepped):
    before, after, _ = stepped
    jax.tree.map(np.testing.assert_array_equal, after.params["first"], before.params["first"])
    assert np.abs(after.params["second"]["kernel"] - before.params["second"]["kernel"]).min() > 0
    assert "second" in names(after.opt_state)
    assert "first" not in names(after.opt_state) + names(after.ema_params)
    result = loop.result_params(after)
    assert result["first"] is after.params["first"]
    assert result["second"] is after.ema_params["second"]


def test_the_other_parts_are_trained_as_if_the_frozen_one_were_a_constant(stepped):
    before, after, metrics = stepped
    chosen = experiment()
    inputs, targets = (jnp.asarray(images, jnp.float32) / 255 for images in batch().values())
    features = nn.gelu(Conv(4, 3).apply({"params": before.params["first"]}, inputs))

    @jax.value_and_grad
    def loss(second: Any) -> jax.Array:
        return jnp.square(Conv(3, 3).apply({"params": second}, features) - targets).mean()

    optimizer = make_optimizer(chosen.optimizer)
    second, norms = before.params["second"], []
    state = optimizer.init(second)
    for step in range(3):
        _, gradient = loss(second)
        norms.append(float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))))
        updates, state = optimizer.update(gradient, state, second)
        rate = 1e-3 + 0.5 * (1e-2 - 1e-3) * (1 + math.cos(math.pi * step / 4))
        second = jax.tree.map(lambda leaf, update, rate=rate: leaf - rate * update, second, updates)
    assert float(metrics["gradient_norm"]) == pytest.approx(norms[0], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params["second"], second)


@pytest.mark.parametrize(("shape", "parts"), [((2, 2, 1), 1), ((2, 2, 1), 2), ((1, 1, 1), 4)])
def test_devices_and_parts_of_the_batch_change_nothing_but_rounding(shape, parts, monkeypatch):
    # So that arrays of this small network are split too.
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2)
    expected, state = step_on((1, 1, 1)), step_on(shape, parts)
    assert state.params["first"]["kernel"].is_fully_replicated == (shape == (1, 1, 1))
    jax.tree.map(np.testing.assert_array_equal, state.params["first"], expected.params["first"])
    for actual, desired in ((state.params, expected.params), (state.ema_params, expected.ema_params)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual["second"], desired["second"]
        )


def test_memory_is_counted_without_moments_average_and_gradient_of_frozen_parts():
    first, second = 4 * (3 * 9 * 4 + 4), 4 * (4 * 9 * 3 + 3)
    sizes = [
        state_and_gradient_bytes(MODEL, chosen, abstract_state(MODEL, chosen))
        for chosen in (experiment(()), experiment(("first",)), experiment(("second",)))
    ]
    # Of a trained part: itself, two moments, the average and the gradient.
    assert (sizes[0] - sizes[1], sizes[0] - sizes[2]) == (4 * first, 4 * second)


def test_no_gradient_of_a_frozen_part_is_computed():
    def flops(frozen: tuple[str, ...]) -> float:
        chosen = experiment(frozen)
        step = jax.jit(make_train_step(MODEL, chosen))
        return step.lower(abstract_state(MODEL, chosen), batch()).compile().cost_analysis()["flops"]

    # Five convolutions of 64 pixels: two forward; backward one for each kernel, and one for the features between them.
    whole, first, second = map(flops, ((), ("first",), ("second",)))
    convolution = 2 * 8 * 64 * 9 * 3 * 4
    assert whole - first > 1.5 * convolution
    assert whole - second > 0.7 * convolution


def test_a_network_may_freeze_a_part_itself():
    chosen = experiment(())
    state = initial_state(WithTrainedFirst(), chosen)
    after, _ = jax.jit(make_train_step(WithTrainedFirst(), chosen))(state, batch())
    assert set(state.ema_params) == {"second"}
    jax.tree.map(np.testing.assert_array_equal, after.params["first"], state.params["first"])


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("frist",), r"training.frozen names no part of the network: 'frist' \(did you mean 'first'\?\)"),
        (("first", "second"), "training.frozen leaves nothing to train: first, second is all of the network"),
    ],
)
def test_parts_that_cannot_be_frozen_are_named(frozen, message):
    with pytest.raises(UserError, match=message):
        abstract_state(MODEL, experiment(frozen))


def train(run_dir: Path, evaluate: Any = lambda: None) -> loop.Trained:
    rng = np.random.default_rng(0)
    examples = [
        {"name": str(index), **{name: rng.integers(0, 256, (9, 10, 3), np.uint8) for name in CROPS}}
        for index in range(5)
    ]
    dataset = PreparedDataset(Path("nowhere"), {"train": examples}, "random", {"train": 5}, {"train": None})
    chosen = replace(experiment(), evaluation=EvaluationConfig(every=2))
    mesh = sharding.make_mesh((2, 2, 1), jax.devices()[:4])
    stage = stages(chosen)[0]
    program = compile_step(MODEL, chosen, stage, mesh, abstract_state(MODEL, chosen), CROPS)

    def score(params: Any) -> Any:
        assert set(params) == {"first", "second"}
        evaluate()
        return SimpleNamespace(mean=lambda metric: 30.0, means=lambda: {"psnr": 30.0}, worst=[])

    run_dir.mkdir(exist_ok=True)
    with Checkpoints(run_dir / "checkpoints", kept=1, kept_every=None) as checkpoints:
        return loop.train(
            chosen, MODEL, dataset, {stage: mesh}, lambda _: program, run_dir, checkpoints, score, lambda _: None
        )


def test_a_run_with_frozen_parts_is_resumed_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 2)
    # There are no images to draw.
    monkeypatch.setattr(loop, "save_comparison", lambda path, rows: None)
    monkeypatch.setattr(loop.MetricsLog, "picture", lambda *arguments: None)
    whole = train(tmp_path / "whole")
    with pytest.raises(StoppedError, match="saved after step 2 of 4"):
        train(tmp_path / "cut", lambda: os.kill(os.getpid(), signal.SIGTERM))
    rest = train(tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)
    before = create_state(MODEL, make_optimizer(experiment().optimizer), 0, 8, ema=False).params
    jax.tree.map(np.testing.assert_array_equal, rest.params["first"], before["first"])
