"""Photographs with more beside them: the prior of a diffusion model, the right view of a dual-pixel camera."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest

from gamax.cli import main
from gamax.data.images import read_image, to_rgb, write_image
from gamax.data.metadata import read_header
from gamax.errors import UserError
from gamax.evaluation import restore_files as module
from gamax.evaluation.restore_files import restore_files
from gamax.evaluation.restorer import Restorer
from gamax.interop.weights import save_weights
from gamax.models import create_model

SWINTORMER = {"width": 8, "blocks": [0, 0, 0, 0], "refinement_blocks": 0, "window_size": 2}
RESTORMER = {"width": 8, "blocks": [0, 0, 0, 0], "refinement_blocks": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "swintormer": SWINTORMER,
    "swintormer_prior": SWINTORMER,
    "swintormer_dual_pixel": SWINTORMER,
    "swintormer_dual_pixel_prior": SWINTORMER,
    "restormer_dual_pixel": RESTORMER,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, random_params) -> dict[str, Path]:
    """Of small networks that change every image, by name."""
    folder = tmp_path_factory.mktemp("weights")
    for name, options in OPTIONS.items():
        model = create_model(name, **options)
        # Small, so that noise stays an image.
        params = jax.tree.map(lambda leaf: 0.2 * leaf, random_params(model, (1, 32, 32, model.input_channels)))
        save_weights(folder / f"{name}.safetensors", params, name, options)
    return {name: folder / f"{name}.safetensors" for name in OPTIONS}


class InvertedPhotograph:
    """Stands for a sampler: its prior is the inverted photograph, of two views half of each; it keeps what it is given.

    A new one is needed for every test, as it is a class that keeps.
    """

    seed = 42
    largest = 10**6
    """Pixels that fit the memory."""
    seen: list[np.ndarray]
    at_once: list[int]

    @classmethod
    def from_weights(cls, run_or_file: Path, windows_at_once: int) -> InvertedPhotograph:
        assert run_or_file.is_file()
        cls.at_once.append(windows_at_once)
        return cls()

    @classmethod
    def from_stored(cls, folder: Path, windows_at_once: int) -> InvertedPhotograph:
        assert folder.is_dir()
        cls.at_once.append(windows_at_once)
        return cls()

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "window": 32}

    def __call__(self, image: np.ndarray, progress: Any) -> np.ndarray:
        self.seen.append(image)
        progress(0.5)
        if image.shape[0] * image.shape[1] > self.largest:
            raise UserError("sampling does not fit the memory of the device")
        prior = inverted(image)
        progress(1.0)
        return prior


def inverted(image: np.ndarray) -> np.ndarray:
    wide = in_16_bits(image)
    return 65535 - (wide if wide.shape[2] == 3 else wide[..., :3] // 2 + wide[..., 3:] // 2)


def in_16_bits(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257 if image.dtype == np.uint8 else image


@pytest.fixture
def diffusion(tmp_path, monkeypatch) -> Path:
    """Weights of a diffusion model that nobody reads."""
    sampler = type("Sampler", (InvertedPhotograph,), {"seen": [], "at_once": []})
    monkeypatch.setattr("gamax.data.prior_sampler.PriorSampler", sampler)
    (tmp_path / "diffusion.safetensors").write_bytes(b"weights")
    return tmp_path / "diffusion.safetensors"


def photograph(channels: int = 3, dtype: type = np.uint8, seed: int = 0, height: int = 30, width: int = 37):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def fill(folder: Path, **photographs: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in photographs.items():
        write_image(folder / f"{name}.png", image)
    return [folder / f"{name}.png" for name in photographs]


def test_the_prior_of_every_photograph_goes_behind_it(tmp_path, weights, diffusion):
    kinds = [(3, np.uint8), (3, np.uint16), (4, np.uint8), (4, np.uint16), (1, np.uint8), (1, np.uint16)]
    images = {f"{channels}{np.dtype(dtype).name}": photograph(channels, dtype) for channels, dtype in kinds}
    sources = fill(tmp_path / "in", **images)
    targets = restore_files(sources, tmp_path / "out", weights["swintormer_prior"], prior=diffusion)
    restorer = Restorer.from_weights(weights["swintormer_prior"])
    for target, image in zip(targets, images.values(), strict=True):
        restored, rgb = read_image(target), to_rgb(image)
        assert (restored.shape, restored.dtype) == (image.shape, image.dtype)
        expected = restorer(np.concatenate([in_16_bits(rgb), inverted(rgb)], 2)).astype(float)
        without = restorer(np.concatenate([in_16_bits(rgb), np.zeros_like(inverted(rgb))], 2))
        assert np.abs(expected - without).mean() > 0.01 * 65535
        expected = expected.mean(2, keepdims=True) if image.shape[2] == 1 else expected
        expected *= np.iinfo(image.dtype).max / 65535
        np.testing.assert_allclose(restored[..., :3], expected, atol=0.51)
        np.testing.assert_array_equal(restored[..., 3:], image[..., 3:])


def test_gray_with_alpha_and_its_prior_come_out_gray(tmp_path, weights, diffusion):
    gray = photograph(1)
    picture = PIL.Image.fromarray(gray[..., 0])
    picture.putalpha(PIL.Image.fromarray(gray[::-1, :, 0]))
    picture.save(tmp_path / "a.png")
    (target,) = restore_files([tmp_path / "a.png"], None, weights["swintormer_prior"], prior=diffusion)
    restored = read_image(target)
    assert np.ptp(restored[..., :3], axis=2).max() == 0
    np.testing.assert_array_equal(restored[..., 3:], gray[::-1])


def test_the_prior_is_also_there_in_tiles_and_progress_names_it(tmp_path, weights, diffusion, monkeypatch):
    notes = []

    @contextmanager
    def progress_bar(description: str, total: int, unit: str, **_: Any):
        yield lambda done, note="": notes.append((done / total, note))

    monkeypatch.setattr(module, "progress_bar", progress_bar)
    (source,) = fill(tmp_path, a=photograph(dtype=np.uint16, height=90, width=40))
    restore_files([source], tmp_path / "out.png", weights["swintormer_prior"], prior=diffusion, tile="64")
    image = read_image(source)
    expected = Restorer.from_weights(weights["swintormer_prior"], tile=64)(np.concatenate([image, inverted(image)], 2))
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), expected)
    assert notes[0] == (pytest.approx(module.SAMPLING_SHARE / 2), "0 of 1 images, the prior of a.png")
    assert notes[-1] == (1.0, "1 of 1 images, a.png")
    assert [done for done, _ in notes] == sorted(done for done, _ in notes)


@pytest.mark.parametrize("name", ["swintormer_dual_pixel", "restormer_dual_pixel"])
def test_two_views_go_to_the_network_in_its_order(tmp_path, weights, monkeypatch, name):
    left, right = photograph(4, seed=1), photograph(3, seed=2)
    sources = [*fill(tmp_path / "left", photo=left), *fill(tmp_path / "right", photo=right)]
    exif = PIL.Image.Exif()
    exif[272] = "Camera"
    PIL.Image.fromarray(left).save(sources[0], exif=exif)
    command = ["restore", sources[0], "--right", sources[1], "-o", tmp_path / "out.png", "--weights", weights[name]]
    monkeypatch.setattr(sys, "argv", ["gamax", *map(str, command)])
    main()
    views = [right, left[..., :3]] if name.startswith("swintormer") else [left[..., :3], right]
    restored = read_image(tmp_path / "out.png")
    np.testing.assert_array_equal(
        restored[..., :3], Restorer.from_weights(weights[name])(np.concatenate(views, axis=2))
    )
    np.testing.assert_array_equal(restored[..., 3], left[..., 3])
    with PIL.Image.open(tmp_path / "out.png") as picture:
        assert picture.getexif()[272] == "Camera"


def test_a_prior_of_two_views_is_made_of_left_and_right(tmp_path, weights, diffusion):
    from gamax.data.prior_sampler import PriorSampler

    left, right = photograph(seed=1), photograph(seed=2)
    (source,), (view,) = fill(tmp_path / "left", a=left), fill(tmp_path / "right", a=right)
    name = "swintormer_dual_pixel_prior"
    (target,) = restore_files([source], tmp_path / "out.png", weights[name], prior=diffusion, right=view)
    (seen,) = PriorSampler.seen
    np.testing.assert_array_equal(seen, np.concatenate([left, right], 2))
    given = np.concatenate([in_16_bits(right), in_16_bits(left), inverted(seen)], 2)
    expected = Restorer.from_weights(weights[name])(given)
    np.testing.assert_array_equal(read_image(target), np.rint(expected / 257))


def test_right_views_are_found_by_their_names(tmp_path, weights):
    right = fill(tmp_path / "right", a=photograph(seed=3), b_R=photograph(seed=4))
    left = fill(tmp_path / "left", a=photograph(seed=1), b_L=photograph(seed=2))
    network = weights["swintormer_dual_pixel"]
    for target, source, view in zip(
        restore_files(left, tmp_path / "out", network, right=tmp_path / "right"), left, right, strict=True
    ):
        (alone,) = restore_files([source], tmp_path / f"alone_{source.name}", network, right=view)
        np.testing.assert_array_equal(read_image(target), read_image(alone))
    # Both views in one folder: neither is its own partner.
    both = fill(tmp_path / "both", c_L=photograph(seed=1), c_R=photograph(seed=3), d_L=photograph(seed=5))
    with pytest.raises(UserError, match=r"d_L.png' has no right view '.*d_R.png': copy it there"):
        restore_files([both[2]], tmp_path / "d.png", network, right=tmp_path / "both")
    with pytest.raises(UserError, match=r"a.png' is the left view itself: .* another folder, or end .* in _L and"):
        restore_files([left[0]], tmp_path / "a.png", network, right=tmp_path / "left")
    (target,) = restore_files([both[0]], tmp_path / "c.png", network, right=tmp_path / "both")
    assert target.is_file()


def test_views_that_do_not_fit_stop_no_other(tmp_path, weights, capsys):
    left = fill(tmp_path / "left", a=photograph(), b=photograph(seed=1), c=photograph(dtype=np.uint16), d=photograph())
    fill(tmp_path / "right", a=photograph(), b=photograph(height=20), c=photograph())
    with pytest.raises(UserError, match="3 of 4 images could not be restored"):
        restore_files(left, tmp_path / "out", weights["swintormer_dual_pixel"], right=tmp_path / "right")
    printed = capsys.readouterr().out
    assert "b.png' has 37x20 pixels of uint8, but the left one 37x30 pixels of uint8" in printed
    assert "c.png' has 37x30 pixels of uint8, but the left one 37x30 pixels of uint16" in printed
    assert "d.png' has no right view" in printed
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("swintormer_prior", {}, "takes a diffusion prior of the image: name the diffusion model with --prior"),
        ("swintormer", {"prior": True}, "takes no diffusion prior: leave out --prior"),
        ("swintormer_dual_pixel", {}, "takes the two views .* name the right one with --right"),
        ("swintormer_dual_pixel", {"prior": True, "right": "in"}, "takes no diffusion prior"),
        ("swintormer_dual_pixel_prior", {"right": "in"}, "takes a diffusion prior"),
        ("swintormer", {"right": "in"}, "takes one view: leave out --right"),
        ("swintormer_prior", {"prior": True, "batch_size": 2}, "--batch-size does not go with --prior"),
        ("swintormer_prior", {"prior": True, "compare_tiling": True}, "--compare-tiling does not go with --prior"),
        ("swintormer_dual_pixel", {"right": "nowhere.png"}, "no right view '.*nowhere.png'"),
        ("swintormer_dual_pixel", {"right": "in/a.png"}, "2 left views: --right must be the folder"),
    ],
)
def test_what_a_network_does_not_take_is_refused_first(tmp_path, weights, diffusion, network, options, words):
    sources = fill(tmp_path / "in", a=photograph(), b=photograph())
    options = {name: tmp_path / value if name == "right" else value for name, value in options.items()}
    options |= {"prior": diffusion} if "prior" in options else {}
    with pytest.raises(UserError, match=words):
        restore_files(sources, tmp_path / "out", weights[network], **options)
    assert not (tmp_path / "out").exists()


def test_the_left_view_is_no_right_one(tmp_path, weights):
    (source,) = fill(tmp_path / "in", a=photograph())
    with pytest.raises(UserError, match=r"--right '.*a.png' is the left view itself; name the right one"):
        restore_files([source], tmp_path / "out.png", weights["swintormer_dual_pixel"], right=source)


def test_right_views_are_not_written_over(tmp_path, weights):
    sources = fill(tmp_path / "left", a=photograph(), b=photograph())
    fill(tmp_path / "right", a=photograph(), b=photograph())
    with pytest.raises(UserError, match="right' holds the images to restore; choose another folder"):
        restore_files(
            sources, tmp_path / "right", weights["swintormer_dual_pixel"], right=tmp_path / "right", overwrite=True
        )


@pytest.mark.parametrize("change", ["prior", "settings", "right"])
def test_another_prior_or_right_view_makes_another_photograph(tmp_path, weights, diffusion, capsys, change):
    from gamax.data.prior_sampler import PriorSampler

    sources = fill(tmp_path / "left", a=photograph(), b=photograph(seed=1))
    rights = fill(tmp_path / "right", a=photograph(seed=2), b=photograph(seed=3))
    inputs = {"prior": diffusion, "right": tmp_path / "right"}
    restore = [sources, tmp_path / "out", weights["swintormer_dual_pixel_prior"]]
    restore_files(*restore, **inputs)
    restore_files(*restore, **inputs)
    assert "2 of 2 are restored already" in capsys.readouterr().out
    assert len(PriorSampler.seen) == 2
    if change == "prior":
        diffusion.write_bytes(b"other weights")
    if change == "settings":
        PriorSampler.seed = 7
    if change == "right":
        write_image(rights[1], photograph(seed=4))
    with pytest.raises(UserError, match=r"exists already and was made from something else"):
        restore_files(*restore, **inputs)
    restore_files(*restore, **inputs, overwrite=True)
    assert len(PriorSampler.seen) == (3 if change == "right" else 4)
    lines = [json.loads(line) for line in (tmp_path / "out/restored.jsonl").read_text().splitlines() if line]
    assert {line["settings"]["prior"]["seed"] for line in lines} == {42, PriorSampler.seed}
    assert {line["right"] for line in lines} == {str(path) for path in rights}
    assert read_header(tmp_path / "out/b.png").width == 37


def test_the_largest_prior_comes_first_and_one_without_memory_stops_no_other(tmp_path, weights, diffusion, capsys):
    from gamax.data.prior_sampler import PriorSampler

    # Padded for sampling to 32x64, 64x32, 32x64, 96x64 and 32x64 pixels; the last but one is restored in tiles.
    sizes = {"a": (30, 37), "b": (60, 20), "c": (20, 50), "d": (90, 40), "e": (30, 37)}
    sources = fill(tmp_path / "in", **{name: photograph(height=h, width=w) for name, (h, w) in sizes.items()})
    PriorSampler.largest = 3000
    with pytest.raises(UserError, match="1 of 5 images could not be restored"):
        restore_files(sources, tmp_path / "out", weights["swintormer_prior"], prior=diffusion, tile="64")
    assert [image.shape[:2] for image in PriorSampler.seen] == [sizes[name] for name in "daceb"]
    assert "not restored: sampling does not fit the memory of the device" in capsys.readouterr().out
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == ["a", "b", "c", "e"]


def test_windows_at_once_reach_the_sampler_and_make_no_other_photograph(
    tmp_path, weights, diffusion, monkeypatch, capsys
):
    from gamax.data.prior_sampler import PriorSampler

    sources = fill(tmp_path / "in", a=photograph())
    stored = tmp_path / "stored"
    stored.mkdir()
    digest = hashlib.sha256(diffusion.read_bytes()).hexdigest()
    (stored / "prior.json").write_text(json.dumps({"weights_sha256": digest}))
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights["swintormer_prior"], "--prior"]
    monkeypatch.setattr(sys, "argv", ["gamax", *map(str, command), str(diffusion), "--windows-at-once", "2"])
    main()
    assert "with the settings of the authors; a folder of `gamax data prior` brings" in capsys.readouterr().out
    restore_files(sources, tmp_path / "out", weights["swintormer_prior"], prior=stored, windows_at_once=3)
    printed = capsys.readouterr().out
    assert "1 of 1 are restored already" in printed
    assert "authors" not in printed
    restore_files(sources, tmp_path / "out", weights["swintormer_prior"], prior=diffusion)
    assert PriorSampler.at_once == [2, 3, 8]
    assert len(PriorSampler.seen) == 1
