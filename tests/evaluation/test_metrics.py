from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from skimage import data

import gamax
from gamax.evaluation.metrics import psnr, ssim_valid


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    image = data.astronaut()
    assert hashlib.sha256(image.tobytes()).hexdigest().startswith("a8c429c18afa7b0f")
    return image


def add_noise(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return np.round(np.clip(image + noise, 0, 255)).astype(np.uint8)


def test_check_figures_of_a_crop(astronaut):
    crop = astronaut[:256, 128:384]
    noisy = add_noise(crop)
    assert noisy.sum() == 29_031_651
    assert round(psnr(noisy, crop, 255), 6) == 30.253999
    assert round(ssim_valid(noisy, crop, 255), 6) == 0.704086


def test_check_figures_of_the_full_image(astronaut):
    noisy = add_noise(astronaut)
    assert noisy.sum() == 90_486_228
    assert round(psnr(noisy, astronaut, 255), 6) == 30.482223
    assert round(ssim_valid(noisy, astronaut, 255), 6) == 0.708432


@pytest.mark.parametrize("pair", ["bsds_noise25", "rain800_test", "astronaut_noise10"])
def test_the_official_implementations_agree(pair, shared_folder):
    from safetensors.numpy import load_file

    folder = shared_folder / "fixtures" / "metrics"
    expected = json.loads((folder / "expected.json").read_text())
    images, figures = load_file(folder / "images.safetensors"), expected["pairs"][pair]
    restored, target = images[f"{pair}.input"], images[f"{pair}.target"]
    tolerances = expected["suggested_tolerances"]
    for border in (0, 4):
        inner = np.s_[border : len(target) - border, border : target.shape[1] - border]
        basicsr = {name: figures["basicsr"][f"{name}_rgb_crop{border}"] for name in ("psnr", "ssim")}
        assert psnr(restored[inner], target[inner], 255) == pytest.approx(
            basicsr["psnr"], abs=tolerances["psnr float64"]
        )
        assert ssim_valid(restored[inner], target[inner], 255) == pytest.approx(
            basicsr["ssim"], abs=tolerances["ssim float64"]
        )


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_the_peak_is_white_whatever_the_type(dtype, peak):
    target = np.zeros((12, 13, 3), dtype)
    restored = target.copy()
    # A tenth of white on every other pixel: a mean squared error of 1/200.
    restored[::2] = np.asarray(peak / 10, dtype)
    error = (float(restored[0, 0, 0]) / peak) ** 2 / 2
    assert psnr(restored, target, peak) == pytest.approx(-10 * np.log10(error), abs=1e-9)


def test_unsigned_differences_do_not_wrap_around():
    low, high = np.full((11, 11, 1), 3, np.uint8), np.full((11, 11, 1), 5, np.uint8)
    assert psnr(low, high, 255) == psnr(high, low, 255) == pytest.approx(20 * np.log10(255 / 2))


def test_equal_images_have_infinite_psnr_and_full_similarity(astronaut):
    assert psnr(astronaut, astronaut.copy(), 255) == float("inf")
    assert ssim_valid(astronaut, astronaut.copy(), 255) == 1


@pytest.mark.parametrize("metric", [psnr, ssim_valid])
def test_different_shapes_are_refused(metric):
    # Shapes that NumPy would broadcast.
    with pytest.raises(ValueError, match=r"\(12, 12, 3\) and \(12, 12, 1\)"):
        metric(np.ones((12, 12, 3)), np.ones((12, 12, 1)), 1)


def test_the_package_offers_both_by_their_short_names():
    assert (gamax.psnr, gamax.ssim) == (psnr, ssim_valid)
