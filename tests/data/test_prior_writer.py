"""The diffusion prior of a dataset: made once, kept, completed after an interruption, refused where it is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from gamax.config import DataConfig
from gamax.data.images import read_image
from gamax.data.prior_sampler import PriorSampler
from gamax.data.prior_writer import write_priors
from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.errors import UserError

OPTIONS: dict[str, Any] = {"steps": 2, "window": 8, "stride": 8, "windows_at_once": 1}
# All are padded to 8x16, so that one program is compiled.
SIZES = {"train/b": (8, 12), "train/a": (6, 16), "train/c": (8, 16), "test/d": (8, 12)}


@pytest.fixture(scope="module")
def network(random_params) -> tuple[LatentDiffusion, Any]:
    """A diffusion model smaller than any named one."""
    model = LatentDiffusion(
        first_stage=Autoencoder(width=8, multipliers=(1,), blocks=1, codes=4),
        unet=Denoiser(width=8, head_channels=8, multipliers=(1,), blocks=1, attention_factors=()),
    )
    return model, random_params(model, (1, 8, 8, 3))


@pytest.fixture
def weights(tmp_path, network, monkeypatch) -> Path:
    """Stands for the weight file of that model, which has no name under which it could be saved."""
    monkeypatch.setattr(
        PriorSampler, "from_weights", classmethod(lambda cls, path, **options: cls(*network, **options))
    )
    path = tmp_path / "diffusion.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def pairs(tmp_path, save) -> DataConfig:
    for seed, (place, shape) in enumerate(SIZES.items()):
        split, name = place.split("/")
        for part, side in enumerate(("input", "target")):
            save(tmp_path / "pairs" / split / side / f"{name}.png", shape, seed=10 * seed + part)
    return DataConfig(dataset="paired_folder", source=str(tmp_path / "pairs"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*"))}


def test_every_input_has_its_prior_beside_the_source(tmp_path, pairs, weights, network):
    written = write_priors(pairs, weights, **OPTIONS)
    assert written.folder == tmp_path / "pairs_prior"
    sampler = PriorSampler(*network, **OPTIONS)
    for place, shape in SIZES.items():
        split, name = place.split("/")
        image = read_image(tmp_path / "pairs" / split / "input" / f"{name}.png")
        prior = read_image(written.folder / f"{place}.png")
        assert prior.shape == (*shape, 3)
        np.testing.assert_array_equal(prior, sampler(image))
    settings = json.loads((written.folder / "prior.json").read_text())
    assert settings["dataset"] == "paired_folder"
    assert settings.items() >= sampler.settings().items()
    train, test = written.splits
    assert (train.name, train.images, train.made, test.images, test.made) == ("train", 3, 3, 1, 1)
    latents = 2 * (prior / 65535) - 1
    assert test.deviation == pytest.approx(latents.std(), rel=1e-4)
    assert test.clamped == np.mean(np.abs(latents) == 1)
    assert test.num_bytes == (written.folder / "test/d.png").stat().st_size
    # A row for every example, since there are four, of three panels.
    height, width, _ = read_image(written.folder / "prior.png").shape
    assert height > width


def test_work_that_was_interrupted_goes_on_and_ends_the_same(tmp_path, pairs, weights, monkeypatch):
    whole = write_priors(pairs, weights, tmp_path / "whole", **OPTIONS).folder
    sample, order, cut = PriorSampler.__call__, [], tmp_path / "cut"
    # As if the first start had been killed before anything was finished.
    cut.mkdir()
    (cut / ".prior.json.partial").write_text("{")

    def interrupted(sampler, image, progress):
        order.append(image.shape[:2])
        if len(order) == 3:
            raise KeyboardInterrupt
        return sample(sampler, image, progress)

    with monkeypatch.context() as patch:
        patch.setattr(PriorSampler, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_priors(pairs, weights, cut, **OPTIONS)
    assert order == [(8, 16), (8, 12), (8, 12)], "images of one size come one after the other"
    assert len(contents(cut)) == 2
    # What a kill while writing leaves, and what no kill leaves.
    (cut / "train/.a.png.partial").write_bytes(b"\x89PNG")
    (cut / "train/c.png").write_bytes((whole / "train/c.png").read_bytes()[:-20])
    kept = (cut / "train/b.png").stat().st_mtime_ns
    written = write_priors(pairs, weights, cut, **OPTIONS)
    assert [split.made for split in written.splits] == [2, 1]
    assert contents(cut) == contents(whole)
    assert (cut / "train/b.png").stat().st_mtime_ns == kept

    cv2.imwrite(str(cut / "train/a.png"), np.zeros((6, 16, 3), np.uint8))
    cv2.imwrite(str(cut / "train/b.png"), np.zeros((8, 8, 3), np.uint16))
    assert [split.made for split in write_priors(pairs, weights, cut, **OPTIONS).splits] == [2, 0]
    assert contents(cut) == contents(whole)


def test_another_prior_is_neither_replaced_nor_mixed(tmp_path, pairs, weights):
    folder = write_priors(pairs, weights, splits=["test"], **OPTIONS).folder
    before = {**contents(folder), "settings": (folder / "prior.json").read_bytes()}
    assert list(before) == ["test/d.png", "settings"]
    with pytest.raises(UserError, match="pairs_prior' holds a prior of seed 42, not 7; choose another --output"):
        write_priors(pairs, weights, **OPTIONS, seed=7)
    shutil.copytree(tmp_path / "pairs", tmp_path / "copy")
    with pytest.raises(UserError, match=r"a prior of source .*pairs, not .*copy"):
        write_priors(DataConfig(dataset="paired_folder", source=str(tmp_path / "copy")), weights, folder, **OPTIONS)
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match="a prior of weights_sha256"):
        write_priors(pairs, weights, **OPTIONS)
    assert {**contents(folder), "settings": (folder / "prior.json").read_bytes()} == before
    (folder / "prior.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        write_priors(pairs, weights, **OPTIONS)


def test_what_is_wrong_is_found_before_anything_is_written(tmp_path, pairs, weights, save):
    source = Path(pairs.source)
    with pytest.raises(UserError, match="pairs' is neither empty nor a prior"):
        write_priors(pairs, weights, source, **OPTIONS)
    with pytest.raises(UserError, match=r"no split 'tset' .did you mean 'test'"):
        write_priors(pairs, weights, splits=["tset"], **OPTIONS)
    with pytest.raises(UserError, match="paired_folder needs --source"):
        write_priors(DataConfig(dataset="paired_folder"), weights, **OPTIONS)
    clean = DataConfig(dataset="clean_folder", source=str(source / "train/target"))
    with pytest.raises(UserError, match=r"clean images only .* degraded anew"):
        write_priors(clean, weights, **OPTIONS)
    with pytest.raises(UserError, match="steps of a prior must be from 1"):
        write_priors(pairs, weights, steps=0)
    save(source / "test/target/d.png", (9, 12))
    with pytest.raises(UserError, match="differ in size"):
        write_priors(pairs, weights, tmp_path / "none", **OPTIONS)
    (source / "test/input/d.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"d.png' is empty"):
        write_priors(pairs, weights, tmp_path / "none", **OPTIONS)
    assert not (tmp_path / "none").exists()


def test_two_views_are_sampled_together_into_the_folder_of_the_configuration(tmp_path, weights, network, save):
    views = []
    for seed, part in enumerate(("test_l/source/1_L", "test_r/source/1_R", "test_c/target/1")):
        views.append(save(tmp_path / "dpdd" / f"{part}.png", (8, 12), np.uint16, seed))
    data = DataConfig(dataset="dpdd_dual", source=str(tmp_path / "dpdd"), prior=str(tmp_path / "mine"))
    assert write_priors(data, weights, **OPTIONS).folder == tmp_path / "mine"
    expected = PriorSampler(*network, **OPTIONS)(np.concatenate(views[:2], axis=-1))
    np.testing.assert_array_equal(read_image(tmp_path / "mine/test/1.png"), expected)


def test_a_device_without_memory_gets_a_remedy(pairs, weights, monkeypatch):
    def fail(*arguments: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr("gamax.data.prior_sampler._step", fail)
    with pytest.raises(UserError, match=r"c.png': .* of 16x8 pixels does not fit .* less than 1 windows at once"):
        write_priors(pairs, weights, **OPTIONS)


def test_the_sampler_that_made_it_comes_back(pairs, weights, tmp_path):
    folder = write_priors(pairs, weights, splits=("test",), **OPTIONS).folder
    image = read_image(tmp_path / "pairs" / "test" / "input" / "d.png")
    sampler = PriorSampler.from_stored(folder, windows_at_once=1)
    np.testing.assert_array_equal(sampler(image), read_image(folder / "test" / "d.png"))

    weights.write_bytes(b"others")
    with pytest.raises(UserError, match="has changed since the prior in"):
        PriorSampler.from_stored(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"that are not there: .*; put them back, or name their new place"):
        PriorSampler.from_stored(folder)
    (folder / "prior.json").write_text('{"made by": "another program"}')
    with pytest.raises(UserError, match=r"was not written by .*: its prior\.json has no weights; name"):
        PriorSampler.from_stored(folder)


def test_a_diverged_model_leaves_no_prior(pairs, weights, network, monkeypatch):
    model, params = network
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    monkeypatch.setattr(
        PriorSampler, "from_weights", classmethod(lambda cls, path, **options: cls(model, broken, **options))
    )
    with pytest.raises(UserError, match=r"c\.png': the latents are not finite: the diffusion model has diverged"):
        write_priors(pairs, weights, **OPTIONS)
    assert not list((Path(str(pairs.source)).with_name("pairs_prior")).glob("*/*.png"))
