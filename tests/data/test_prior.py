"""The diffusion prior of a dataset goes with its images from the folder to the batch."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from functools import partial

import cv2
import jax
import numpy as np
import pytest

from gamax.config import DataConfig
from gamax.data import contact_sheet as sheets
from gamax.data.datasets import check_channels, prepare, source_examples, training_channels
from gamax.data.examples import order_views
from gamax.data.pipeline import training_batches
from gamax.data.preprocessing import preprocess
from gamax.data.prior import SETTINGS_NAME, check_prior_limit, check_prior_option, prior_path
from gamax.errors import UserError
from gamax.models import create_model
from gamax.models.restormer import Restormer
from gamax.models.swintormer import Swintormer


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture
def paired(tmp_path, save):
    """Makes pairs whose prior is the negative of their input with 16 bits, and their target with the pair's own."""

    def make(dtype=np.uint8, **values):
        for split, shapes in {"train": [(20, 70), (45, 56)], "test": [(24, 30)]}.items():
            for seed, shape in enumerate(shapes):
                source = save(tmp_path / f"pairs/{split}/input/{seed}.png", shape, dtype, seed)
                white = np.iinfo(dtype).max
                write(tmp_path / f"pairs/{split}/target/{seed}.png", white - source)
                prior = 65535 - source.astype(np.uint16) * (65535 // white)
                write(prior_path(tmp_path / "prior", split, str(seed)), prior)
        (tmp_path / "prior" / SETTINGS_NAME).write_text("{}")
        return DataConfig(
            **{
                "dataset": "paired_folder",
                "source": str(tmp_path / "pairs"),
                "prepared_dir": str(tmp_path / "prepared"),
                "prior": str(tmp_path / "prior"),
                "cut_size": 32,
                "cut_stride": 20,
                "patch_size": 24,
                "small_images": "pad",
                **values,
            }
        )

    return make


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_the_prior_stays_on_its_image_through_cuts_crops_flips_and_turns(paired, dtype, encoding):
    config = paired(dtype, encoding=encoding, mixup=0.5)
    dataset = prepare(config)
    whole = dataset.splits["test"][0]["input"]
    assert (whole.shape, whole.dtype) == ((24, 30, 6), np.uint16)
    assert dataset.train[0]["target"].dtype == dtype
    np.testing.assert_array_equal(whole, source_examples(config, "test")[0]["input"])

    crops = partial(training_batches, dataset.train, patch_size=24, batch_size=8, seed=0, threads=2, pad=True)
    with closing(crops()) as batches:
        _, batch = next(batches), next(batches)
    with closing(crops(first_sample=8)) as resumed:
        again = next(resumed)
    for name, images in batch.items():
        np.testing.assert_array_equal(images, again[name])
    inputs, targets = jax.jit(partial(preprocess, config=config))(batch, jax.random.key(0))
    assert inputs.shape == (8, 24, 24, 6)
    # That the images were turned, and not only both left alone.
    assert not np.array_equal(inputs[..., 3:], batch["input"][..., 3:] / np.float32(65535))
    np.testing.assert_allclose(inputs[..., 3:], targets, atol=1e-6)
    np.testing.assert_allclose(1 - inputs[..., :3], targets, atol=1e-6)


def test_8_bit_images_stand_for_the_same_values_beside_a_prior(paired):
    config = paired()
    batches = []
    for prior in (config.prior, None):
        train = prepare(replace(config, prior=prior)).train
        with closing(training_batches(train, patch_size=24, batch_size=4, seed=0, threads=1, pad=True)) as source:
            batches.append(next(source))
    with_prior, without = (batch["input"] for batch in batches)
    assert (with_prior.dtype, without.dtype) == (np.uint16, np.uint8)
    # 65535 is 257 times 255.
    np.testing.assert_array_equal(with_prior[..., :3], 257 * without.astype(np.uint16))


def test_the_pairs_alone_decide_what_is_said_of_a_set(paired):
    config = paired()
    dataset, plain = prepare(config), prepare(replace(config, prior=None))
    assert dataset.psnr_input == plain.psnr_input
    assert dataset.num_images == plain.num_images
    assert training_channels(config) == {"input": 6, "target": 3}


def test_the_fingerprint_follows_the_files_of_the_prior(paired, tmp_path):
    config = paired()
    prints = [prepare(replace(config, prior=None)).fingerprint, prepare(config).fingerprint]
    os.utime(prior_path(tmp_path / "prior", "test", "0"), ns=(0, 0))
    prints.append(prepare(config).fingerprint)
    assert len(set(prints)) == 3
    (tmp_path / "prior").rename(tmp_path / "moved")
    assert prepare(replace(config, prior=str(tmp_path / "moved"))).fingerprint == prints[2]


def test_the_two_views_of_a_camera_come_before_the_prior(tmp_path, save):
    names = ("inputL", "inputR", "target")
    left, right, _ = (
        save(tmp_path / f"DPDD/train/{part}/1.png", (12, 16), np.uint16, i) for i, part in enumerate(names)
    )
    prior = save(prior_path(tmp_path / "prior", "train", "1"), (12, 16), np.uint16, 3)
    (tmp_path / "prior" / SETTINGS_NAME).write_text("{}")
    config = DataConfig(
        dataset="dpdd_dual",
        source=str(tmp_path / "DPDD"),
        prepared_dir=str(tmp_path / "prepared"),
        prior=str(tmp_path / "prior"),
        patch_size=8,
    )
    assert training_channels(config) == {"input": 9, "target": 3}
    stored = prepare(config).train[0]["input"]
    np.testing.assert_array_equal(stored, np.concatenate([left, right, prior], axis=-1))
    given = order_views(stored, Swintormer(dual_pixel=True, prior=True))
    np.testing.assert_array_equal(given, np.concatenate([right, left, prior], axis=-1))
    np.testing.assert_array_equal(order_views(stored[..., :6], Swintormer(dual_pixel=True)), given[..., :6])
    # One view and a prior have as many channels as two views.
    np.testing.assert_array_equal(order_views(stored[..., :6], Swintormer(prior=True)), stored[..., :6])
    np.testing.assert_array_equal(order_views(stored[..., :6], Restormer(dual_pixel=True)), stored[..., :6])


def test_the_sheet_has_a_panel_for_the_prior(paired):
    config = paired(augment=False)
    sheet = sheets.contact_sheet(config, 1, seed=0, batch_size=1)
    scale = 8
    step = 24 * scale + sheets._GAP
    assert sheet.shape[1] == 4 * step + sheets._GAP
    top = sheets._GAP + sheets._CAPTION
    panels = [sheet[top : top + 24 * scale, sheets._GAP + i * step :][:, : 24 * scale] for i in range(3)]
    np.testing.assert_array_equal(panels[1], panels[2])
    np.testing.assert_array_equal(255 - panels[0], panels[2])


def test_a_prior_that_does_not_fit_is_found_before_anything_is_written(paired, tmp_path, save):
    config = paired()
    path = prior_path(tmp_path / "prior", "train", "0")

    def fails(words, config=config):
        with pytest.raises(UserError, match=words) as caught:
            prepare(config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "prepared").exists()

    save(path, (20, 70), np.uint8)
    fails("train/0.png' has 8 bits and 3 channel.s., but a prior is 16-bit RGB")
    save(path, (20, 70, 1), np.uint16)
    fails("train/0.png' has 16 bits and 1 channel")
    save(path, (20, 69), np.uint16)
    fails(
        "differ in size .69x20 and 70x20 pixels.; make the prior again|.70x20 and 69x20 pixels.; make the prior again"
    )
    path.unlink()
    fails("no prior '.*train/0.png' for '.*0.png'; run `gamax data prior` again")
    (tmp_path / "prior" / SETTINGS_NAME).unlink()
    fails("no prior in '.*prior' .it has no prior.json.; make one with `gamax data prior`")
    (tmp_path / "prior" / SETTINGS_NAME).write_text("{}")
    clean = replace(config, dataset="clean_folder", source=str(tmp_path / "pairs/train/target"))
    fails("a prior is made of the inputs of a paired dataset, but '.*0.png' is a clean image alone", clean)


@pytest.mark.parametrize(
    ("model", "prior", "channels", "sentence"),
    [
        (Swintormer(prior=True), None, 3, "this Swintormer takes a diffusion prior.*set data.prior to a folder"),
        (Swintormer(), "prior", 6, "data.prior is set, but this Swintormer takes no diffusion prior"),
        (
            Swintormer(dual_pixel=True),
            None,
            3,
            "takes 6 channels, but data.dataset d gives it 3: choose a dataset with",
        ),
        (
            Swintormer(prior=True),
            "prior",
            9,
            "takes 6 channels.* gives it 9, 3 of them the prior: choose a network for",
        ),
        (Restormer(image_channels=1), None, 3, "takes 1 channels.* gives it 3: choose another network or dataset"),
    ],
)
def test_a_network_for_other_channels_is_told_what_is_missing(model, prior, channels, sentence):
    with pytest.raises(UserError, match=sentence):
        check_channels(model, DataConfig("d", prior=prior), {"input": channels, "target": 3})


def test_networks_take_the_channels_of_their_data():
    for model, prior, channels in (
        (Restormer(), None, 3),
        (Restormer(dual_pixel=True), None, 6),
        (Swintormer(prior=True), "prior", 6),
        (Swintormer(dual_pixel=True, prior=True), "prior", 9),
    ):
        check_channels(model, DataConfig("d", prior=prior), {"input": channels, "target": 3})
    check_prior_option(Swintormer(prior=True), "folder", "--prior")


def test_a_network_that_decodes_its_prior_must_know_its_limit():
    network = create_model("swintormer_prior_decoder")
    with pytest.raises(
        UserError, match=r"latents of 'P' go to plus and minus 2.5, .* as if to 1.0: .* prior_limit=2.5"
    ):
        check_prior_limit(network, {"limit": 2.5}, "P")
    check_prior_limit(network.clone(prior_limit=2.5), {"limit": 2.5}, "P")
    # Another program has made it, or nothing is decoded.
    check_prior_limit(network, {}, "P")
    check_prior_limit(Swintormer(prior=True), {"limit": 2.5}, "P")
