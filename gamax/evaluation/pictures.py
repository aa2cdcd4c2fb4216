"""Pictures that people look at: input, restored, target and error beside each other."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gamax.files import replace_atomically

AMPLIFICATION = 8
"""Of the error map: an error of 32 grey levels, in the mean over the channels, is white."""


@dataclass(frozen=True)
class Comparison:
    """One row of a comparison sheet: 8-bit images `[H, W, C]`, C 1 or 3, and what is said under them."""

    name: str
    degraded: np.ndarray
    restored: np.ndarray
    target: np.ndarray
    psnr_degraded: float
    """In dB."""
    scores: Mapping[str, float]
    """Of the restored image: `psnr` in dB, and `ssim` if there is one."""


def save_comparison(path: Path, rows: Sequence[Comparison], size: int = 256) -> None:
    """Writes a PNG with a row per image: input | restored | target | error, amplified.

    Of each image the `size` pixels a side are shown, at full scale, in which restored and target differ most.
    """
    from matplotlib.figure import Figure

    height = min([size, *(row.target.shape[0] for row in rows)])
    width = min([size, *(row.target.shape[1] for row in rows)])
    size_inches = (12, (3 * height / width + 0.65) * len(rows))
    # One pixel of the image to about one of the picture, but never too few for the captions.
    figure = Figure(size_inches, dpi=max(width / 2.9, 60), layout="constrained")
    for row, axes in zip(rows, figure.subplots(len(rows), 4, squeeze=False), strict=True):
        error = np.abs(row.restored.astype(np.float32) - row.target).mean(2, keepdims=True)
        ssim = f", SSIM {row.scores['ssim']:.3f}" if "ssim" in row.scores else ""
        panels = (
            (row.degraded, f"input, {row.psnr_degraded:.2f} dB"),
            (row.restored, f"restored, {row.scores['psnr']:.2f} dB{ssim}"),
            (row.target, "target"),
            (np.minimum(AMPLIFICATION * error, 255).astype(np.uint8), f"error x {AMPLIFICATION}"),
        )
        top, left = _worst_window(error[..., 0], height, width)
        # Above the first panel, from where even a long name has room to the right.
        axes[0].set_title(row.name, loc="left", fontsize="medium")
        for axis, (image, caption) in zip(axes, panels, strict=True):
            shown = image[top : top + height, left : left + width]
            shown = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown
            axis.imshow(shown, interpolation="nearest")
            axis.set_xlabel(caption)
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    replace_atomically(path, content.getvalue())


def _worst_window(error: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Top left corner of the window of that size with the largest sum of squared errors."""
    sums = np.pad(np.square(error, dtype=np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(top), int(left)
