"""Short trainings of small networks, all with one budget: the quality that the studies of `gamax lab` compare."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PRNGKeyArray, UInt8

from gamax.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig
from gamax.data.datasets import source_examples
from gamax.data.degradations import Degradation, GaussianNoise, RainStreaks, degrade
from gamax.data.images import to_float, to_integers
from gamax.errors import UserError, first_line, nearest
from gamax.evaluation.restorer import apply_network
from gamax.training.state import TrainState, initial_state
from gamax.training.step import make_train_step

TASKS: dict[str, tuple[Degradation, ...]] = {
    "denoise": (GaussianNoise(sigma=(25.0, 25.0)),),
    "derain": (RainStreaks(density=(0.004, 0.006), brightness=(0.5, 0.8)),),
}
"""What is done to clean photographs, and to be undone."""

TEST_SIDE = 128
"""Pixels of the sides of the squares of held-out photographs that are scored."""
MOST_SQUARES = (1024, 16)
"""For training and for scores."""
CROPS_KEY = 4
"""What is folded into a step's key; `preprocess` and the step take 0 to 3."""
CURVE_POINTS = 5
"""How often a training is scored, the end included."""


@dataclass(frozen=True)
class Budget:
    """What every network gets."""

    steps: int = 300
    batch_size: int = 8
    patch_size: int = 64
    """Pixels of the sides of crops."""
    learning_rate: float = 2e-3
    """At its highest; it falls along half a cosine to a hundredth."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.patch_size) < 1 or self.learning_rate <= 0:
            raise UserError("a training needs steps, a batch, crops and a learning rate above 0")


@dataclass(frozen=True)
class Photographs:
    """Squares cut from clean photographs, as integers."""

    train: UInt8[np.ndarray, "n s s 3"]
    test: UInt8[np.ndarray, "m t t 3"]
    description: str
    sha256: str
    """Of all their pixels."""


def check_task(task: str) -> None:
    """Raises `UserError` for a task that is not in `TASKS`."""
    if task not in TASKS:
        raise UserError(f"unknown task {nearest(task, TASKS)}")


def load_photographs(
    dataset: str = "sample_photographs", source: str | None = None, patch_size: int = 64
) -> Photographs:
    """Cuts the clean images of a dataset's `train` and `test` into squares that do not overlap.

    Of more than `MOST_SQUARES`, so many are taken at even distances.

    Args:
        dataset: a name that `gamax data list` knows.
        source: its folder; None for a dataset that comes with gamax.
        patch_size: pixels of the crops; squares for training have twice these sides, or these where images are smaller.

    Raises:
        UserError: if there is no such dataset or folder, or its images are smaller than `TEST_SIDE` or `patch_size`.

    """
    config = DataConfig(dataset=dataset, source=source)
    squares = {}
    for split, sides, most in (
        ("train", (2 * patch_size, patch_size), MOST_SQUARES[0]),
        ("test", (TEST_SIDE,), MOST_SQUARES[1]),
    ):
        examples = source_examples(config, split)
        images = [to_integers(to_float(np.asarray(example["target"]))) for example in examples]
        side = next((side for side in sides if all(min(image.shape[:2]) >= side for image in images)), None)
        if side is None or not images or images[0].shape[-1] != 3:
            raise UserError(
                f"the {split} images of {dataset} must be in colour, with sides of at least {sides[-1]} pixels"
            )
        cut = [square for image in images for square in _squares(image, side)]
        chosen = np.unique(np.linspace(0, len(cut) - 1, min(most, len(cut))).round().astype(int))
        squares[split] = np.stack([cut[index] for index in chosen])
    digest = hashlib.sha256(squares["train"].tobytes() + squares["test"].tobytes()).hexdigest()
    counts = " and ".join(f"{len(part)} squares of {part.shape[1]} ({split})" for split, part in squares.items())
    return Photographs(squares["train"], squares["test"], f"{dataset}: {counts}", digest)


def _squares(image: np.ndarray, side: int) -> list[np.ndarray]:
    height, width = image.shape[:2]
    return [
        image[top : top + side, left : left + side]
        for top in range(0, height - side + 1, side)
        for left in range(0, width - side + 1, side)
    ]


def check_sizes(name: str, model: nn.Module, sizes: Iterable[tuple[int, int]], remedy: str) -> None:
    """Raises `UserError` if the network does not map colour images of each height and width to such images.

    Args:
        name: of the network, for the error.
        model: the network.
        sizes: heights and widths in pixels.
        remedy: what the error advises besides other sizes.

    """
    for height, width in dict.fromkeys(sizes):
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        try:
            restored, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
            if restored.shape != images.shape:
                raise UserError(f"it gives {restored.shape}")
        except Exception as error:  # A block of the user's can fail in any way.
            # Held-out squares have the size that they have.
            change = "" if (height, width) == (TEST_SIDE, TEST_SIDE) else "change --patch-size or --latency-size, or "
            raise UserError(
                f"{name} cannot run on {height}x{width} pixels ({first_line(error)}); {change}{remedy}"
            ) from error


def random_crops(
    key: PRNGKeyArray, squares: UInt8[Array, "n s s c"], batch_size: int, size: int
) -> UInt8[Array, "b p p c"]:
    """Crops of `size` pixels at random places of random squares."""
    which_key, where_key = jax.random.split(key)
    which = jax.random.randint(which_key, (batch_size,), 0, len(squares))
    where = jax.random.randint(where_key, (batch_size, 2), 0, squares.shape[1] - size + 1)

    def crop(index: Array, corner: Array) -> Array:
        square = lax.dynamic_index_in_dim(squares, index, keepdims=False)
        return lax.dynamic_slice(square, (corner[0], corner[1], 0), (size, size, squares.shape[-1]))

    return jax.vmap(crop)(which, where)


def train_small(
    model: nn.Module,
    photographs: Photographs,
    task: str,
    budget: Budget,
    seed: int,
    update: Callable[[float, str], object] = lambda part, note: None,
) -> dict[str, Any]:
    """Trains a network from random parameters with the training step of `train.py`, and scores it.

    The loss is the PSNR loss, the optimizer AdamW without weight decay, gradients clipped to a norm of 1. Parameters,
    crops and degradations follow from the seed alone; the held-out squares are degraded once, always in the same way.

    Args:
        model: takes and gives colour images.
        photographs: of `load_photographs`.
        task: a name from `TASKS`.
        budget: steps, batch and crops.
        seed: of everything that is random.
        update: called with the part that is done and a note.

    Returns:
        `psnr` in dB of the mean squared error over all held-out squares at the end, `psnr_input`, `curve` of pairs of
        step and `psnr`, `loss` at the end, `skipped` updates, and `images` seen. `psnr` and `loss` are None if they are
        not finite.

    """
    check_task(task)
    experiment, step = _program(model, task, budget)
    seeded = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=seed))
    targets = jnp.asarray(photographs.test, jnp.float32) / 255
    inputs = degrade(jax.random.key(0), targets, TASKS[task])
    squares = jnp.asarray(photographs.train)
    state = initial_state(model, seeded)
    scored_at = {round(budget.steps * (part + 1) / CURVE_POINTS) for part in range(CURVE_POINTS)} | {budget.steps}
    curve: list[list[Any]] = []
    metrics: dict[str, Any] = {}
    for number in range(1, budget.steps + 1):
        state, metrics = step(state, squares)
        if number in scored_at:
            curve.append([number, _psnr(_restore(model, state.params, inputs), targets)])
        # Asking waits for the step, so that no more than one of them is ahead of what is shown.
        if number % 10 == 0:
            update(number / budget.steps, f"seed {seed}, loss {float(metrics['loss']):.2f}")
    return {
        "psnr": curve[-1][1],
        "psnr_input": _psnr(inputs, targets),
        "curve": curve,
        "loss": _finite(float(metrics["loss"])),
        "skipped": int(state.skipped_total),
        "images": budget.steps * budget.batch_size,
    }


# Seeds share one compiled program; those of earlier networks are let go.
@lru_cache(maxsize=1)
def _program(model: nn.Module, task: str, budget: Budget) -> tuple[Experiment, Callable[..., tuple[TrainState, Any]]]:
    experiment = Experiment(
        data=DataConfig(patch_size=budget.patch_size, degradations=TASKS[task]),
        optimizer=OptimizerConfig(
            learning_rate=budget.learning_rate, final_learning_rate=budget.learning_rate / 100, gradient_clip=1.0
        ),
        training=TrainingConfig(steps=budget.steps, batch_size=budget.batch_size, loss="psnr"),
    )
    train_step = make_train_step(model, experiment)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, squares: Array) -> tuple[TrainState, Any]:
        # Apart from the keys that the training step makes of the same one.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), CROPS_KEY)
        batch = {"target": random_crops(key, squares, budget.batch_size, budget.patch_size)}
        return train_step(state, batch)

    return experiment, step


def _restore(model: nn.Module, params: Any, inputs: Array) -> Array:
    # One at a time: some networks take much memory for many at once.
    return jnp.concatenate([apply_network(model, params, inputs[index : index + 1]) for index in range(len(inputs))])


def _psnr(restored: Array, targets: Array) -> float | None:
    """Of all squares together: one that is all white shows no rain, and its own PSNR would be infinite."""
    # Clipping would make a number of infinity.
    error = jnp.where(jnp.isfinite(restored), jnp.clip(restored, 0, 1), jnp.nan) - targets
    return _finite(float(-10 * jnp.log10(jnp.mean(jnp.square(error)))))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
