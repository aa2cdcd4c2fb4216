from __future__ import annotations

from functools import partial

import cv2
import jax
import numpy as np
import optax
import pytest

from gamax.config import DataConfig
from gamax.data import contact_sheet as module
from gamax.data.contact_sheet import contact_sheet
from gamax.data.datasets import prepare
from gamax.data.degradations import GaussianNoise
from gamax.data.pipeline import training_batches
from gamax.data.preprocessing import preprocess
from gamax.errors import UserError
from gamax.models import create_model
from gamax.training.state import create_state


@pytest.fixture
def config(tmp_path, save):
    for i in range(3):
        save(tmp_path / f"photos/train/{i}.png", (60, 70), seed=i)
    return DataConfig(
        dataset="clean_folder",
        source=str(tmp_path / "photos"),
        prepared_dir=str(tmp_path / "prepared"),
        patch_size=32,
        degradations=(GaussianNoise(sigma=(20.0, 40.0)),),
    )


def seen_in_training(config, seed, step, batch_size):
    """What `train_step` makes of the batch of this step."""
    model = create_model("gama_ir_tiny", width=4, depth=3, levels=1, blocks_per_level=1)
    state = create_state(model, optax.sgd(1.0), seed, config.patch_size, ema=False)
    batches = training_batches(
        prepare(config).train, patch_size=config.patch_size, batch_size=batch_size, seed=seed, threads=1
    )
    for _ in range(step):
        next(batches)
    return jax.jit(partial(preprocess, config=config))(next(batches), jax.random.fold_in(state.key, step))


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (3, 2)])
def test_the_sheet_shows_what_training_sees(config, seed, step):
    inputs, targets = (np.asarray(images) for images in seen_in_training(config, seed, step, 4))
    sheet = contact_sheet(config, 2, seed, step, batch_size=4)
    scale = 6
    panel = 32 * scale
    gap, caption = module._GAP, module._CAPTION
    assert sheet.shape == (2 * (panel + caption + gap) + gap, 3 * (panel + gap) + gap, 3)
    differences = np.abs(inputs - targets)
    amplification = 2 ** np.floor(-np.log2(np.quantile(differences[:2], 0.97)))
    for row in range(2):
        top = gap + caption + row * (panel + caption + gap)
        panels = []
        for column in range(3):
            left = gap + column * (panel + gap)
            large = sheet[top : top + panel, left : left + panel]
            small = large[::scale, ::scale]
            np.testing.assert_array_equal(large, small.repeat(scale, axis=0).repeat(scale, axis=1))
            panels.append(small)
        for shown, images in zip(panels, (inputs, targets, amplification * differences), strict=True):
            expected = np.rint(255 * np.clip(images[row], 0, 1))
            np.testing.assert_allclose(shown, expected, atol=1)


def test_every_row_is_another_crop_and_the_seed_counts(config):
    first = contact_sheet(config, 2, seed=0, batch_size=4)
    np.testing.assert_array_equal(first, contact_sheet(config, 2, seed=0, batch_size=4))
    assert (first != contact_sheet(config, 2, seed=1, batch_size=4)).any()
    assert (first != contact_sheet(config, 2, seed=0, step=1, batch_size=4)).any()


@pytest.mark.parametrize("count", [0, 5])
def test_more_rows_than_the_batch_has(config, count):
    with pytest.raises(UserError, match=f"from 1 to the 4 crops of a batch, not {count}"):
        contact_sheet(config, count, seed=0, batch_size=4)


@pytest.mark.parametrize(("channels", "views"), [(3, 1), (1, 1), (3, 2)])
def test_panels_of_gray_and_dual_pixel_images(channels, views):
    rng = np.random.default_rng(0)
    targets = rng.random((2, 200, 200, channels), np.float32)
    parts = [np.clip(targets + rng.normal(0, 0.02, targets.shape), 0, 1) for _ in range(views)]
    sheet = module._draw(np.concatenate(parts, axis=-1).astype(np.float32), targets)
    step = 200 + module._GAP
    assert sheet.shape[1] == (views + 2) * step + module._GAP
    top = module._GAP + module._CAPTION
    for column, image in enumerate([*parts, targets]):
        left = module._GAP + column * step
        shown = sheet[top : top + 200, left : left + 200].astype(float)
        np.testing.assert_allclose(shown, np.broadcast_to(255 * image[0], (200, 200, 3)), atol=1)
    captions = sheet[module._GAP : top]
    assert all((captions[:, left : left + 40] < 100).any() for left in range(module._GAP, sheet.shape[1] - 40, step))


def test_pairs_keep_their_inputs(tmp_path, save):
    for name, seed in (("input", 0), ("target", 1)):
        save(tmp_path / f"pairs/train/{name}/a.png", (40, 40), seed=seed)
    config = DataConfig(
        dataset="paired_folder",
        source=str(tmp_path / "pairs"),
        prepared_dir=str(tmp_path / "prepared"),
        patch_size=40,
        augment=False,
    )
    sheet = contact_sheet(config, 1, seed=0, batch_size=2)
    top, left, scale = module._GAP + module._CAPTION, module._GAP, 5
    for column, name in enumerate(("input", "target")):
        start = left + column * (40 * scale + module._GAP)
        shown = sheet[top : top + 40 * scale : scale, start : start + 40 * scale : scale]
        image = cv2.imread(str(tmp_path / f"pairs/train/{name}/a.png"))[..., ::-1]
        np.testing.assert_allclose(shown, image, atol=1)
