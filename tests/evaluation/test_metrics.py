from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import data
from skimage.metrics import structural_similarity

import gamax
from gamax.errors import UserError
from gamax.evaluation.metrics import (
    METRICS,
    PLANES,
    SMALLEST_SIDE,
    channel_mix,
    mae,
    psnr,
    ssim_3d,
    ssim_downsampled,
    ssim_replicate,
    ssim_uniform,
    ssim_valid,
    ssim_valid_map,
    y_full_range,
    y_studio,
)

SSIM = [name for name in METRICS if name.startswith("ssim")]
CHECK_FIGURES = {
    # metric, plane: of the crop, of the full image
    ("psnr", "rgb"): (30.253999, 30.482223),
    ("psnr", "y-studio"): (35.049772, 35.183951),
    ("psnr", "y-studio-rounded"): (35.014015, 35.143728),
    ("psnr", "y-full-range"): (33.727850, 33.862030),
    ("ssim-2d-valid", "rgb"): (0.704086, 0.708432),
    ("ssim-2d-replicate", "rgb"): (0.703212, 0.704903),
    ("ssim-3d-rgb", "rgb"): (0.795324, 0.811639),
    ("ssim-uniform-7x7", "rgb"): (0.714529, 0.720532),
    ("ssim-wang-downsampled", "rgb"): (0.704086, 0.887252),
    ("ssim-2d-valid", "y-studio"): (0.859026, 0.879349),
    ("ssim-2d-valid", "y-studio-rounded"): (0.858247, 0.878407),
    ("ssim-2d-replicate", "y-studio"): (0.858010, 0.878087),
    ("mae", "rgb"): (0.024178, 0.023026),
}


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    image = data.astronaut()
    assert hashlib.sha256(image.tobytes()).hexdigest().startswith("a8c429c18afa7b0f")
    return image


def add_noise(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return np.round(np.clip(image + noise, 0, 255)).astype(np.uint8)


def random_pair(shape: tuple[int, ...], peak: float = 255, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, peak, shape)
    return np.clip(target + rng.normal(0, peak / 10, shape), 0, peak), target


@pytest.mark.parametrize(("metric", "plane"), CHECK_FIGURES)
def test_check_figures(astronaut, metric, plane):
    crop = astronaut[:256, 128:384]
    for image, pixel_sum, figure in zip(
        (crop, astronaut), (29_031_651, 90_486_228), CHECK_FIGURES[metric, plane], strict=True
    ):
        noisy = add_noise(image)
        assert noisy.sum() == pixel_sum
        assert round(METRICS[metric](PLANES[plane](noisy, 255), PLANES[plane](image, 255), 255), 6) == figure


def test_check_figures_of_quantisation(astronaut):
    crop = astronaut[:256, 128:384]
    rng = np.random.default_rng(0)
    rng.normal(0, 8, crop.shape)
    predicted = np.clip(crop + rng.normal(0, 2.5, crop.shape), 0, 255)
    figures = [round(psnr(quantised, crop, 255), 6) for quantised in (predicted, predicted.round(), predicted // 1)]
    assert figures == [40.284019, 40.222926, 40.102008]


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("pair", ["bsds_noise25", "rain800_test", "astronaut_noise10"])
def test_the_official_implementations_agree(pair, border, shared_folder):
    from safetensors.numpy import load_file

    folder = shared_folder / "fixtures" / "metrics"
    expected = json.loads((folder / "expected.json").read_text())
    images, figures = load_file(folder / "images.safetensors"), expected["pairs"][pair]
    allowed = expected["suggested_tolerances"]
    allowed["psnr_y"] = allowed["psnr_y (float32 conversion)"]
    inner = np.s_[border:-border, border:-border] if border else np.s_[:]
    rgb = images[f"{pair}.input"][inner], images[f"{pair}.target"][inner]
    luma = [y_studio(image, 255) for image in rgb]

    def check(group: str, name: str, value: float, tolerance: str) -> None:
        assert value == pytest.approx(figures[group][name], abs=allowed[tolerance]), name

    check("basicsr", f"psnr_rgb_crop{border}", psnr(*rgb, 255), "psnr float64")
    check("basicsr", f"ssim_rgb_crop{border}", ssim_valid(*rgb, 255), "ssim float64")
    check("basicsr", f"psnr_y_crop{border}", psnr(*luma, 255), "psnr_y")
    check("basicsr", f"ssim_y_crop{border}", ssim_valid(*luma, 255), "ssim_y")
    # What the tensor versions add to the mean squared error.
    check("basicsr", f"psnr_pt_rgb_crop{border}", with_epsilon(psnr(*rgb, 255)), "psnr float64")
    check("basicsr", f"psnr_pt_y_crop{border}", with_epsilon(psnr(*luma, 255)), "psnr_y")
    check("basicsr", f"ssim_pt_rgb_crop{border}", ssim_valid(*rgb, 255), "ssim float64")
    check("basicsr", f"ssim_pt_y_crop{border}", ssim_valid(*luma, 255), "ssim_y")
    check("nafnet", f"psnr_rgb_crop{border}", psnr(*rgb, 255), "psnr float64")
    check("nafnet", f"ssim3d_rgb_crop{border}_float64", ssim_3d(*rgb, 255), "ssim float64")
    check("nafnet", f"ssim3d_rgb_crop{border}_float32", ssim_3d(*rgb, 255), "ssim3d float32")
    check("nafnet", f"ssim_y_replicate_crop{border}", ssim_replicate(*luma, 255), "ssim_y")
    if border == 0:
        units = [image / np.float32(255) for image in rgb]
        swapped = [y_studio(image[..., ::-1], 255) for image in rgb]
        check("nafnet", "ssim3d_rgb_crop0_range01_float32", ssim_3d(*units, 1), "ssim3d_range01_float32")
        check("basicsr", "trap_psnr_y_crop0_if_rgb_is_passed_as_bgr", psnr(*swapped, 255), "psnr_y")
        check("skimage", "ssim_default_7x7", ssim_uniform(*rgb, 255), "skimage")
        check("skimage", "ssim_default_7x7_float01", ssim_uniform(*(image / 255 for image in rgb), 1), "skimage")
        check("skimage", "ssim_gaussian_sigma1.5_population_cov", ssim_valid(*rgb, 255), "skimage")
        check("skimage", "psnr", psnr(*rgb, 255), "skimage")
        check("skimage", "mae_rgb_255", 255 * mae(*rgb, 255), "skimage")


def with_epsilon(decibels: float) -> float:
    return -10 * math.log10(10 ** (-decibels / 10) + 1e-8)


@pytest.mark.parametrize(("shape", "peak"), [((11, 11, 1), 1), ((12, 40, 3), 255), ((31, 17, 4), 65535)])
def test_scikit_image_agrees(shape, peak):
    restored, target = random_pair(shape, peak)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for metric, options in ((ssim_valid, gaussian), (ssim_uniform, {})):
        expected = structural_similarity(restored, target, data_range=peak, channel_axis=-1, **options)
        assert metric(restored, target, peak) == pytest.approx(expected, abs=1e-12)


WINDOW = np.array([math.exp(-(offset**2) / 4.5) for offset in range(-5, 6)])
WINDOW /= WINDOW.sum()
WINDOW_2D = np.multiply.outer(WINDOW, WINDOW)[..., np.newaxis]
WINDOW_3D = np.multiply.outer(np.multiply.outer(WINDOW, WINDOW), WINDOW)


def window_by_window(restored: np.ndarray, target: np.ndarray, peak: float, weights: np.ndarray) -> np.ndarray:
    """SSIM from its definition: every window that fits in, variances as sums of squares around the mean."""
    places = np.subtract(target.shape, weights.shape) + 1
    similarity = np.zeros(places)
    for place in np.ndindex(*places):
        window = tuple(slice(start, start + size) for start, size in zip(place, weights.shape, strict=True))
        x, y = restored[window], target[window]
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + (0.01 * peak) ** 2) / (mean_x**2 + mean_y**2 + (0.01 * peak) ** 2)
        structure = (2 * covariance + (0.03 * peak) ** 2) / (var_x + var_y + (0.03 * peak) ** 2)
        similarity[place] = luminance * structure
    return similarity


@pytest.mark.parametrize(
    ("metric", "weights", "continued"),
    [
        (ssim_valid, WINDOW_2D, (0, 0, 0)),
        (ssim_replicate, WINDOW_2D, (5, 5, 0)),
        (ssim_3d, WINDOW_3D, (5, 5, 5)),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_windows_taken_one_by_one_agree(metric, weights, continued, channels):
    padding = [(pixels, pixels) for pixels in continued]
    for height, width in ((13, 12), (3, 2)) if any(continued) else ((13, 12),):
        restored, target = random_pair((height, width, channels))
        similarity = window_by_window(np.pad(restored, padding, "edge"), np.pad(target, padding, "edge"), 255, weights)
        assert metric(restored, target, 255) == pytest.approx(similarity.mean(), abs=1e-12)


def test_the_map_of_ssim_begins_where_the_first_window_fits():
    restored, target = random_pair((13, 12, 3))
    similarity = ssim_valid_map(restored, target, 255)
    np.testing.assert_allclose(similarity, window_by_window(restored, target, 255, WINDOW_2D), atol=1e-12)


def test_the_weights_of_three_channels():
    expected = [[0.633006, 0.213006, 0.153989], [0.366994, 0.266012, 0.366994], [0.153989, 0.213006, 0.633006]]
    np.testing.assert_allclose(channel_mix(3), expected, atol=5e-7)


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(383, 400, 1), (384, 400, 2), (413, 550, 2), (640, 640, 2), (641, 645, 3)],  # 1.5 and 2.5 both give 2
)
def test_reduction_before_ssim(height, width, factor):
    restored, target = random_pair((height, width, 1))
    small = [mean_of_parts(image, height // factor, width // factor) for image in (restored, target)]
    assert ssim_downsampled(restored, target, 255) == pytest.approx(ssim_valid(*small, 255), abs=1e-12)


def mean_of_parts(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Adaptive average pooling from its definition: from the floor of each part's start to the ceiling of its end."""
    for axis, parts in enumerate((rows, columns)):
        size = image.shape[axis]
        spans = [range(math.floor(i * size / parts), math.ceil((i + 1) * size / parts)) for i in range(parts)]
        image = np.stack([image.take(span, axis).mean(axis) for span in spans], axis)
    return image


def test_full_range_luma_costs_1_32_db(astronaut):
    noisy = add_noise(astronaut)
    studio, full = (psnr(plane(noisy, 255), plane(astronaut, 255), 255) for plane in (y_studio, y_full_range))
    # The weights of studio luma are rounded to five digits.
    assert studio - full == pytest.approx(20 * np.log10(255 / 219), abs=1e-4)
    assert round(studio - full, 3) == 1.322


def test_luma_of_primaries():
    image = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    studio = [16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966]
    for plane, values in (
        ("y-studio", studio),
        ("y-studio-rounded", [16, 235, 81, 145, 41]),
        ("y-full-range", [0, 255, 255 * 0.299, 255 * 0.587, 255 * 0.114]),
    ):
        np.testing.assert_allclose(PLANES[plane](image, 255)[0, :, 0], values, atol=1e-10)
        # The plane is in the range of its image.
        np.testing.assert_allclose(PLANES[plane](image / 255, 1)[0, :, 0], np.divide(values, 255), atol=1e-12)
    np.testing.assert_array_equal(PLANES["rgb"](image, 255), image)
    np.testing.assert_array_equal(PLANES["gray"](image[..., :1], 255), image[..., :1])


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_the_peak_is_white_whatever_the_type(dtype, peak):
    target = np.zeros((12, 13, 3), dtype)
    restored = target.copy()
    # A tenth of white on every other pixel: a mean squared error of 1/200.
    restored[::2] = np.asarray(peak / 10, dtype)
    tenth = float(restored[0, 0, 0]) / peak
    assert psnr(restored, target, peak) == pytest.approx(-10 * np.log10(tenth**2 / 2), abs=1e-9)
    assert mae(restored, target, peak) == pytest.approx(tenth / 2, abs=1e-12)


def test_unsigned_differences_do_not_wrap_around():
    low, high = np.full((11, 11, 1), 3, np.uint8), np.full((11, 11, 1), 5, np.uint8)
    assert psnr(low, high, 255) == psnr(high, low, 255) == pytest.approx(20 * np.log10(255 / 2))
    assert mae(low, high, 255) == 2 / 255


def test_equal_images(astronaut):
    for image, peak in ((astronaut, 255), (np.full((12, 12, 1), 0.7, np.float32), 1)):
        assert psnr(image, image.copy(), peak) == float("inf")
        assert mae(image, image.copy(), peak) == 0
        for name in SSIM:
            assert METRICS[name](image, image.copy(), peak) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_in_memory_does_not_matter(metric):
    restored, target = random_pair((12, 13, 3))
    planes_first = [np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0) for image in (restored, target)]
    assert METRICS[metric](*planes_first, 255) == pytest.approx(METRICS[metric](restored, target, 255), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_images_that_cannot_be_compared_are_refused(metric):
    # Shapes that NumPy would broadcast.
    with pytest.raises(UserError, match=r"\(12, 12, 3\) and \(12, 12, 1\)"):
        METRICS[metric](np.ones((12, 12, 3)), np.ones((12, 12, 1)), 1)
    with pytest.raises(UserError, match=r"\[H, W, C\], not of shape \(12, 12\)"):
        METRICS[metric](np.ones((12, 12)), np.ones((12, 12)), 1)


@pytest.mark.parametrize("metric", METRICS)
def test_the_smallest_side(metric):
    side = SMALLEST_SIDE[metric]
    for shape in ((side, side + 3, 3), (side + 3, side, 3)):
        assert math.isfinite(METRICS[metric](*random_pair(shape), 255))
    if side > 1:
        for shape in ((side - 1, side, 3), (side, side - 1, 3)):
            with pytest.raises(UserError, match=f"at least {side} pixels a side, not {shape[0]}x{shape[1]}"):
                METRICS[metric](*random_pair(shape), 255)


@pytest.mark.parametrize("plane", [name for name in PLANES if name != "rgb"])
def test_planes_of_other_channels_are_refused(plane):
    channels = 3 if plane == "gray" else 1
    with pytest.raises(UserError, match=rf"the image is \(2, 2, {channels}\)"):
        PLANES[plane](np.ones((2, 2, channels)), 1)


def test_the_package_offers_both_by_their_short_names():
    assert (gamax.psnr, gamax.ssim) == (psnr, ssim_valid)


def images(count: int) -> st.SearchStrategy[tuple[np.ndarray, ...]]:
    shapes = st.tuples(st.integers(11, 14), st.integers(11, 14), st.sampled_from([1, 3]))
    return shapes.flatmap(lambda shape: st.tuples(*[arrays(np.uint8, shape)] * count))


few = settings(max_examples=25, deadline=None, derandomize=True)


@few
@given(images(2))
def test_metrics_are_symmetric_and_bounded(pair):
    for name, metric in METRICS.items():
        value = metric(*pair, 255)
        assert value == metric(*reversed(pair), 255)
        if name in SSIM:
            assert -1 <= value <= 1 + 1e-12
        else:
            assert 0 <= value <= (1 if name == "mae" else math.inf)
    assert (psnr(*pair, 255) == math.inf) == (mae(*pair, 255) == 0) == np.array_equal(*pair)


@few
@given(images(2))
def test_mirrored_and_scaled_images_score_the_same(pair):
    for metric in METRICS.values():
        value = metric(*pair, 255)
        for flip in (np.s_[::-1], np.s_[:, ::-1], np.s_[..., ::-1]):
            assert metric(pair[0][flip], pair[1][flip], 255) == pytest.approx(value, abs=1e-9)
        assert metric(*(image / 255 for image in pair), 1) == pytest.approx(value, abs=1e-9)


@few
@given(images(1), st.floats(1.01, 10))
def test_psnr_falls_with_the_scale_of_an_error(image, scale):
    error = np.random.default_rng(0).normal(size=image[0].shape)
    small, large = (psnr(image[0] + factor * error, image[0], 255) for factor in (1, scale))
    assert small - large == pytest.approx(20 * np.log10(scale), abs=1e-6)


@few
@given(images(3))
def test_mae_obeys_the_triangle_inequality(three):
    first, second, third = three
    assert mae(first, third, 255) <= mae(first, second, 255) + mae(second, third, 255) + 1e-12
