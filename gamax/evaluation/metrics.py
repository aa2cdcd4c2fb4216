"""Reported metrics: NumPy, float64, on the host, every choice explicit.

Images are `[H, W, C]`, integer or float; `peak` is the value of white (255 for 8-bit, 1 for floats) and is never
guessed from the pixels. Nothing is rounded or clamped here. Five definitions go by the name SSIM, and on the same
images they differ by 0.03 and more; each has a name of its own. All raise `UserError` for images of different shapes
and for images smaller than their window.

`gamax.evaluation.device_metrics` has the same metrics in float32 for programs on a device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped

from gamax.errors import UserError

Image = Shaped[np.ndarray, "h w c"]
Plane = Float[np.ndarray, "h w 1"]

GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
GAUSSIAN /= GAUSSIAN.sum()
"""Weights of one axis of the 11-pixel window of Wang et al. (2004), sigma 1.5."""
UNIFORM = np.full(7, 1 / 7)
SAMPLE_VARIANCE = 49 / 48
"""From the variance of the 49 pixels of a uniform window to the estimate for what they are a sample of."""
K1, K2 = 0.01, 0.03
"""Of Wang et al.: what keeps SSIM stable in dark and in flat areas, in units of white."""

STUDIO_WEIGHTS = (65.481, 128.553, 24.966)
"""Of red, green and blue in [0, 1] in luma of 16 to 235 (ITU-R BT.601)."""
FULL_RANGE_WEIGHTS = (0.299, 0.587, 0.114)


def psnr(restored: Image, target: Image, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, over all pixels and channels; infinite for equal images."""
    error = np.mean(np.square(_difference(restored, target)))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def mae(restored: Image, target: Image, peak: float) -> float:
    """Mean absolute difference over all pixels and channels, in units of white: 0 to 1."""
    return float(np.mean(np.abs(_difference(restored, target))) / peak)


def ssim_valid(restored: Image, target: Image, peak: float) -> float:
    """Structural similarity: 11x11 Gaussian window (sigma 1.5), each channel alone, 5 border pixels dropped.

    The definition of Wang et al. (2004), BasicSR and the deraining tables; the SSIM of the SIDD and GoPro tables is
    `ssim_3d`, some 0.03 higher. Sides must be at least 11 pixels.
    """
    return float(ssim_valid_map(restored, target, peak).mean())


def ssim_valid_map(restored: Image, target: Image, peak: float) -> Float[np.ndarray, "_ _ c"]:
    """The map `[H - 10, W - 10, C]` of which `ssim_valid` is the mean; its first value is that of pixel (5, 5)."""
    _check(restored, target, len(GAUSSIAN))
    return _similarity(restored, target, peak, _gaussian)[5:-5, 5:-5]


def ssim_replicate(restored: Image, target: Image, peak: float) -> float:
    """Structural similarity as `ssim_valid`, but of every pixel: the border pixels are repeated outwards.

    MATLAB's `ssim` of one plane, and NAFNet's of luma.
    """
    _check(restored, target)
    return float(_similarity(restored, target, peak, _gaussian).mean())


def ssim_3d(restored: Image, target: Image, peak: float) -> float:
    """Structural similarity with an 11x11x11 Gaussian window over height, width and channels, borders repeated.

    MATLAB's `ssim` of an RGB array, which takes it for a volume; that of the SIDD, GoPro and HIDE tables (NAFNet, arXiv
    2204.04676). Of one channel it is `ssim_replicate`.
    """
    _check(restored, target)
    mix = channel_mix(target.shape[-1])
    return float(_similarity(restored, target, peak, lambda maps: _gaussian(maps) @ mix.T).mean())


def ssim_uniform(restored: Image, target: Image, peak: float) -> float:
    """Structural similarity: uniform 7x7 window, sample variances, each channel alone, 3 border pixels dropped.

    The default of scikit-image, and that of the DPDD tables. Sides must be at least 7 pixels.
    """
    _check(restored, target, len(UNIFORM))
    similarity = _similarity(restored, target, peak, lambda maps: _filtered(maps, UNIFORM), SAMPLE_VARIANCE)
    return float(similarity[3:-3, 3:-3].mean())


def ssim_downsampled(restored: Image, target: Image, peak: float) -> float:
    """`ssim_valid` of both images reduced to a shorter side of about 256 pixels, as Wang et al. advise.

    That of the dehazing tables (DehazeFormer, arXiv 2204.03883). Sides must be at least 11 pixels.
    """
    _check(restored, target)
    return ssim_valid(_reduced(restored), _reduced(target), peak)


def channel_mix(channels: int) -> Float[np.ndarray, "c c"]:
    """The Gaussian window along the channels as a matrix: a row of weights for each channel that comes out.

    The first and the last channel stand for what lies beyond them, so their weights are sums of several.
    """
    mix = np.zeros((channels, channels))
    for row in range(channels):
        np.add.at(mix[row], np.clip(np.arange(row - 5, row + 6), 0, channels - 1), GAUSSIAN)
    return mix


def equal_parts(size: int, factor: int) -> tuple[Int[np.ndarray, " parts"], Int[np.ndarray, " parts"]]:
    """Where the `size // factor` equal parts of a side begin and end, in pixels; neighbours share a pixel they split.

    Those of PyTorch's `adaptive_avg_pool2d`, which has parts of `factor` pixels where it divides `size`.
    """
    parts = size // factor
    return np.arange(parts) * size // parts, -(-np.arange(1, parts + 1) * size // parts)


def reduction_factor(height: int, width: int) -> int:
    """By how much `ssim_downsampled` reduces an image: the shorter side by 256, rounded half to even."""
    return max(1, round(min(height, width) / 256))


def rgb(image: Image, peak: float) -> Image:
    """The image as it is, all channels."""
    return image


def gray(image: Image, peak: float) -> Image:
    """An image of one channel as it is; `UserError` for any other, since there are several ways to make it gray."""
    _check_channels(image, 1, "the plane 'gray'", "name a plane of luma")
    return image


def y_studio(image: Image, peak: float) -> Plane:
    """Luma of an RGB image with black at 16/255 and white at 235/255 of `peak`, not rounded (BasicSR, LIR)."""
    return _studio(image, peak) * (peak / 255)


def y_studio_rounded(image: Image, peak: float) -> Plane:
    """`y_studio` rounded to whole steps of `peak` / 255: MATLAB's `rgb2ycbcr` of an 8-bit image.

    What are halves in float64 goes to the even neighbour, in MATLAB all halves go up: that is another value for 107 of
    the 16.8 million 8-bit colours, and moves the PSNR of a photograph by some 1e-5 dB.
    """
    return np.round(_studio(image, peak)) * (peak / 255)


def y_full_range(image: Image, peak: float) -> Plane:
    """Luma of an RGB image from 0 to `peak` (OpenCV, Pillow): its PSNR is 1.32 dB below that of `y_studio`."""
    return _luma(image.astype(np.float64), FULL_RANGE_WEIGHTS)


METRICS: dict[str, Callable[[Image, Image, float], float]] = {
    "psnr": psnr,
    "mae": mae,
    "ssim-2d-valid": ssim_valid,
    "ssim-2d-replicate": ssim_replicate,
    "ssim-3d-rgb": ssim_3d,
    "ssim-uniform-7x7": ssim_uniform,
    "ssim-wang-downsampled": ssim_downsampled,
}
"""Metrics by the names that protocols use."""

SMALLEST_SIDE: dict[str, int] = {
    "psnr": 1,
    "mae": 1,
    "ssim-2d-valid": 11,
    "ssim-2d-replicate": 1,
    "ssim-3d-rgb": 1,
    "ssim-uniform-7x7": 7,
    "ssim-wang-downsampled": 11,
}
"""Pixels that each metric needs in both directions: its window, where that is not continued beyond the border."""

PLANES: dict[str, Callable[[Image, float], Image]] = {
    "rgb": rgb,
    "gray": gray,
    "y-studio": y_studio,
    "y-studio-rounded": y_studio_rounded,
    "y-full-range": y_full_range,
}
"""What of an image is scored: functions of the image and the value of white, which is also that of the plane."""


def _check(restored: Image, target: Image, smallest: int = 1) -> None:
    if restored.shape != target.shape:
        raise UserError(
            f"images of different shapes cannot be compared: {restored.shape} and {target.shape}; crop one of them"
        )
    if target.ndim != 3:
        raise UserError(f"a metric takes images [H, W, C], not of shape {target.shape}; a gray one has C = 1")
    height, width = target.shape[:2]
    if min(height, width) < smallest:
        raise UserError(f"this SSIM needs images of at least {smallest} pixels a side, not {height}x{width}")


def _difference(restored: Image, target: Image) -> np.ndarray:
    _check(restored, target)
    return np.subtract(restored, target, dtype=np.float64)


def _filtered(maps: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Every channel weighted along both axes, the border pixels repeated outwards."""
    import cv2

    # A fifth of the time of SciPy's correlate1d, and equal to 1e-15 of the values.
    return cv2.sepFilter2D(maps, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REPLICATE).reshape(maps.shape)


def _gaussian(maps: np.ndarray) -> np.ndarray:
    return _filtered(maps, GAUSSIAN)


def _similarity(
    restored: Image,
    target: Image,
    peak: float,
    window: Callable[[np.ndarray], np.ndarray],
    correction: float = 1.0,
) -> np.ndarray:
    """The map of SSIM for windows whose weighted sums `window` takes; variances are multiplied by `correction`."""
    first, second = restored.astype(np.float64), target.astype(np.float64)
    mean_1, mean_2 = window(first), window(second)
    means, squares = mean_1 * mean_2, mean_1**2 + mean_2**2
    covariance = correction * (window(first * second) - means)
    # Only the sum of the two variances is needed.
    variances = correction * (window(first**2 + second**2) - squares)
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    return (2 * means + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def _reduced(image: Image) -> np.ndarray:
    factor = reduction_factor(*image.shape[:2])
    if factor == 1:
        return image
    reduced = image.astype(np.float64)
    for axis in (0, 1):
        starts, ends = equal_parts(reduced.shape[axis], factor)
        # Sums from every start to the next end; those from there to the next start are left out.
        edges = np.stack([starts, ends], axis=-1).ravel()[:-1]
        sums = np.add.reduceat(reduced, edges, axis).take(range(0, len(edges), 2), axis)
        reduced = sums / (ends - starts).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return reduced


def _studio(image: Image, peak: float) -> np.ndarray:
    return 16 + _luma(image.astype(np.float64) * (255 / peak), STUDIO_WEIGHTS) / 255


def _luma(image: np.ndarray, weights: tuple[float, float, float]) -> np.ndarray:
    _check_channels(image, 3, "luma", "score the plane 'gray' or 'rgb'")
    red, green, blue = np.split(image, 3, axis=-1)
    # Written out: the order in which a matrix product adds is not the same on every machine, and halves depend on it.
    return weights[0] * red + weights[1] * green + weights[2] * blue


def _check_channels(image: Image, channels: int, what: str, remedy: str) -> None:
    if image.shape[-1] != channels:
        raise UserError(f"{what} needs {channels} channels, but the image is {image.shape}; {remedy}")
