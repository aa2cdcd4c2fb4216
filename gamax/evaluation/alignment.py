"""Scores of images that are not aligned to the pixel: RealBlur, whose two sides differ in position and brightness."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gamax.errors import UserError
from gamax.evaluation.metrics import ssim_valid_map

Image = Float[np.ndarray, "h w 3"]

ITERATIONS = 100
FILTER_SIZE = 5
"""Of the Gaussian filter, in pixels, that both images go through before they are compared."""


class Aligned(NamedTuple):
    """Two images and where both are known; all three are 0 elsewhere."""

    restored: Image
    target: Image
    mask: Image


def align(restored: Image, target: Image) -> Aligned:
    """Matches the brightness and the position of a restored image to its target, as RealBlur is scored.

    The restored image is multiplied by the factor that brings it closest to the target, and moved by the homography
    that maximises the enhanced correlation coefficient of the two in gray (bicubic, reflected at the border). Position
    and interpolation are those of OpenCV; the published figures used version 4.2.0. Source: rimchang/RealBlur,
    evaluation_RealBlur_ecc.py.

    Args:
        restored: float32 in [0, 1].
        target: float32 in [0, 1].

    Raises:
        UserError: if the images have too little in common to be aligned.
    """
    import cv2

    energy = np.sum(restored * restored)
    matched = restored * (np.sum(target * restored) / energy) if energy else restored
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    template, moving = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (target, matched))
    start, everywhere = np.eye(3, dtype=np.float32), np.ones(template.shape, np.uint8)
    try:
        _, homography = cv2.findTransformECC(
            template, moving, start, cv2.MOTION_HOMOGRAPHY, stop, inputMask=everywhere, gaussFiltSize=FILTER_SIZE
        )
    except cv2.error as error:
        raise UserError("the restored image has too little in common with its target to be aligned to it") from error
    size = target.shape[1::-1]
    moved = cv2.warpPerspective(
        matched, homography, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    mask = cv2.warpPerspective(
        np.ones_like(target),
        homography,
        size,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return Aligned(moved * mask, target * mask, mask)


def masked_psnr(aligned: Aligned) -> float:
    """Peak signal-to-noise ratio in dB of what the mask leaves, white at 1; infinite for equal images."""
    difference = aligned.restored.astype(np.float64) - aligned.target
    error = np.sum(difference**2) / np.sum(aligned.mask, dtype=np.float64)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def masked_ssim(aligned: Aligned) -> float:
    """`ssim_valid` over what the mask leaves: for each channel the sum of the map by that of the mask, then the mean.

    The windows reach beyond the mask, where both images are 0.
    """
    inside = aligned.mask[5:-5, 5:-5].astype(np.float64)
    similarity = ssim_valid_map(aligned.restored, aligned.target, 1.0) * inside
    return float(np.mean(similarity.sum((0, 1)) / inside.sum((0, 1))))


MASKED_METRICS: dict[str, Callable[[Aligned], float]] = {"psnr": masked_psnr, "ssim-2d-valid": masked_ssim}
"""What protocols with an alignment can score, by the names of `gamax.evaluation.metrics.METRICS`."""
