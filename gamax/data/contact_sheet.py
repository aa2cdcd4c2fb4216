"""A picture of what the network is trained on: crops exactly as a training step sees them."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import jax
import numpy as np

from gamax.config import DataConfig
from gamax.data.datasets import prepare
from gamax.data.images import to_integers
from gamax.data.pipeline import training_batches
from gamax.data.preprocessing import preprocess
from gamax.errors import UserError

_SMALLEST_PANEL = 192
_GAP = 8
_CAPTION = 22
_DPI = 100
_AMPLIFICATIONS = (1, 2, 4, 8, 16, 32)


def contact_sheet(config: DataConfig, count: int, seed: int, step: int = 0, batch_size: int = 32) -> np.ndarray:
    """Draws the first `count` examples of the batch that training with these values sees in step `step`.

    A row is input (left and right view of a dual-pixel camera), diffusion prior where there is one, target, and the
    absolute difference of input and target, amplified. The set is prepared unless it is. Pixels are shown as they are,
    or each as a square of several where crops are small; what lies outside [0, 1] is clipped in the picture only.

    Args:
        config: the dataset and what happens to it.
        count: rows, at most `batch_size`.
        seed: `training.seed`.
        step: which step of training, from 0.
        batch_size: `training.batch_size`, on which the random numbers of a step depend.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        UserError: when the set cannot be prepared or trained on, or `count` is not from 1 to `batch_size`.
    """
    if not 1 <= count <= batch_size:
        raise UserError(f"the number of rows must be from 1 to the {batch_size} crops of a batch, not {count}")
    inputs, targets = _step_images(config, seed, step, batch_size)
    inputs, targets = inputs[:count], targets[:count]
    return _draw(inputs[..., :-3], targets, inputs[..., -3:]) if config.prior else _draw(inputs, targets)


def _step_images(config: DataConfig, seed: int, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    dataset = prepare(config)
    batches = training_batches(
        dataset.train,
        patch_size=config.patch_size,
        batch_size=batch_size,
        seed=seed,
        threads=config.loader_threads,
        skip_corrupt=config.skip_corrupt,
        pad=config.small_images == "pad",
        first_sample=step * batch_size,
    )
    with closing(batches):
        batch = next(batches)
    # As `create_state` makes it; the training package imports this one.
    _, key = jax.random.split(jax.random.key(seed))
    see = jax.jit(partial(preprocess, config=config))
    inputs, targets = see(batch, jax.random.fold_in(key, step))
    return np.asarray(inputs), np.asarray(targets)


def _draw(inputs: np.ndarray, targets: np.ndarray, priors: np.ndarray | None = None) -> np.ndarray:
    """Draws `[N, P, P, C]` inputs (C may be twice that of the targets), priors if there are any, and targets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = np.split(inputs, inputs.shape[-1] // targets.shape[-1], axis=-1)
    differences = np.abs(np.mean(views, axis=0) - targets)
    # So that few pixels saturate.
    brightest = float(np.quantile(differences, 0.97))
    amplification = max(factor for factor in _AMPLIFICATIONS if factor == 1 or factor * brightest <= 1)
    scale = max(1, -(-_SMALLEST_PANEL // targets.shape[1]))
    panel = scale * targets.shape[1]
    view_names = ("input",) if len(views) == 1 else ("left", "right")
    between = [] if priors is None else [priors]
    columns = [*views, *between, targets, amplification * differences]
    width = len(columns) * (panel + _GAP) + _GAP
    height = len(targets) * (panel + _CAPTION + _GAP) + _GAP
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    for row, target in enumerate(targets):
        captions = [f"{name}, {_psnr(view[row], target)}" for name, view in zip(view_names, views, strict=True)]
        captions += [*(["prior"] if between else []), "target", f"absolute difference x {amplification}"]
        bottom = height - (row + 1) * (panel + _CAPTION + _GAP)
        for column, (images, caption) in enumerate(zip(columns, captions, strict=True)):
            left = _GAP + column * (panel + _GAP)
            figure.figimage(_shown(images[row], scale), left, bottom, origin="upper")
            figure.text(left / width, (bottom + panel + 6) / height, caption, fontsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shown(image: np.ndarray, scale: int) -> np.ndarray:
    pixels = to_integers(np.broadcast_to(image, (*image.shape[:2], 3)))
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _psnr(image: np.ndarray, target: np.ndarray) -> str:
    error = float(np.mean((image - target) ** 2))
    return f"{-10 * np.log10(error):.2f} dB" if error else "equal to the target"
