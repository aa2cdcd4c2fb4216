"""A picture of a photograph before and after it was restored."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from gamax.data.images import to_float, to_integers, to_rgb

Image = Shaped[np.ndarray, "h w c"]

_WHOLE = (480, 780)
"""Height and width that each whole image is made to fit; two of them beside each other fit a screen."""
_CROP = (360, 780)
_STRIP = 64
"""Rows whose differences are in memory at once."""
_STEP = 4
"""Pixels between the regions of which the most changed one is chosen."""
_GAP = 8
_LABEL = 26
_BACKGROUND = 250
_INK = (40, 40, 40)


def before_after(before: Image, after: Image) -> np.ndarray:
    """Draws both whole images, made smaller to fit, and below what changed most, pixel by pixel.

    Args:
        before: uint8 or uint16 `[H, W, C]`, C in {1, 3, 4}; alpha is not shown.
        after: of the same shape and type.

    Returns:
        uint8 `[H, W, 3]`.
    """
    # Of 100 megapixels every copy counts: parts are cut out and made smaller before they are converted.
    top, left = most_changed(before, after, _CROP)
    height, width = min(_CROP[0], before.shape[0]), min(_CROP[1], before.shape[1])
    crops = [_to_rgb_bytes(image[top : top + height, left : left + width]) for image in (before, after)]
    wholes = [_to_rgb_bytes(_fit(image, _WHOLE)) for image in (before, after)]
    scale = wholes[0].shape[0] / before.shape[0]
    size = f"{before.shape[1]}x{before.shape[0]} pixels" + (f", shown at {scale:.0%}" if scale < 1 else "")
    place = f"where most changed: {width}x{height} pixels from ({left}, {top}), at 100%"
    rows = [(wholes, (f"before, {size}", f"after, {size}"))]
    if scale < 1:
        rows.append((crops, (f"before, {place}", f"after, {place}")))
    return _draw(rows)


def most_changed(before: Image, after: Image, size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the region of that height and width, or the image's own, with the largest mean difference.

    One of the regions that begin at every fourth row and column.
    """
    import cv2

    height, width = (min(wanted, side) for wanted, side in zip(size, before.shape, strict=False))
    box = {"ddepth": -1, "anchor": (0, 0), "borderType": cv2.BORDER_CONSTANT}
    rows = []
    for start in range(0, before.shape[0], _STRIP):
        strips = [to_rgb(image[start : start + _STRIP]) for image in (before, after)]
        difference = cv2.absdiff(*strips).sum(-1, dtype=np.float32)
        rows.append(cv2.boxFilter(difference, ksize=(width, 1), **box)[:, : before.shape[1] - width + 1 : _STEP].copy())
    means = cv2.boxFilter(np.concatenate(rows), ksize=(1, height), **box)
    inside = means[: before.shape[0] - height + 1 : _STEP]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return _STEP * int(top), _STEP * int(left)


def _to_rgb_bytes(image: np.ndarray) -> np.ndarray:
    return to_integers(to_float(to_rgb(image)))


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image made smaller, never larger, to fit into that height and width."""
    import cv2

    scale = min(1.0, size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)


def _draw(rows: list[tuple[list[np.ndarray], tuple[str, str]]]) -> np.ndarray:
    """Rows of two images beside each other, each under its label."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default(14)
    # However narrow the images are, the labels are to be read.
    labels = [label for _, pair in rows for label in pair]
    panel = max(*(pair[0].shape[1] for pair, _ in rows), *(int(font.getlength(label)) for label in labels))
    height = sum(pair[0].shape[0] + _LABEL + _GAP for pair, _ in rows)
    sheet = PIL.Image.new("RGB", (2 * panel + 3 * _GAP, height), (_BACKGROUND,) * 3)
    draw = PIL.ImageDraw.Draw(sheet)
    top = _LABEL
    for pair, texts in rows:
        for column, (image, label) in enumerate(zip(pair, texts, strict=True)):
            left = _GAP + column * (panel + _GAP)
            draw.text((left, top - 5), label, _INK, font, anchor="ls")
            sheet.paste(PIL.Image.fromarray(image), (left, top))
        top += pair[0].shape[0] + _LABEL + _GAP
    return np.array(sheet)
