from __future__ import annotations

import io
import os
import re
import struct

import cv2
import numpy as np
import pytest
import tifffile

from gamax.data.images import encode_image, list_images, pair_images, read_image, to_rgb, write_image
from gamax.errors import UserError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_read_returns_the_pixels_that_were_saved(tmp_path, save, dtype, channels, suffix):
    path = tmp_path / f"image{suffix}"
    image = save(path, (9, 13, channels), dtype)
    np.testing.assert_array_equal(read_image(path), image, strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_write_and_read_round_trip(tmp_path, dtype, channels):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 13, channels), dtype, endpoint=True)
    write_image(tmp_path / "image.PNG", image)
    np.testing.assert_array_equal(read_image(tmp_path / "image.PNG"), image, strict=True)
    assert os.listdir(tmp_path) == ["image.PNG"]


def test_write_replaces_a_file_and_leaves_it_alone_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    before, after = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    write_image(path, before)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=f"cannot write to folder '{tmp_path}' .No space left"):
            write_image(path, after)
    assert os.listdir(tmp_path) == ["image.png"]
    np.testing.assert_array_equal(read_image(path), before)
    write_image(path, after)
    np.testing.assert_array_equal(read_image(path), after)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "words"),
    [
        ("a.gif", (4, 4, 3), np.uint8, "choose one of .png"),
        ("a.pgm", (4, 4, 3), np.uint8, "PPM is for colour images"),
        ("a.ppm", (4, 4, 1), np.uint16, "PGM for gray ones"),
        ("a.jpg", (4, 4, 3), np.uint16, "16 bits a channel"),
        ("a.jpg", (4, 4, 4), np.uint8, "alpha channel"),
        ("a.jpg", (1, 65501, 3), np.uint8, "65501x1 pixels.* sides go up to 65500"),
        ("a.webp", (16384, 1, 3), np.uint8, "1x16384 pixels.* sides go up to 16383"),
        ("none/a.png", (4, 4, 3), np.uint8, "cannot write to folder"),
    ],
)
def test_write_refuses_what_it_cannot_keep(tmp_path, name, shape, dtype, words):
    with pytest.raises(UserError, match=words) as caught:
        write_image(tmp_path / name, np.zeros(shape, dtype))
    assert str((tmp_path / name).parent) in str(caught.value)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("suffix", "largest"), [(".jpg", 65500), (".webp", 16383)])
def test_an_encoder_that_refuses_is_one_sentence(capfd, suffix, largest):
    assert encode_image(np.zeros((1, largest, 3), np.uint8), suffix)
    with pytest.raises(UserError, match=f"{largest + 1}x1 pixels cannot be encoded"):
        encode_image(np.zeros((1, largest + 1, 3), np.uint8), suffix)
    assert capfd.readouterr() == ("", "")


def test_jfif_is_jpeg(tmp_path):
    image = np.full((16, 24, 3), 77, np.uint8)
    write_image(tmp_path / "image.JFIF", image)
    assert (tmp_path / "image.JFIF").read_bytes().startswith(b"\xff\xd8\xff")
    assert np.abs(read_image(tmp_path / "image.JFIF").astype(int) - image).max() <= 1
    assert len(list_images(tmp_path)) == 1


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_white_of_ppm_and_pgm_is_white(tmp_path, kind, white):
    channels = 3 if kind in (b"P3", b"P6") else 1
    values = np.linspace(0, white, 4 * channels).round().astype("u1" if white < 256 else ">u2")
    pixels = values.tobytes() if kind in (b"P5", b"P6") else b"".join(b"%d\n" % value for value in values)
    path = tmp_path / "image.ppm"
    path.write_bytes(kind + b" # 7 8 9\n2 2\n%d\n" % white + pixels)
    full = 255 if white < 256 else 65535
    expected = np.rint(values.astype(float) / white * full).reshape(2, 2, channels)
    image = read_image(path)
    assert image.dtype == (np.uint8 if white < 256 else np.uint16)
    # OpenCV truncates the 8-bit values of text.
    assert np.abs(image - expected).max() <= (kind in (b"P2", b"P3") and white == 100)


def test_exif_orientation_of_a_jpeg_is_applied(tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    jpeg = cv2.imencode(".jpg", np.rot90(upright), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    # One entry of one directory: orientation (0x0112), a short, once, value 6 (turn clockwise to view).
    directory = struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0) + struct.pack("<I", 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + directory
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    image = read_image(tmp_path / "turned.jpg")
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() < 16


def encoded(suffix):
    return cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))[1].tobytes()


def float_tiff():
    content = io.BytesIO()
    tifffile.imwrite(content, np.ones((4, 4, 3), np.float32), photometric="rgb")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.png", None, "no image"),
        ("empty.png", b"", "is empty"),
        ("text.png", b"not an image\n" * 9, "not an image that can be decoded"),
        ("truncated.png", encoded(".png")[:-20], "is cut short"),
        ("header.png", encoded(".png")[:20], "is cut short"),
        ("truncated.jpg", encoded(".jpg")[:-500], "is cut short"),
        ("header.jpg", encoded(".jpg")[:20], "is cut short"),
        ("truncated.webp", encoded(".webp")[:-500], "not an image that can be decoded"),
        ("truncated.tif", encoded(".tif")[:-500], "not an image that can be decoded"),
        ("float.tif", float_tiff(), "holds float32 values"),
        ("flat.png", encoded(".png")[:16] + bytes(4) + encoded(".png")[20:], "not an image that can be decoded"),
    ],
)
def test_unreadable_files_are_named_in_one_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_image(path)
    assert f"'{path}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text.png", "truncated.png", "truncated.jpg", "truncated.tif"])
def test_decoders_do_not_talk_over_the_error(tmp_path, capfd, name):
    content = b"text" * 20 if name == "text.png" else encoded(name[-4:])[:-200]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError):
        read_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_with_padding_and_a_trailer_is_complete(tmp_path):
    jpeg = encoded(".jpg")
    trailer = b"\xff\xda trailer of a phone"
    (tmp_path / "phone.jpg").write_bytes(jpeg[:2] + b"\xff\xff" + jpeg[2:] + trailer)
    assert read_image(tmp_path / "phone.jpg").shape == (40, 40, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_to_rgb(channels):
    image = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), np.uint16)
    rgb = to_rgb(image)
    assert rgb.shape == (5, 7, 3)
    assert rgb.dtype == np.uint16
    np.testing.assert_array_equal(rgb, image[..., [0, 0, 0]] if channels == 1 else image[..., :3])


def test_images_are_listed_in_natural_order(tmp_path):
    for name in ["img10.png", "img2.PNG", "IMG1.jpg", "img2b.tiff", "notes.txt", ".hidden.png", "10.webp", "9.bmp"]:
        (tmp_path / name).touch()
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["9.bmp", "10.webp", "IMG1.jpg", "img2.PNG", "img2b.tiff", "img10.png"]
    assert [path.name for path in list_images(tmp_path, (".txt",))] == ["notes.txt"]


def test_listing_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"no folder '{tmp_path / 'none'}'")):
        list_images(tmp_path / "none")
    with pytest.raises(UserError, match=re.escape(f"no images directly in folder '{tmp_path}'")):
        list_images(tmp_path)


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_pairs_are_matched_by_stem(tmp_path):
    touch(tmp_path / "input", "b10.jpg", "b9.jpg")
    touch(tmp_path / "target", "b9.png", "b10.png")
    names = [(source.name, target.name) for source, target in pair_images(tmp_path)]
    assert names == [("b9.jpg", "b9.png"), ("b10.jpg", "b10.png")]


def test_unpaired_images_are_named_and_counted(tmp_path):
    touch(tmp_path / "input", "a.png", "b.png")
    touch(tmp_path / "target", "a.png")
    with pytest.raises(UserError, match=r"^1 image has no partner .*: input/b.png$"):
        pair_images(tmp_path)
    touch(tmp_path / "target", *(f"t{i}.png" for i in range(4)))
    with pytest.raises(
        UserError, match=r"^5 images have no partner .*: input/b.png, target/t0.png, target/t1.png, ..."
    ):
        pair_images(tmp_path)


def test_pairing_needs_both_folders_and_unique_names(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        pair_images(tmp_path / "none" / "pairs")
    touch(tmp_path / "input", "a.png")
    with pytest.raises(UserError, match="must hold the folders input/ and target/"):
        pair_images(tmp_path)
    touch(tmp_path / "target", "a.png", "a.jpg")
    with pytest.raises(UserError, match=r"2 images in folder '.*target' are named 'a'"):
        pair_images(tmp_path)
