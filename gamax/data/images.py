"""Image files: reading, writing, listing and pairing. Every failure is one sentence that names the file."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gamax.data.metadata import JPEG_START, JPEG_SUFFIXES, PNG_START, TIFF_STARTS, parse_header, turn_upright
from gamax.errors import UserError
from gamax.files import replace_atomically

SUFFIXES = (".png", *JPEG_SUFFIXES, ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")
"""File names that count as images, whatever the case of their letters."""

UNREAD_SUFFIXES = (
    *(".gif", ".apng", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".mpo", ".tga", ".psd", ".exr"),
    *(".hdr", ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw"),
)
"""File names of images in formats that are not read."""

_WRITABLE_16_BIT = (".png", ".tif", ".tiff", ".ppm", ".pgm")
_WRITABLE_ALPHA = (".png", ".tif", ".tiff", ".webp")
_LARGEST_SIDES = {**dict.fromkeys(JPEG_SUFFIXES, 65500), ".webp": 16383}
"""Of the encoders, in pixels."""

_RAW_HEADER = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)")
"""PPM or PGM: kind, width, height and the value of white."""

_PNG_END = b"IEND\xaeB`\x82"
_JPEG_START_OF_SCAN = 0xDA
_JPEG_END = b"\xff\xd9"
_CV2_SILENT = 0


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as uint8 or uint16 `[H, W, C]`: gray (C = 1), RGB (3) or RGBA (4).

    The EXIF orientation is applied. Gray with alpha comes as RGBA, a palette or fewer than 8 bits as the 8-bit colours
    or grays that they stand for, PPM and PGM with white at 255 or 65535 whatever the file's own. Raises `UserError`
    when the file is missing, empty, cut short, not an image, neither 8 nor 16 bits deep, or a TIFF of several pages or
    of a kind that would be decoded wrongly.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no image '{path}'") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})") from error
    if not data:
        raise UserError(f"'{path}' is empty (0 bytes); copy it again or remove it")
    if _is_cut_short(data):
        raise UserError(f"'{path}' is cut short; copy it again or remove it")
    # Of all others decoding tells enough, and most files have no EXIF.
    is_tiff = data.startswith(TIFF_STARTS)
    may_be_turned = not data.startswith(JPEG_START) and (b"eXIf" in data or b"EXIF" in data)
    header = parse_header(io.BytesIO(data), path) if is_tiff or may_be_turned else None
    image = decode_image(data)
    if image is None:
        remedy = "save it again as plain 8- or 16-bit gray, RGB or RGBA" if is_tiff else "replace or remove it"
        raise UserError(f"'{path}' is not an image that can be decoded; {remedy}")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"'{path}' holds {image.dtype} values; convert it to 8 or 16 bits a channel")
    if raw := _RAW_HEADER.match(data):
        return _stretch(image, kind=raw[1], white=int(raw[4]))
    # Decoding turns JPEG and TIFF itself.
    return turn_upright(image, header.orientation) if header and not is_tiff else image


def _stretch(image: np.ndarray, kind: bytes, white: int) -> np.ndarray:
    """The decoded image of a PPM or PGM with the file's white at 255 or 65535."""
    full = np.iinfo(image.dtype).max
    # Of values written as text OpenCV stretches 8-bit ones itself.
    if white == full or (full == 255 and kind in b"23"):
        return image
    values = np.minimum(image, white).astype(np.uint32)
    return ((values * full + white // 2) // white).astype(image.dtype)


def decode_image(data: bytes) -> np.ndarray | None:
    """Decodes the bytes of an image file to `[H, W, C]`: gray (C = 1), RGB (3) or RGBA (4); None if that fails."""
    import cv2

    # IMREAD_UNCHANGED ignores the EXIF orientation; the other flags drop alpha, which no JPEG has.
    is_jpeg = data.startswith(JPEG_START)
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR if is_jpeg else cv2.IMREAD_UNCHANGED
    _silence_opencv()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.size == 0:
        return _decode_tiff(data, None) if data.startswith(TIFF_STARTS) else None
    if image.ndim == 2:
        return image[..., np.newaxis]
    if image.shape[-1] == 4 and image.dtype == np.uint8 and data.startswith(TIFF_STARTS):
        return _decode_tiff(data, image)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[-1] == 4 else cv2.COLOR_BGR2RGB)


def _silence_opencv() -> None:
    """Keeps OpenCV's own words off stderr, where they would stand beside our sentence."""
    import cv2

    # OpenCV 5 has moved the function.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(_CV2_SILENT)


def _decode_tiff(data: bytes, image: np.ndarray | None) -> np.ndarray | None:
    """The 8-bit pixels of a TIFF that is not OpenCV's.

    Args:
        data: the file.
        image: what OpenCV has made of it: BGRA, with colours multiplied by an alpha channel that is declared as one;
            or None, as of 2 and 4 bits a channel.
    """
    import cv2
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        # Not `PIL.Image.open`, which refuses large images.
        with TiffImageFile(io.BytesIO(data)) as file:
            if file.mode == "RGBA" or (image is None and file.mode in ("L", "RGB")):
                pixels = np.array(file)
                return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
    except Exception:  # Whatever the parser stumbles over in a damaged file; callers say that it cannot be decoded.
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)


def _is_cut_short(data: bytes) -> bool:
    """Whether a PNG or JPEG misses its end, which decoders would report in words of their own or paint gray."""
    if data.startswith(PNG_START):
        return _PNG_END not in data
    if not data.startswith(JPEG_START):
        return False
    # The end marker may also occur inside an EXIF thumbnail: it counts from the first scan of the picture itself.
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_START_OF_SCAN:
        is_padding = data[position + 1] == 0xFF
        position += 1 if is_padding else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.find(_JPEG_END, position) < 0


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Turns `[H, W, C]` with C in {1, 3, 4} into `[H, W, 3]` of the same type: gray repeated, alpha dropped."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else np.ascontiguousarray(image[..., :3])


def to_gray(image: np.ndarray) -> np.ndarray:
    """Turns `[H, W, C]` with C in {1, 3, 4} into `[H, W, 1]` of the same type: luma 0.299 R + 0.587 G + 0.114 B."""
    import cv2

    return image if image.shape[-1] == 1 else cv2.cvtColor(to_rgb(image), cv2.COLOR_RGB2GRAY)[..., np.newaxis]


def to_float(image: np.ndarray) -> np.ndarray:
    """Turns an 8- or 16-bit image into float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def to_integers(image: np.ndarray, dtype: type[np.integer] | np.dtype[Any] = np.uint8) -> np.ndarray:
    """Clamps a float image to [0, 1] and rounds it to 8 or 16 bits."""
    white = np.iinfo(dtype).max
    scaled = np.clip(image, 0, 1) * np.asarray(image).dtype.type(white)
    return np.rint(scaled).astype(dtype)


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """Encodes a uint8 or uint16 image `[H, W, C]`, C in {1, 3, 4}, as a file of the format that `suffix` names.

    Raises `UserError` if the encoder refuses.
    """
    import cv2

    height, width = image.shape[:2]
    if image.shape[-1] > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[-1] == 4 else cv2.COLOR_RGB2BGR)
    _silence_opencv()
    try:
        encoded, content = cv2.imencode(".jpg" if suffix in JPEG_SUFFIXES else suffix, image)
    except cv2.error:
        encoded, content = False, np.empty(0)
    if not encoded:
        raise UserError(f"{width}x{height} pixels cannot be encoded as {suffix[1:].upper()}; choose another format")
    return content.tobytes()


def decode_stored(data: bytes) -> np.ndarray | None:
    """Decodes an image that `encode_image` has made; raw ones (PPM, PGM) of 8 bits are views into `data`.

    A crop of such a view costs nothing but its own pixels.
    """
    if data[:2] not in (b"P5", b"P6"):
        return decode_image(data)
    magic, size, white, _ = data[:64].split(b"\n", 3)
    start = len(magic) + len(size) + len(white) + 3
    width, height = map(int, size.split())
    shape = (height, width, 3 if magic == b"P6" else 1)
    depth: Any = np.uint8 if white == b"255" else ">u2"
    pixels = np.frombuffer(data, depth, offset=start).reshape(shape)
    return pixels if depth == np.uint8 else pixels.astype(np.uint16)


def check_format(path: str | Path, image: np.ndarray) -> None:
    """Raises `UserError` when the format that the suffix of `path` names cannot be written or cannot hold the image."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot write '{path}': choose one of {', '.join(SUFFIXES)}")
    if image.dtype == np.uint16 and suffix not in _WRITABLE_16_BIT:
        raise UserError(f"cannot write 16 bits a channel to '{path}': choose one of {', '.join(_WRITABLE_16_BIT)}")
    if image.shape[-1] == 4 and suffix not in _WRITABLE_ALPHA:
        raise UserError(f"cannot write an alpha channel to '{path}': choose one of {', '.join(_WRITABLE_ALPHA)}")
    if suffix == (".pgm" if image.shape[-1] == 3 else ".ppm"):
        raise UserError(f"cannot write '{path}': PPM is for colour images, PGM for gray ones")
    height, width = image.shape[:2]
    largest = _LARGEST_SIDES.get(suffix)
    if largest and max(height, width) > largest:
        raise UserError(f"cannot write {width}x{height} pixels to '{path}': sides go up to {largest}; choose .png")


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes a uint8 or uint16 image `[H, W, C]`, C in {1, 3, 4}, in the format that the suffix of `path` names.

    The file appears complete or not at all. Raises `UserError` when the format cannot hold the image or the folder
    cannot be written.
    """
    path = Path(path)
    check_format(path, image)
    try:
        replace_atomically(path, encode_image(image, path.suffix.lower()))
    except OSError as error:
        raise UserError(f"cannot write to folder '{path.parent}' ({error.strerror})") from error


def list_images(folder: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Lists the images directly in `folder` in natural order (`img2` before `img10`), hidden files left out.

    Files count as images by their suffix. Raises `UserError` when there is no such folder or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not paths:
        raise UserError(f"no images directly in folder '{folder}' (looked for {', '.join(SUFFIXES)})")
    return natural_order(paths)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorts files by folder and name, with numbers in names as numbers: `img2` before `img10`."""
    return sorted(paths, key=lambda path: (path.parent, _natural_key(path.name.lower()), path.name))


def _natural_key(name: str) -> list[str | int]:
    # Splitting at a group gives text and digits in turn, so equal positions always compare.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def match_images(folder: str | Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pairs `input/NAME.*` with `target/NAME.*` below `folder`, whatever the suffixes.

    Returns the pairs in natural order and the files without a partner. Raises `UserError` when one of the two folders
    is missing or empty, or two images in one of them have the same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'")
    if not ((folder / "input").is_dir() and (folder / "target").is_dir()):
        raise UserError(f"folder '{folder}' must hold the folders input/ and target/, with images of equal names")
    inputs, targets = list_images(folder / "input"), list_images(folder / "target")
    check_unique_stems(inputs)
    check_unique_stems(targets)
    by_stem = {path.stem: path for path in targets}
    input_stems = {path.stem for path in inputs}
    pairs = [(path, by_stem[path.stem]) for path in inputs if path.stem in by_stem]
    unpaired = [path for path in inputs if path.stem not in by_stem]
    unpaired += [path for path in targets if path.stem not in input_stems]
    return pairs, unpaired


def check_unique_stems(paths: list[Path]) -> None:
    """Raises `UserError` when two of the files differ in their suffix only: the stem names the example."""
    repeated = [(stem, count) for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if repeated:
        stem, count = repeated[0]
        raise UserError(f"{count} images in folder '{paths[0].parent}' are named '{stem}'; rename or remove one")


def pair_images(folder: str | Path) -> list[tuple[Path, Path]]:
    """Like `match_images`, but raises `UserError` when an image has no partner, and returns the pairs alone."""
    pairs, unpaired = match_images(folder)
    if unpaired:
        raise UserError(describe_unpaired(folder, unpaired))
    return pairs


def describe_unpaired(folder: str | Path, unpaired: list[Path]) -> str:
    """Says how many images in `folder` have no partner, and the first three of them."""
    names = ", ".join(str(path.relative_to(folder)) for path in unpaired[:3])
    more = ", ..." if len(unpaired) > 3 else ""
    count = "1 image has" if len(unpaired) == 1 else f"{len(unpaired)} images have"
    return f"{count} no partner of the same name in folder '{folder}': {names}{more}"
