"""Reported metrics: NumPy, float64, on the host, every choice explicit.

Images are `[H, W, C]`, integer or float; `peak` is the value of white (255 for 8-bit, 1 for floats) and is never
guessed from the pixels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

Image = Shaped[np.ndarray, "h w c"]


def psnr(restored: Image, target: Image, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, over all pixels and channels; infinite for equal images."""
    _check_shapes(restored, target)
    error = np.mean(np.square(restored.astype(np.float64) - target.astype(np.float64)))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim_valid(restored: Image, target: Image, peak: float) -> float:
    """Structural similarity: 11x11 Gaussian window (sigma 1.5), each channel alone, 5 border pixels dropped.

    The definition of Wang et al. (2004), BasicSR and the deraining tables; the SSIM of the SIDD and GoPro tables is
    another one, some 0.03 higher. Sides must be at least 11 pixels.
    """
    from skimage.metrics import structural_similarity

    _check_shapes(restored, target)
    return float(
        structural_similarity(
            restored.astype(np.float64),
            target.astype(np.float64),
            data_range=peak,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _check_shapes(restored: Image, target: Image) -> None:
    if restored.shape != target.shape:
        raise ValueError(f"images of different shapes cannot be compared: {restored.shape} and {target.shape}")
