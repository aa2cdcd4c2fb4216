"""Pictures that people look at: input, restored and target beside each other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gamax.files import replace_atomically


@dataclass(frozen=True)
class Comparison:
    """One row of a comparison sheet: 8-bit RGB images `[H, W, 3]` and the PSNR under them in dB."""

    name: str
    degraded: np.ndarray
    restored: np.ndarray
    target: np.ndarray
    psnr_degraded: float
    psnr_restored: float


def save_comparison(path: Path, rows: Sequence[Comparison], size: int = 256) -> None:
    """Writes a PNG with a row per image, input | restored | target, each the central `size` pixels at full scale."""
    from matplotlib.figure import Figure

    height = min([size, *(row.target.shape[0] for row in rows)])
    width = min([size, *(row.target.shape[1] for row in rows)])
    size_inches = (9, (3 * height / width + 0.65) * len(rows))
    # One pixel of the image to about one of the picture, but never too few for the captions.
    figure = Figure(size_inches, dpi=max(width / 2.9, 60), layout="constrained")
    for row, axes in zip(rows, figure.subplots(len(rows), 3, squeeze=False), strict=True):
        panels = (
            (row.degraded, f"input, {row.psnr_degraded:.2f} dB"),
            (row.restored, f"restored, {row.psnr_restored:.2f} dB"),
            (row.target, "clean"),
        )
        # Above the first panel, from where even a long name has room to the right.
        axes[0].set_title(row.name, loc="left", fontsize="medium")
        for axis, (image, caption) in zip(axes, panels, strict=True):
            top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            axis.imshow(image[top : top + height, left : left + width], interpolation="nearest")
            axis.set_xlabel(caption)
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    replace_atomically(path, content.getvalue())
