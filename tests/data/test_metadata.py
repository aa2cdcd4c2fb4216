from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from gamax.data.images import read_image
from gamax.data.metadata import ImageHeader, describe_losses, encode_with_metadata, read_header, turn_upright
from gamax.errors import UserError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 13, 3), np.uint8)
GRAY = RGB[..., 0]
ALPHA = RGB[..., 1]
SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
CAMERA_TAGS = 0x8769
LOSSLESS = [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint8), (".tif", np.uint16), (".webp", np.uint8)]


def photographers_exif(orientation: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif.update({271: "Maker", 272: "Model", 274: orientation, 306: "2026:01:02 03:04:05"})
    exif[CAMERA_TAGS] = {36867: "2026:01:02 03:04:05", 33434: 0.005, 37500: b"maker's note", 42036: "Lens"}
    exif[0x8825] = {1: "N"}
    return exif


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_the_orientation_of_every_format_is_applied_as_pillow_does(tmp_path, kind, orientation):
    # Large areas, which JPEG keeps.
    stored = PIL.Image.fromarray(np.kron(RGB[:2, :3], np.ones((16, 16, 1), np.uint8)))
    exif = photographers_exif(orientation)
    options = {"JPEG": {"quality": 100, "subsampling": 0, "exif": exif}, "TIFF": {"tiffinfo": {274: orientation}}}
    path = tmp_path / f"turned.{kind.lower()}"
    path.write_bytes(saved(stored, kind, **options.get(kind, {"lossless": True, "exif": exif})))
    transpositions = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    upright = np.array(stored.transpose(transpositions[orientation]) if orientation > 1 else stored)
    image, header = read_image(path), read_header(path)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() <= (4 if kind == "JPEG" else 0)
    assert (header.height, header.width, header.orientation) == (*upright.shape[:2], orientation)
    np.testing.assert_array_equal(turn_upright(np.array(stored), orientation), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turned_tiffs_with_alpha_are_turned_once(tmp_path, dtype, orientation):
    stored = RNG.integers(0, np.iinfo(dtype).max, (9, 13, 4), dtype, endpoint=True)
    tags = [(274, 3, 1, orientation, True)]
    (tmp_path / "a.tif").write_bytes(tiff(stored, photometric="rgb", extrasamples=["unassalpha"], extratags=tags))
    image, header = read_image(tmp_path / "a.tif"), read_header(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, turn_upright(stored, orientation), strict=True)
    assert (header.height, header.width) == image.shape[:2]


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path):
    png = saved(PIL.Image.fromarray(RGB), "PNG", exif=photographers_exif(6))
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    path = tmp_path / "late.png"
    path.write_bytes(png[:start] + png[end:-12] + png[start:end] + png[-12:])
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))
    assert (read_header(path).height, read_header(path).width) == (13, 9)


# One that needs several segments in a JPEG.
@pytest.mark.parametrize(
    "profile", [SRGB, SRGB + bytes(RNG.integers(0, 256, 150_000, np.uint8))], ids=["sRGB", "large"]
)
@pytest.mark.parametrize(("suffix", "dtype"), [*LOSSLESS, (".jpg", np.uint8)])
def test_profile_and_camera_survive_in_every_format(tmp_path, profile, suffix, dtype):
    (tmp_path / "source.jpg").write_bytes(
        saved(PIL.Image.fromarray(RGB), "JPEG", exif=photographers_exif(6), icc_profile=profile)
    )
    header = read_header(tmp_path / "source.jpg")
    assert header.icc_profile == profile
    image = RNG.integers(0, np.iinfo(dtype).max, (9, 13, 3), dtype, endpoint=True)
    path = tmp_path / f"copy{suffix}"
    path.write_bytes(encode_with_metadata(image, suffix, header))
    if suffix != ".jpg":
        np.testing.assert_array_equal(read_image(path), image)
    # By another reader than ours.
    with PIL.Image.open(path) as copy:
        assert copy.info["icc_profile"] == profile
        exif = copy.getexif()
        assert exif.get(274, 1) == 1
        assert (exif[271], exif[306]) == ("Maker", "2026:01:02 03:04:05")
        camera = exif.get_ifd(CAMERA_TAGS)
        if suffix != ".tif":
            assert (camera[36867], float(camera[33434]), camera[42036]) == ("2026:01:02 03:04:05", 0.005, "Lens")
        assert 37500 not in camera
        assert 0x8825 not in exif
    again = read_header(path)
    assert (again.height, again.width, again.icc_profile) == (9, 13, profile)


@pytest.mark.parametrize("extra", [0, 1])
def test_what_is_too_large_for_jpeg_is_dropped_and_said(extra):
    # 255 segments of the profile, each behind 14 bytes of its own, and one of EXIF.
    profile = SRGB.ljust(255 * (65533 - 14) + extra, b"x")
    exif = photographers_exif(1).tobytes().ljust(65533 + extra, b"\0")
    header = ImageHeader(9, 13, icc_profile=profile, exif=exif)
    jpeg = PIL.Image.open(io.BytesIO(encode_with_metadata(RGB, ".jpg", header)))
    assert (jpeg.info.get("icc_profile") == profile) == (not extra)
    assert (jpeg.info.get("exif") == exif) == (not extra)
    losses = describe_losses(3, ".jpg", header)
    assert [loss.partition(",")[0] for loss in losses] == ["colour profile", "camera's notes"] * extra
    assert not describe_losses(3, ".png", header)


def test_an_encoder_that_refuses_is_one_sentence():
    with pytest.raises(UserError, match="1x16384 pixels cannot be encoded as WebP"):
        encode_with_metadata(np.zeros((16384, 1, 3), np.uint8), ".webp", ImageHeader(16384, 1))


def with_chunks(png: bytes, chunks: dict[bytes, bytes]) -> bytes:
    """The PNG with more chunks behind the first."""
    added = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    ]
    return png[:33] + b"".join(added) + png[33:]


GAMMA = {b"gAMA": struct.pack(">I", 100_000)}
SRGB_GAMMA = {b"gAMA": struct.pack(">I", 45455)}
PRIMARIES = {b"cHRM": struct.pack(">8I", 31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600)}
PQ = {b"cICP": bytes([9, 16, 0, 1])}


@pytest.mark.parametrize(
    ("chunks", "lost"),
    [
        ({b"sRGB": b"\0"}, False),
        (SRGB_GAMMA, False),
        (GAMMA, True),
        (PRIMARIES, True),
        # The chunk sRGB overrules these, and cICP all others.
        ({b"sRGB": b"\0", **GAMMA, **PRIMARIES}, False),
        ({b"sRGB": b"\0", **PQ}, True),
        ({b"cICP": bytes([1, 13, 0, 1]), **GAMMA}, False),
    ],
)
def test_what_a_png_says_of_its_colours_stays_in_png_or_is_reported(tmp_path, chunks, lost):
    path = tmp_path / "a.png"
    path.write_bytes(with_chunks(saved(PIL.Image.fromarray(RGB), "PNG"), chunks))
    header = read_header(path)
    assert not describe_losses(3, ".png", header)
    path.write_bytes(encode_with_metadata(RGB, ".png", header))
    assert dict(read_header(path).png_colours) == chunks
    np.testing.assert_array_equal(np.array(PIL.Image.open(path)), RGB)
    losses = describe_losses(3, ".tif", header)
    assert [loss.partition(",")[0] for loss in losses] == ["colour space"] * lost
    with_profile = ImageHeader(9, 13, icc_profile=SRGB, png_colours=header.png_colours)
    # A profile counts more than the other chunks, and cICP more than a profile.
    assert bool(describe_losses(3, ".tif", with_profile)) == (PQ.items() <= chunks.items())


def test_jpeg_pixels_are_those_without_metadata():
    plain = cv2.imencode(".jpg", RGB[..., ::-1])[1]
    marked = encode_with_metadata(RGB, ".JPG", ImageHeader(9, 13, icc_profile=SRGB))
    assert len(marked) > len(plain)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(marked, np.uint8), 1), cv2.imdecode(plain, 1))


@pytest.mark.parametrize(
    ("suffix", "channels", "space", "kept"),
    [
        (".png", 1, b"RGB ", 0),
        (".jpg", 1, b"RGB ", 1),
        (".png", 3, b"GRAY", 0),
        (".png", 1, b"GRAY", 1),
        (".bmp", 3, b"RGB ", 0),
    ],
)
def test_a_profile_that_does_not_fit_is_left_out(suffix, channels, space, kept):
    profile = SRGB[:16] + space + SRGB[20:]
    content = encode_with_metadata(RGB[..., :channels], suffix, ImageHeader(9, 13, icc_profile=profile))
    assert (PIL.Image.open(io.BytesIO(content)).info.get("icc_profile") == profile) == kept


@pytest.mark.parametrize("alpha", [0, 1, 254])
@pytest.mark.parametrize(("suffix", "dtype"), LOSSLESS)
def test_alpha_changes_no_colour(tmp_path, alpha, suffix, dtype):
    image = RNG.integers(0, np.iinfo(dtype).max, (9, 13, 4), dtype, endpoint=True)
    image[..., 3] = alpha
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encode_with_metadata(image, suffix, ImageHeader(9, 13)))
    np.testing.assert_array_equal(read_image(path), image, strict=True)
    assert read_header(path).alpha


def with_alpha(image: np.ndarray, alpha: np.ndarray) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(image)
    picture.putalpha(PIL.Image.fromarray(alpha))
    return picture


def tiff_of_few_bits(bits: int) -> bytes:
    """A gray TIFF of 9x13 pixels, those of `GRAY` in so many bits, packed."""
    rows = []
    for row in GRAY >> (8 - bits):
        packed = "".join(f"{value:0{bits}b}" for value in row)
        rows.append(int(packed.ljust(-(-len(packed) // 8) * 8, "0"), 2).to_bytes(-(-len(packed) // 8), "big"))
    pixels = b"".join(rows)
    tags = {256: 13, 257: 9, 258: bits, 259: 1, 262: 1, 273: 200, 277: 1, 278: 9, 279: len(pixels)}
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    return start.ljust(200, b"\0") + pixels


TURNED = [(274, 3, 1, 5, True)]
PALETTE = PIL.Image.fromarray(RGB).quantize(17)
KINDS = {
    "palette.png": (saved(PALETTE, "PNG"), "RGB"),
    "16 colours.png": (saved(PIL.Image.fromarray(RGB).quantize(9), "PNG", bits=4), "RGB"),
    "transparent palette.png": (saved(PALETTE, "PNG", transparency=3), "RGBA"),
    "transparent colour.png": (saved(PIL.Image.fromarray(RGB), "PNG", transparency=tuple(map(int, RGB[0, 0]))), "RGBA"),
    "palette.bmp": (saved(PALETTE, "BMP"), "RGB"),
    "palette.tif": (saved(PALETTE, "TIFF"), "RGB"),
    "1 bit.png": (saved(PIL.Image.fromarray(GRAY > 99), "PNG"), "L"),
    "1 bit.bmp": (saved(PIL.Image.fromarray(GRAY > 99), "BMP"), "L"),
    "fax.tif": (saved(PIL.Image.fromarray(GRAY > 99), "TIFF", compression="group4"), "L"),
    "gray.jpg": (saved(PIL.Image.fromarray(GRAY), "JPEG"), "L"),
    "gray.png": (saved(PIL.Image.fromarray(GRAY), "PNG"), "L"),
    "gray and alpha.png": (saved(with_alpha(GRAY, ALPHA), "PNG"), "RGBA"),
    "rgba.png": (saved(with_alpha(RGB, ALPHA), "PNG"), "RGBA"),
    "rgba.tif": (saved(with_alpha(RGB, ALPHA), "TIFF"), "RGBA"),
    "rgba lzw.tif": (saved(with_alpha(RGB, ALPHA), "TIFF", compression="tiff_lzw"), "RGBA"),
    "rgba.webp": (saved(with_alpha(RGB, ALPHA), "WEBP", lossless=True, exact=True), "RGBA"),
    "planes.tif": (tiff(RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), "RGB"),
    "2 bits.tif": (tiff_of_few_bits(2), "L"),
    "4 bits.tif": (tiff_of_few_bits(4), "L"),
    "tiles.tif": (tiff(RGB, photometric="rgb", tile=(16, 16)), "RGB"),
    "turned tiles.tif": (tiff(RGB.transpose(1, 0, 2), photometric="rgb", tile=(16, 16), extratags=TURNED), "RGB"),
    "white is zero.tif": (tiff(GRAY, photometric="miniswhite"), "L"),
    "a png.jpg": (saved(PIL.Image.fromarray(RGB), "PNG"), "RGB"),
    "two pictures of a camera.jpg": (
        saved(PIL.Image.fromarray(RGB), "MPO", save_all=True, append_images=[PIL.Image.fromarray(RGB[::-1])]),
        "RGB",
    ),
    "with preview.tif": (b"", "RGB"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_is_what_pillow_makes_of_it(tmp_path, name):
    content, mode = KINDS[name]
    path = tmp_path / name
    path.write_bytes(content)
    if name == "with preview.tif":
        with tifffile.TiffWriter(path) as writer:
            writer.write(RGB, photometric="rgb")
            writer.write(RGB[::4, ::4], photometric="rgb", subfiletype=1)
    with PIL.Image.open(path) as image:
        expected = np.array(image.convert(mode)).reshape(9, 13, -1)
    if name == "white is zero.tif":
        expected = 255 - GRAY[..., None]
    decoded, header = read_image(path), read_header(path)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= (2 if decoded.shape[2] == 3 and "camera" in name else 0)
    assert (header.height, header.width, header.alpha) == (9, 13, mode == "RGBA")
    assert header.gray == (mode == "L" or name == "gray and alpha.png")


FRAMES = [PIL.Image.fromarray(np.roll(RGB, shift, 0)) for shift in range(3)]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
DEEP = RGB.astype(np.uint16) * 257
REFUSED = {
    "a.gif": (saved(FRAMES[0], "GIF", **ANIMATED), "holds GIF, a format that gamax does not read"),
    "a.png": (saved(FRAMES[0], "PNG", **ANIMATED), "holds 3 frames; extract them first"),
    "a.webp": (saved(FRAMES[0], "WEBP", **ANIMATED), "holds 3 frames; extract them first"),
    "a.tif": (saved(FRAMES[0], "TIFF", **ANIMATED), "holds 3 pages; extract them first"),
    "cmyk.jpg": (saved(FRAMES[0].convert("CMYK"), "JPEG"), "CMYK colours"),
    "cmyk.tif": (saved(FRAMES[0].convert("CMYK"), "TIFF"), "CMYK colours"),
    "float.tif": (tiff(RGB / np.float32(255), photometric="rgb"), "holds float32 values"),
    "32 bits.tif": (tiff(RGB.astype(np.uint32), photometric="rgb"), "holds uint32 values"),
    "planes.tif": (tiff(DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), "of a rare kind"),
    "white is zero.tif": (tiff(DEEP[..., 0], photometric="miniswhite"), "of a rare kind"),
    "gray and alpha.tif": (
        tiff(DEEP[..., :2], photometric="minisblack", extrasamples=["unassalpha"]),
        "of a rare kind",
    ),
    "multiplied.tif": (tiff(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["assocalpha"]), "of a rare kind"),
    "empty.png": (b"", "is empty"),
    "text.webp": (b"This is not a picture.", "not an image that can be decoded"),
    "cut.png": (saved(FRAMES[0], "PNG")[:-20], "is cut short"),
    "cut.jpg": (saved(FRAMES[0], "JPEG")[:40], "is cut short"),
    "cut.tif": (saved(FRAMES[0], "TIFF")[:30], "not an image that can be decoded"),
    "no size.png": (saved(FRAMES[0], "PNG")[:16] + bytes(8) + saved(FRAMES[0], "PNG")[24:], "not an image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_restored_honestly_is_one_sentence(tmp_path, name, capfd):
    content, words = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_header(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_no_file_and_no_plain_file(tmp_path):
    with pytest.raises(UserError, match="no image"):
        read_header(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*folder.png.*directory"):
        read_header(Path(tmp_path / "folder.png"))


def test_16_bit_tiffs_that_would_be_decoded_wrongly_are_refused_by_every_reader(tmp_path):
    (tmp_path / "planes.tif").write_bytes(REFUSED["planes.tif"][0])
    with pytest.raises(UserError, match="of a rare kind"):
        read_image(tmp_path / "planes.tif")


def test_a_tiff_whose_pages_go_round_in_a_circle_comes_to_an_end(tmp_path):
    image = bytearray(tiff_of_few_bits(4))
    # Behind the directory, where the next one is: in the header, which reads as an empty one.
    image[10 + 9 * 12] = 4
    (tmp_path / "a.tif").write_bytes(image)
    with pytest.raises(UserError, match="pages; extract them first"):
        read_header(tmp_path / "a.tif")


def test_further_pictures_in_a_jpeg_are_a_loss(tmp_path):
    (tmp_path / "a.jpg").write_bytes(KINDS["two pictures of a camera.jpg"][0])
    assert [loss.partition(":")[0] for loss in read_header(tmp_path / "a.jpg").losses] == [
        "further pictures in the file"
    ]


def test_notes_of_the_wrong_type_do_not_stop_an_image(tmp_path):
    path = tmp_path / "a.jpg"
    jpeg = saved(FRAMES[0], "JPEG", exif=photographers_exif(6))
    # The maker (0x010F) as a fraction (5) instead of text (2).
    path.write_bytes(jpeg.replace(b"\x01\x0f\0\x02", b"\x01\x0f\0\x05"))
    header = read_header(path)
    assert (header.height, header.width, header.orientation) == (*read_image(path).shape[:2], 6)
    assert header.exif is None
    assert header.losses == ("EXIF fields, which are damaged",)


def test_damaged_notes_do_not_stop_an_image(tmp_path):
    path = tmp_path / "a.jpg"
    jpeg = saved(FRAMES[0], "JPEG", exif=photographers_exif(6))
    path.write_bytes(jpeg.replace(b"Exif\0\0MM", b"Exif\0\0??"))
    header = read_header(path)
    assert (header.height, header.width, header.exif) == (9, 13, None)
    assert header.losses == ("EXIF fields, which are damaged",)
    png = saved(FRAMES[0], "PNG", icc_profile=SRGB)
    start = png.index(b"iCCP") + 4 + len(b"ICC Profile\0\0")
    (tmp_path / "a.png").write_bytes(png[:start] + bytes(20) + png[start + 20 :])
    header = read_header(tmp_path / "a.png")
    assert header.icc_profile is None
    assert header.losses == ("colour profile, which is damaged",)


def test_a_profile_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(FRAMES[0], "PNG", icc_profile=bytes(2**26)))
    header = read_header(tmp_path / "a.png")
    assert header.icc_profile is None
    assert header.losses == ("colour profile, which is damaged or too large",)
