"""What an image file holds beside its pixels: its size, how it is turned, its colour profile, and the camera's notes.

Headers are read without decoding pixels, so a thousand files take a moment. What was read is written back into files of
the same or another format. PNG and JPEG are walked through here, as Pillow does not say how deep a PNG is and would
decode it to find EXIF behind its pixels; TIFF is tifffile's, everything else Pillow's.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gamax.errors import UserError

OpenFile = io.BytesIO | io.BufferedReader

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
EXIF_START = b"Exif\0\0"
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif")

_ORIENTATION = 0x0112
_PHOTOGRAPHER_TAGS = (270, 271, 272, 306, 315, 33432)
"""Description, maker, model, date, artist, copyright."""
_CAMERA_DIRECTORY = 0x8769
_CAMERA_TAGS = (
    *(33434, 33437, 34850, 34855, 36864, 36867, 36868, 36880, 36881, 36882, 37377, 37378, 37379, 37380, 37381, 37383),
    *(37385, 37386, 37520, 37521, 37522, 40961, 41986, 41987, 41989, 42035, 42036),
)
"""Exposure, aperture, sensitivity, dates, focal length, flash, lens, colour space."""

_JPEG_ICC = b"ICC_PROFILE\0"
_JPEG_SEGMENT = 65533
"""Bytes that fit into a segment behind its length."""
_JPEG_PROFILE_PART = _JPEG_SEGMENT - len(_JPEG_ICC) - 2
_JPEG_PROFILE_PARTS = 255
_LARGEST_PROFILE = _JPEG_PROFILE_PARTS * _JPEG_PROFILE_PART
_JPEG_MORE_PICTURES = b"MPF\0"
_SIZE_SEGMENTS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PNG_SRGB = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"cICP": bytes([1, 13, 0, 1]),
}
"""The chunks about colours, all but `sRGB`, as they are for sRGB, which everyone assumes where nothing is said."""
_MOST_PAGES = 1000
_CMYK = "holds CMYK colours, which are made for print; convert it to RGB first"
_PILLOW_FORMATS = ("WEBP", "BMP", "PPM")


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its image before the image is decoded."""

    height: int
    """Of the image as it is looked at, turned upright."""
    width: int
    orientation: int = 1
    """How stored pixels lie: EXIF's 1 (upright) to 8."""
    alpha: bool = False
    gray: bool = False
    """Whether there are no colours; with alpha its pixels are read as RGBA all the same."""
    icc_profile: bytes | None = None
    png_colours: tuple[tuple[bytes, bytes], ...] = ()
    """Names and contents of a PNG's chunks that name its colours without a profile: gAMA, cHRM, sRGB, cICP."""
    exif: bytes | None = None
    """What is kept of the EXIF fields, upright: photographer, camera, dates; no place, no preview, no maker's notes."""
    losses: tuple[str, ...] = ()
    """What could not be read and will be missing in copies, in words."""


def read_header(path: str | Path) -> ImageHeader:
    """Reads the header of an image file: PNG, JPEG, TIFF, WebP, BMP or PPM, whatever its name.

    Raises:
        UserError: if the file is missing, empty, cut short within the header, or no such image, or holds what cannot be
            restored honestly: several pages or frames, CMYK colours, floats.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return parse_header(file, path)
    except FileNotFoundError as error:
        raise UserError(f"no image '{path}'") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})") from error


def parse_header(file: OpenFile, path: Path) -> ImageHeader:
    """Like `read_header`, of an open file; `path` is its name in errors."""
    start = file.read(8)
    file.seek(0)
    if not start:
        raise UserError(f"'{path}' is empty (0 bytes); copy it again or remove it")
    if start == PNG_START:
        return _png_header(file, path)
    if start.startswith(JPEG_START):
        return _jpeg_header(file, path)
    if start.startswith(TIFF_STARTS):
        return _tiff_header(file, path)
    return _pillow_header(file, path)


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels `[H, W, C]` as EXIF's orientation (1 to 8) asks for."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    down = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[:: -1 if down else 1, :: -1 if right else 1])


def encode_with_metadata(image: np.ndarray, suffix: str, header: ImageHeader) -> bytes:
    """Encodes a uint8 or uint16 image `[H, W, C]` with the colour profile and the EXIF fields of the header.

    JPEG, PNG and WebP keep both; TIFF keeps the profile and the fields of the photographer; BMP, PPM and PGM have no
    place for either. PNG also keeps what a PNG says of its colours in other chunks. What does not fit is left out, see
    `describe_losses`. The pixels are those of `encode_image`, except that TIFF and WebP are written so that alpha
    changes no colour.

    Args:
        image: C in {1, 3, 4}, as `check_format` lets pass.
        suffix: names the format.
        header: of the file that the image comes from.

    Raises:
        UserError: if the encoder refuses.
    """
    from gamax.data.images import encode_image

    suffix = suffix.lower()
    profile = header.icc_profile if _keeps_profile(image.shape[-1], suffix, header) else None
    exif = header.exif if _keeps_exif(suffix, header) else None
    if suffix == ".png":
        return _with_png_chunks(encode_image(image, suffix), header.png_colours, profile, exif)
    if suffix in JPEG_SUFFIXES:
        return _with_jpeg_segments(encode_image(image, suffix), profile, exif)
    if suffix in (".tif", ".tiff"):
        return _encode_tiff(image, profile, exif)
    if suffix == ".webp":
        return _encode_webp(image, profile, exif)
    return encode_image(image, suffix)


def describe_losses(channels: int, suffix: str, header: ImageHeader) -> list[str]:
    """What a file of that suffix, of an image with so many channels, misses of its source, in words."""
    suffix, losses = suffix.lower(), list(header.losses)
    if header.icc_profile is not None and not _keeps_profile(channels, suffix, header):
        losses.append("colour profile, without which colours may look different")
    # cICP counts more than a profile.
    without_profile = header.icc_profile is None or b"cICP" in dict(header.png_colours)
    if without_profile and suffix != ".png" and not _are_srgb(dict(header.png_colours)):
        losses.append("colour space, which only PNG names in that way and without which colours may look different")
    if header.exif is not None and suffix in JPEG_SUFFIXES and not _keeps_exif(suffix, header):
        losses.append("camera's notes, which are too large for JPEG")
    return losses


def _keeps_profile(channels: int, suffix: str, header: ImageHeader) -> bool:
    if header.icc_profile is None:
        return False
    if suffix in JPEG_SUFFIXES and len(header.icc_profile) > _JPEG_PROFILE_PARTS * _JPEG_PROFILE_PART:
        return False
    if header.icc_profile[16:20] == b"GRAY":
        return channels == 1 and suffix in (".png", *JPEG_SUFFIXES, ".tif", ".tiff")
    # PNG alone forbids a profile for colours in a gray image.
    return suffix in (*JPEG_SUFFIXES, ".tif", ".tiff", ".webp") or (suffix == ".png" and channels > 1)


def _keeps_exif(suffix: str, header: ImageHeader) -> bool:
    if header.exif is None or suffix not in (".png", *JPEG_SUFFIXES, ".tif", ".tiff", ".webp"):
        return False
    return suffix not in JPEG_SUFFIXES or len(header.exif) <= _JPEG_SEGMENT


def _are_srgb(png_colours: dict[bytes, bytes]) -> bool:
    """Whether these chunks of a PNG, of which some overrule others, say no more than sRGB."""
    if b"cICP" in png_colours:
        return png_colours[b"cICP"] == _PNG_SRGB[b"cICP"]
    return b"sRGB" in png_colours or all(_PNG_SRGB[name] == content for name, content in png_colours.items())


def _png_header(file: OpenFile, path: Path) -> ImageHeader:
    chunks = _png_chunks(file, path)
    width, height, _, colours = struct.unpack(">IIBB", chunks.get(b"IHDR", b"").ljust(10, b"\0")[:10])
    if not (width and height):
        raise UserError(f"'{path}' is not an image that can be decoded; replace or remove it")
    frames = int.from_bytes(chunks.get(b"acTL", b"")[:4], "big")
    _check_frames(frames, path, "frames")
    profile, losses = None, []
    if b"iCCP" in chunks:
        try:
            unpacked = zlib.decompressobj()
            profile = unpacked.decompress(chunks[b"iCCP"].partition(b"\0")[2][1:], _LARGEST_PROFILE)
            # A small file can hold one that takes all memory.
            if not unpacked.eof:
                profile = None
                losses.append("colour profile, which is damaged or too large")
        except zlib.error:
            losses.append("colour profile, which is damaged")
    alpha = colours in (4, 6) or b"tRNS" in chunks
    header = _upright(height, width, chunks.get(b"eXIf"), profile, losses, alpha=alpha, gray=colours in (0, 4))
    kept = tuple((name, chunks[name]) for name in (*_PNG_SRGB, b"sRGB") if name in chunks)
    return replace(header, png_colours=kept)


def _png_chunks(file: OpenFile, path: Path) -> dict[bytes, bytes]:
    """The chunks that matter here; EXIF may stand behind the pixels, so all are passed."""
    chunks: dict[bytes, bytes] = {}
    file.seek(len(PNG_START))
    while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name in (b"IHDR", b"acTL", b"eXIf", b"iCCP", b"tRNS", b"sRGB", *_PNG_SRGB):
            chunks[name] = file.read(length)
            length = 0
        file.seek(length + 4, io.SEEK_CUR)
    if len(head) < 8:
        raise UserError(f"'{path}' is cut short; copy it again or remove it")
    return chunks


def _jpeg_header(file: OpenFile, path: Path) -> ImageHeader:
    exif, profile_parts, size, losses = None, {}, None, []
    for marker, content in _jpeg_segments(file):
        if marker == 0xE1 and content.startswith(EXIF_START) and exif is None:
            exif = content
        elif marker == 0xE2 and content.startswith(_JPEG_ICC):
            # Behind the name, the number of the part and how many there are.
            profile_parts[content[12]] = content[14:]
        elif marker == 0xE2 and content.startswith(_JPEG_MORE_PICTURES):
            losses = ["further pictures in the file: a preview, another view, depth, or the light of bright parts"]
        elif marker in _SIZE_SEGMENTS and len(content) >= 6:
            size = struct.unpack(">xHHB", content[:6])
    if size is None:
        raise UserError(f"'{path}' is cut short; copy it again or remove it")
    height, width, channels = size
    if channels == 4:
        raise UserError(f"'{path}' {_CMYK}")
    profile = b"".join(profile_parts[part] for part in sorted(profile_parts)) or None
    return _upright(height, width, exif, profile, losses, gray=channels == 1)


def _jpeg_segments(file: OpenFile) -> Iterator[tuple[int, bytes]]:
    """Marker and content of the segments before the pixels."""
    file.seek(2)
    while len(head := file.read(2)) == 2 and head[0] == 0xFF and head[1] != 0xDA:
        if head[1] == 0xFF:
            # Padding: the marker may begin with the second byte.
            file.seek(-1, io.SEEK_CUR)
            continue
        length = int.from_bytes(file.read(2), "big") - 2
        content = file.read(max(length, 0))
        if length < 0 or len(content) < length:
            return
        yield head[1], content


def _tiff_header(file: OpenFile, path: Path) -> ImageHeader:
    import tifffile

    # It would report on stderr what the sentence below says.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(file) as tiff:
            # The pages of a damaged file may follow each other in a circle.
            pages = [page.aspage() for page in islice(tiff.pages, _MOST_PAGES)]
            # Without previews (bit 0) and masks (bit 2).
            pages = [page for page in pages if not page.subfiletype & 0b101]
            tags = {tag.code: tag.value for tag in pages[0].tags}
            facts = (pages[0].imagelength, pages[0].imagewidth, int(pages[0].photometric), pages[0].dtype)
            alpha_kinds, separate = list(map(int, pages[0].extrasamples)), int(pages[0].planarconfig) == 2
    except Exception as error:  # Whatever the parser stumbles over in a damaged file.
        raise UserError(f"'{path}' is not an image that can be decoded; replace or remove it") from error
    height, width, photometric, dtype = facts
    _check_frames(len(pages), path, "pages")
    if photometric == 5:
        raise UserError(f"'{path}' {_CMYK}")
    if dtype is None or np.dtype(dtype) not in (np.bool_, np.uint8, np.uint16):
        raise UserError(f"'{path}' holds {dtype} values; convert it to 8 or 16 bits a channel")
    gray, deep = photometric in (0, 1), np.dtype(dtype) == np.uint16
    # Unspecified (0) and unassociated (2) alpha leave the colours alone; OpenCV reads these and no others.
    odd = photometric not in (0, 1, 2, 3, 6) or (gray and alpha_kinds) or any(kind == 1 for kind in alpha_kinds)
    if odd or len(alpha_kinds) > 1 or (deep and (separate or photometric == 0)):
        raise UserError(f"'{path}' is a TIFF of a rare kind; save it as plain 8- or 16-bit gray, RGB or RGBA")
    samples = tags.get(277, 1)
    fields = {tag: tags[tag] for tag in (*_PHOTOGRAPHER_TAGS, _ORIENTATION) if tag in tags}
    profile = tags.get(34675)
    exif = _tiff_exif(fields)
    return _upright(height, width, exif, profile, [], alpha=samples == 4, gray=gray)


def _tiff_exif(fields: dict[int, Any]) -> bytes:
    import PIL.Image

    exif = PIL.Image.Exif()
    exif.update({tag: fields[tag] for tag in _PHOTOGRAPHER_TAGS if isinstance(fields.get(tag), str)})
    if fields.get(_ORIENTATION) in range(1, 9):
        exif[_ORIENTATION] = fields[_ORIENTATION]
    return exif.tobytes()


def _pillow_header(file: OpenFile, path: Path) -> ImageHeader:
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            kind, size, mode, info = image.format or "", image.size, image.mode, dict(image.info)
            frames = getattr(image, "n_frames", 1) if kind in _PILLOW_FORMATS else 1
            alpha = image.has_transparency_data
    except PIL.Image.DecompressionBombError as error:
        raise UserError(f"'{path}' has too many pixels for its format; save it as PNG, JPEG or TIFF") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise UserError(f"'{path}' is not an image that can be decoded; replace or remove it") from error
    if kind not in _PILLOW_FORMATS:
        raise UserError(f"'{path}' holds {kind}, a format that gamax does not read; convert it to PNG, JPEG or TIFF")
    _check_frames(frames, path, "frames")
    gray = mode in ("1", "L", "I", "I;16", "LA")
    return _upright(size[1], size[0], info.get("exif"), info.get("icc_profile"), [], alpha=alpha, gray=gray)


def _check_frames(count: int, path: Path, word: str) -> None:
    if count > 1:
        raise UserError(f"'{path}' holds {count} {word}; extract them first and restore each")


def _upright(
    height: int,
    width: int,
    exif: bytes | None,
    profile: bytes | None,
    losses: list[str],
    *,
    alpha: bool = False,
    gray: bool = False,
) -> ImageHeader:
    """The header of an image with these stored sides and this EXIF block."""
    orientation, kept = 1, None
    if exif:
        import PIL.Image

        fields = PIL.Image.Exif()
        try:
            fields.load(exif)
            if fields.get(_ORIENTATION) in range(1, 9):
                orientation = int(fields[_ORIENTATION])
            kept = _kept(fields)
        except Exception:  # Whatever Pillow stumbles over in a damaged block.
            losses = [*losses, "EXIF fields, which are damaged"]
    if orientation >= 5:
        height, width = width, height
    return ImageHeader(
        height,
        width,
        orientation,
        alpha=alpha,
        gray=gray,
        icc_profile=profile,
        exif=kept,
        losses=tuple(losses),
    )


def _kept(exif: Any) -> bytes:
    """What copies keep of the fields, as a block that says upright."""
    import PIL.Image

    kept = PIL.Image.Exif()
    kept.update({tag: exif[tag] for tag in _PHOTOGRAPHER_TAGS if tag in exif})
    camera = exif.get_ifd(_CAMERA_DIRECTORY)
    kept[_CAMERA_DIRECTORY] = {tag: camera[tag] for tag in _CAMERA_TAGS if tag in camera}
    kept[_ORIENTATION] = 1
    return kept.tobytes()


def _with_png_chunks(
    png: bytes, colours: tuple[tuple[bytes, bytes], ...], profile: bytes | None, exif: bytes | None
) -> bytes:
    # Behind the first chunk, which is 25 bytes long: what says something of colours must stand before the pixels.
    end = len(PNG_START) + 25
    chunks = [_png_chunk(name, content) for name, content in colours]
    if profile:
        chunks.append(_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif:
        chunks.append(_png_chunk(b"eXIf", exif.removeprefix(EXIF_START)))
    return b"".join([png[:end], *chunks, png[end:]])


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _with_jpeg_segments(jpeg: bytes, profile: bytes | None, exif: bytes | None) -> bytes:
    # Behind the first segment, JFIF's, which must come first.
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    segments = []
    if exif:
        segments.append((b"\xff\xe1", exif))
    if profile:
        starts = range(0, len(profile), _JPEG_PROFILE_PART)
        parts = [profile[start : start + _JPEG_PROFILE_PART] for start in starts]
        segments += [
            (b"\xff\xe2", _JPEG_ICC + bytes([number, len(parts)]) + part) for number, part in enumerate(parts, 1)
        ]
    added = [marker + struct.pack(">H", len(content) + 2) + content for marker, content in segments]
    return b"".join([jpeg[:end], *added, jpeg[end:]])


def _encode_tiff(image: np.ndarray, profile: bytes | None, exif: bytes | None) -> bytes:
    import PIL.Image
    import tifffile

    fields = PIL.Image.Exif()
    fields.load(exif or b"")
    texts = [(tag, 2, 0, fields[tag], True) for tag in _PHOTOGRAPHER_TAGS if isinstance(fields.get(tag), str)]
    content = io.BytesIO()
    tifffile.imwrite(
        content,
        image[..., 0] if image.shape[-1] == 1 else image,
        photometric="minisblack" if image.shape[-1] == 1 else "rgb",
        planarconfig=None if image.shape[-1] == 1 else "contig",
        # Colours are not multiplied by it; written without that word, some readers divide them.
        extrasamples=["unassalpha"] if image.shape[-1] == 4 else None,
        compression="zlib",
        predictor=True,
        iccprofile=profile,
        extratags=texts,
        metadata=None,
        software=False,
    )
    return content.getvalue()


def _encode_webp(image: np.ndarray, profile: bytes | None, exif: bytes | None) -> bytes:
    import PIL.Image

    pixels = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    content = io.BytesIO()
    # Exact: the colours of transparent pixels too.
    options = {"lossless": True, "exact": True, "icc_profile": profile or b"", "exif": exif or b""}
    try:
        PIL.Image.fromarray(pixels).save(content, "WEBP", **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{image.shape[1]}x{image.shape[0]} pixels cannot be encoded as WebP ({error})") from error
    return content.getvalue()
