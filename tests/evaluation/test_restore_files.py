"""From files to files; where pixels are to survive, the network's parameters are zero, so that it changes nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
from skimage import data

from gamax.cli import main
from gamax.data.images import read_image, to_float, to_integers, write_image
from gamax.data.metadata import turn_upright
from gamax.errors import StoppedError, UserError
from gamax.evaluation import restore_files as module
from gamax.evaluation.before_after import before_after, most_changed
from gamax.evaluation.buckets import shape_buckets
from gamax.evaluation.metrics import psnr
from gamax.evaluation.restore_files import restore_files
from gamax.evaluation.restorer import Restorer
from gamax.interop.weights import save_weights
from gamax.models import abstract_params, create_model
from gamax.pretrained import PRETRAINED

ROOT = Path(__file__).parents[2]
TINY = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
LOG = "restored.jsonl"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, random_params) -> Path:
    """Of a network that changes every image."""
    model = create_model("gama_ir_tiny", **TINY)
    params = jax.tree.map(lambda leaf: 0.1 * leaf, random_params(model, (1, 16, 16, 3)))
    save_weights(path := tmp_path_factory.mktemp("weights") / "w.safetensors", params, "gama_ir_tiny", TINY)
    return path


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> Path:
    """Of a network whose output is its input."""
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(create_model("gama_ir_tiny", **TINY))
    )
    save_weights(path := tmp_path_factory.mktemp("identity") / "w.safetensors", params, "gama_ir_tiny", TINY)
    return path


def random_image(height: int = 24, width: int = 32, channels: int = 3, dtype: type = np.uint8, seed: int = 0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def fill(folder: Path, *names: str, height: int = 24, width: int = 32) -> list[Path]:
    folder.mkdir(exist_ok=True, parents=True)
    for seed, name in enumerate(names):
        write_image(folder / name, random_image(height, width, seed=seed))
    return [folder / name for name in names]


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


# ---- one bad file in a thousand ----

SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
PHOTO = PIL.Image.fromarray(random_image(seed=5))
FRAMES = {"save_all": True, "append_images": [PIL.Image.fromarray(random_image(seed=6))]}
BAD = {
    "truncated.jpg": (saved(PHOTO, "JPEG")[:-300], "is cut short"),
    "empty.png": (b"", "is empty"),
    "text.png": (b"This is not a picture.", "not an image"),
    "cmyk.jpg": (saved(PHOTO.convert("CMYK"), "JPEG"), "CMYK"),
    "animated.gif": (saved(PHOTO, "GIF", **FRAMES), "is GIF, a format that gamax does not read"),
    "animated.png": (saved(PHOTO, "PNG", **FRAMES), "holds 2 frames"),
    "one pixel.png": (saved(PHOTO.crop((0, 0, 1, 1)), "PNG"), "has 1x1 pixels"),
    "phone.heic": (b"ftypheic", "is HEIC, a format"),
    "protected.png": (saved(PHOTO, "PNG"), "protected.png' is write-protected"),
    "transparent.bmp": (saved(PHOTO.convert("RGBA"), "PNG"), "cannot write an alpha channel"),
}
ODD = {
    "a png.jpg": saved(PHOTO, "PNG"),
    "palette.png": saved(PHOTO.quantize(9), "PNG"),
    "Überraschung 写真.png": saved(PHOTO, "PNG", icc_profile=SRGB),
    "16 bit gray.png": cv2.imencode(".png", random_image(channels=1, dtype=np.uint16))[1].tobytes(),
}


def bad_folder(folder: Path, count: int) -> Path:
    """A folder of `count` files called images, some of them bad or odd, and a few others."""
    fill(folder)
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)
    for name, content in ODD.items():
        (folder / name).write_bytes(content)
    for index in range(count - len(BAD) - len(ODD)):
        cv2.imwrite(str(folder / f"photo {index}.jpg"), random_image(20 + index % 4, 30 + index % 3, seed=index))
    for name in ("notes.txt", ".hidden.png", "result.json"):
        (folder / name).write_text("not for us")
    return folder


def test_without_flags_the_weights_of_gamax_denoise(tmp_path, monkeypatch, capsys):
    noisy = to_float(data.astronaut()[:96, 100:196]) + np.random.default_rng(0).normal(0, 25 / 255, (96, 96, 3))
    write_image(tmp_path / "photo.png", to_integers(noisy, np.uint8))
    monkeypatch.setattr(sys, "argv", ["gamax", "restore", str(tmp_path / "photo.png")])
    main()
    said = capsys.readouterr().out
    assert "weights denoise-photo" in said
    assert PRETRAINED["denoise-photo"].licence in said
    restored, clean = read_image(tmp_path / "photo_restored.png"), data.astronaut()[:96, 100:196]
    assert psnr(to_float(restored), to_float(clean), peak=1) > psnr(noisy, to_float(clean), peak=1) + 6


def test_the_task_chooses_the_weights(tmp_path, capsys):
    write_image(tmp_path / "photo.png", data.astronaut()[:64, 100:164])
    (path,) = restore_files([tmp_path / "photo.png"], None, task="derain")
    assert "weights derain: " in capsys.readouterr().out
    restored = Restorer.from_weights("derain")(data.astronaut()[:64, 100:164])
    np.testing.assert_array_equal(read_image(path), restored)


def test_no_path_of_that_name_replaces_the_default_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "denoise-photo").write_bytes(b"not weights")
    write_image(tmp_path / "photo.png", data.astronaut()[:32, :32])
    (path,) = restore_files([tmp_path / "photo.png"], None)
    restored = Restorer.from_weights(PRETRAINED["denoise-photo"].path)(data.astronaut()[:32, :32])
    np.testing.assert_array_equal(read_image(path), restored)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "dehaze"}, r"no weights for the task dehaze .* only for denoise and derain: .*configs/lir_dehaze.py"),
        ({"task": "derian"}, r"unknown task 'derian' \(did you mean 'derain'\?\)"),
        ({"task": "derain", "weights": Path("denoise-real")}, "weights denoise-real are for denoise, not derain"),
        ({"weights": Path("denoise-reel")}, r"no weights at 'denoise-reel'; .*denoise-real"),
    ],
)
def test_wrong_tasks_and_weights_are_named_before_any_work(arguments, sentence, tmp_path):
    write_image(tmp_path / "photo.png", random_image())
    with pytest.raises(UserError, match=sentence):
        restore_files([tmp_path / "photo.png"], None, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_what_is_bad_among_a_thousand_is_reported_and_all_else_restored(tmp_path, weights, monkeypatch, capsys):
    count = 1000
    folder, output = bad_folder(tmp_path / "in 入", count), tmp_path / "out 出"
    output.mkdir()
    (output / "protected.png").write_bytes(b"precious")
    (output / "protected.png").chmod(0o444)
    command = ["gamax", "restore", str(folder), "-o", str(output), "--weights", str(weights), "--overwrite"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {len(BAD)} of {count} images could not be restored, listed above\n"
    reported = [line for line in printed.out.splitlines() if line.startswith("not restored: ")]
    for name, (_, words) in BAD.items():
        assert sum(name in line and words in line for line in reported) == 1, name
    assert len(reported) == len(BAD)
    assert f"wrote {count - len(BAD)} image(s)" in printed.out
    assert (output / "protected.png").read_bytes() == b"precious"
    good = {path.name for path in folder.iterdir()} - {*BAD, "notes.txt", ".hidden.png", "result.json"}
    assert len(good) == count - len(BAD)
    assert {path.name for path in output.iterdir()} == good | {"protected.png", LOG, ".lock"}
    for name in good:
        before, after = read_image(folder / name), read_image(output / name)
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    (programs,) = [line for line in printed.out.splitlines() if "compiled for them" in line]
    assert programs.startswith("13 size(s) of images, ")
    assert int(programs.split(", ")[1].split()[0]) <= 8
    lines = [json.loads(line) for line in (output / LOG).read_text().splitlines()]
    assert {line["target"] for line in lines} == good


# ---- what survives ----

FORMATS = [
    *(
        (suffix, dtype, channels)
        for suffix in (".png", ".tif")
        for dtype in (np.uint8, np.uint16)
        for channels in (1, 3, 4)
    ),
    *((".webp", np.uint8, 3), (".webp", np.uint8, 4), (".bmp", np.uint8, 1), (".bmp", np.uint8, 3)),
    *((".pgm", np.uint8, 1), (".pgm", np.uint16, 1), (".ppm", np.uint8, 3), (".ppm", np.uint16, 3)),
]


def test_every_format_and_depth_survives_to_the_bit(tmp_path, identity):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, (suffix, dtype, channels) in enumerate(FORMATS):
        image = random_image(channels=channels, dtype=dtype, seed=seed)
        write_image(folder / f"{channels}{np.dtype(dtype).name}{suffix}", image)
    written = restore_files(sorted(folder.iterdir()), tmp_path / "out", identity)
    assert len(written) == len(FORMATS)
    for path in written:
        np.testing.assert_array_equal(read_image(path), read_image(folder / path.name), strict=True, err_msg=path.name)


def test_turned_photographs_come_out_upright_with_profile_and_camera(tmp_path, identity):
    folder, image = tmp_path / "in", random_image()
    folder.mkdir()
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif.update({272: "Camera", 274: orientation})
        options = {"exif": exif, "icc_profile": SRGB}
        PIL.Image.fromarray(image).save(folder / f"{orientation}.jpg", quality=100, **options)
        PIL.Image.fromarray(image).save(folder / f"{orientation}.png", **options)
        PIL.Image.fromarray(image).save(folder / f"{orientation}.webp", lossless=True, **options)
        tags = [(272, 2, 0, "Camera", True), (274, 3, 1, orientation, True)]
        deep = {"photometric": "rgb", "compression": "zlib", "iccprofile": SRGB, "metadata": None}
        tifffile.imwrite(folder / f"{orientation}.tif", image.astype(np.uint16) * 257, extratags=tags, **deep)
    written = restore_files(sorted(folder.iterdir()), tmp_path / "out", identity)
    assert len(written) == 32
    for path in written:
        upright, restored = turn_upright(image, int(path.stem)), read_image(path)
        if path.suffix == ".jpg":
            # What was read: writing costs a little more.
            assert restored.shape == upright.shape
            assert np.abs(restored.astype(int) - read_image(folder / path.name)).mean() < 8
        else:
            np.testing.assert_array_equal(
                restored, upright.astype(restored.dtype) * (257 if path.suffix == ".tif" else 1)
            )
        with PIL.Image.open(path) as picture:
            assert picture.info["icc_profile"] == SRGB
            assert picture.getexif().get(274, 1) == 1
            assert picture.getexif()[272] == "Camera"


def test_another_format_keeps_the_profile_or_says_so(tmp_path, identity, capsys):
    PHOTO.save(tmp_path / "photo.jpg", icc_profile=SRGB)
    restore_files([tmp_path / "photo.jpg"], tmp_path / "photo.png", identity)
    with PIL.Image.open(tmp_path / "photo.png") as picture:
        assert picture.info["icc_profile"] == SRGB
    assert "not kept" not in capsys.readouterr().out
    restore_files([tmp_path / "photo.jpg"], tmp_path / "photo.bmp", identity)
    assert "not kept of 'photo.jpg': colour profile" in capsys.readouterr().out


def test_gray_with_alpha_stays_gray(tmp_path, weights):
    image = random_image(channels=1)
    picture = PIL.Image.fromarray(image[..., 0])
    picture.putalpha(PIL.Image.fromarray(image[::-1, :, 0]))
    picture.save(tmp_path / "a.png")
    (path,) = restore_files([tmp_path / "a.png"], None, weights)
    restored = read_image(path)
    np.testing.assert_array_equal(restored[..., :3], Restorer.from_weights(weights)(image).repeat(3, 2))
    np.testing.assert_array_equal(restored[..., 3:], image[::-1])


# ---- how it is restored ----


def test_many_sizes_take_few_programs_or_exact_ones(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(module, "shape_buckets", partial(shape_buckets, programs=2))
    sources = []
    for index in range(3):
        sources += fill(tmp_path / "in", f"{index}.png", height=50 + 2 * index, width=44 - 2 * index)
    restore_files(sources, tmp_path / "few", weights)
    printed = capsys.readouterr().out
    assert "3 size(s) of images, 2 program(s) compiled for them" in printed
    assert "2 image(s) were padded by more than the network needs" in printed
    lines = [json.loads(line) for line in (tmp_path / "few" / LOG).read_text().splitlines()]
    assert len({tuple(line["settings"]["padded_to"]) for line in lines}) == 2
    exact = restore_files(sources, tmp_path / "exact", weights, exact_sizes=True)
    assert "padded" not in capsys.readouterr().out
    restorer = Restorer.from_weights(weights)
    for source, target in zip(sources, exact, strict=True):
        np.testing.assert_array_equal(read_image(target), restorer(read_image(source)))


def test_small_images_are_restored_whole_and_large_ones_in_tiles(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(module, "LARGEST_WHOLE", 40 * 40)
    monkeypatch.setattr(module, "AUTO_TILE", 32)
    sources = [*fill(tmp_path / "in", "small.png"), *fill(tmp_path / "in", "large.png", height=48, width=80)]
    small, large = restore_files(sources, tmp_path / "out", weights)
    np.testing.assert_array_equal(read_image(small), Restorer.from_weights(weights)(read_image(sources[0])))
    tiled = Restorer.from_weights(weights, tile=32)(read_image(sources[1]))
    np.testing.assert_array_equal(read_image(large), tiled)
    assert "1 image(s) restored in tiles of 32 pixels, overlap 8; this network" in capsys.readouterr().out


def test_frames_of_a_video_keep_order_and_names_in_batches(tmp_path, weights, monkeypatch, capsys):
    names = [f"frame{index}.png" for index in (1, 2, 9, 10, 11, 100, 101)]
    fill(tmp_path / "in", *sorted(names))
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--batch-size", 3]
    monkeypatch.setattr(sys, "argv", ["gamax", *map(str, command)])
    main()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(names)
    assert f"wrote 7 image(s), {tmp_path / 'out/frame1.png'}" in capsys.readouterr().out
    restorer = Restorer.from_weights(weights)
    for name in names:
        expected = restorer(read_image(tmp_path / "in" / name)).astype(int)
        assert np.abs(read_image(tmp_path / "out" / name) - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "window", "words"),
    [
        ({}, None, ""),
        ({"task": "denoise"}, None, "task denoise: nothing beyond the network itself"),
        ({"task": "deblur"}, 384, "task deblur: test-time local conversion with means over 384 pixels"),
        ({"task": "deblur", "local_window": 0}, None, ""),
        ({"task": "deblur", "local_window": 16}, 16, ""),
        ({"local_window": 16}, 16, ""),
    ],
)
def test_the_task_sets_what_is_usual_and_says_so(tmp_path, weights, capsys, options, window, words):
    sources = fill(tmp_path / "in", "a.png")
    restore_files(sources, tmp_path, weights, **options)
    line = json.loads((tmp_path / LOG).read_text())
    assert line["settings"]["local_window"] == window
    assert words in (printed := capsys.readouterr().out)
    assert bool(words) == any(line.startswith("task") for line in printed.splitlines())


def test_a_network_without_local_conversion_says_so(tmp_path, random_params, capsys):
    network = create_model("gama_ir_tiny", **TINY, mixer="none")
    save_weights(
        tmp_path / "w.safetensors", random_params(network, (1, 16, 16, 3)), "gama_ir_tiny", {**TINY, "mixer": "none"}
    )
    sources = fill(tmp_path / "in", "a.png")
    restore_files(sources, tmp_path / "out.png", tmp_path / "w.safetensors", task="deblur")
    assert "without the usual test-time local conversion, as this network has none" in capsys.readouterr().out
    with pytest.raises(UserError, match="local_window is for"):
        restore_files(sources, tmp_path / "o.png", tmp_path / "w.safetensors", local_window=384)


def test_options_reach_the_restorer(tmp_path, weights, monkeypatch):
    used = []

    def stream(restorer, shapes, load, finish, *, batch_size, progress):
        used.append((restorer.settings(), batch_size))
        return iter([(0, None)])

    monkeypatch.setattr(module, "restore_stream", stream)
    sources = fill(tmp_path / "in", "a.png", height=64, width=64)
    options = {"self_ensemble": True, "dtype": "bfloat16", "local_window": 32}
    restore_files(sources, tmp_path / "out", weights, tile="32", overlap=16, batch_size=5, **options)
    restore_files(sources, tmp_path / "out", weights, rows=2)
    (tiled, batch_size), (shared, _) = used
    assert batch_size == 5
    expected = {"tile": 32, "overlap": 16, "self_ensemble": True, "dtype": "bfloat16", "local_window": 32, "rows": 1}
    assert {name: tiled[name] for name in expected} == expected
    assert (shared["rows"], shared["tile"], shared["dtype"]) == (2, None, "float32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": "half"}, "--tile must be"),
        ({"batch_size": 0}, "--batch-size must be"),
        ({"task": "denoize"}, "did you mean 'denoise'"),
        ({"rows": 2, "tile": "32"}, "exclude each other"),
        ({"output": "in"}, "holds the images to restore"),
        ({"output": None}, "name a folder for them"),
    ],
)
def test_options_that_do_not_fit_are_refused_first(tmp_path, weights, options, words):
    sources = fill(tmp_path / "in", "a.png", "b.png")
    output = options.pop("output", "out")
    with pytest.raises(UserError, match=words):
        restore_files(sources, tmp_path / output if output else None, weights, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# ---- interruptions ----


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def restored(tmp_path, weights) -> tuple[list[Path], Path, dict[str, bytes]]:
    """Four sources, the folder of their results, and its content."""
    sources = fill(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    restore_files(sources, tmp_path / "out", weights)
    return sources, tmp_path / "out", contents(tmp_path / "out")


def test_what_is_finished_is_skipped(restored, weights, capsys):
    sources, output, before = restored
    times = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert len(restore_files(sources, output, weights)) == 4
    printed = capsys.readouterr().out
    assert "4 of 4 are restored already" in printed
    assert "compiled" not in printed
    assert "wrote" not in printed
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")} == times
    assert contents(output) == before


def lose_file(output: Path) -> None:
    """Killed before the line, or the file, came."""
    (output / "b.png").unlink()


def lose_line(output: Path) -> None:
    lose_file(output)
    lines = [line for line in (output / LOG).read_text().splitlines() if '"b.png"' not in line]
    (output / LOG).write_text("\n".join(lines) + "\n")


def cut_line(output: Path) -> None:
    """Killed within the line, which is the last one."""
    lines = sorted((output / LOG).read_text().splitlines(), key=lambda line: '"b.png"' in line)
    lose_file(output)
    (output / LOG).write_text("\n".join(lines)[:-50])


def cut_file(output: Path) -> None:
    """Killed before the file had its name."""
    content = (output / "b.png").read_bytes()
    lose_file(output)
    (output / ".b.png.partial").write_bytes(content[:-50])


@pytest.mark.parametrize("kill", [lose_file, lose_line, cut_line, cut_file])
def test_a_kill_at_any_moment_leaves_what_the_same_command_finishes(restored, weights, capsys, kill):
    sources, output, before = restored
    kill(output)
    restore_files(sources, output, weights)
    assert "3 of 4 are restored already" in capsys.readouterr().out
    after = contents(output)
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in before if name.endswith(".png"))
    restore_files(sources, output, weights)
    assert "4 of 4 are restored already" in capsys.readouterr().out


def test_a_kill_while_files_are_replaced_skips_no_old_one(restored, weights, identity, capsys):
    sources, output, _ = restored
    old = contents(output)
    # Everything of the new weights but the file itself: the line is there, the content is still the old one.
    restore_files(sources, output, identity, overwrite=True)
    new = contents(output)
    assert new["b.png"] != old["b.png"]
    (output / "b.png").write_bytes(old["b.png"])
    with pytest.raises(UserError, match=r"b.png' exists already and was made from something else"):
        restore_files(sources, output, identity)
    capsys.readouterr()
    restore_files(sources, output, identity, overwrite=True)
    assert "3 of 4 are restored already" in capsys.readouterr().out
    assert contents(output)["b.png"] == new["b.png"]


@pytest.mark.parametrize("change", ["source", "weights", "settings", "target"])
def test_what_was_made_in_another_way_is_refused_before_any_work(restored, weights, identity, change):
    sources, output, _ = restored
    options = {"local_window": 16} if change == "settings" else {}
    if change == "source":
        write_image(sources[1], random_image(seed=9))
    if change == "target":
        write_image(output / "b.png", random_image(seed=9))
    before = contents(output)
    for missing in ("a.png", "c.png", "d.png") if change in ("weights", "settings") else ("a.png",):
        (output / missing).unlink()
        del before[missing]
    with pytest.raises(
        UserError, match=r"b.png' exists already .*; choose another --output, or add --overwrite, which"
    ):
        restore_files(sources, output, identity if change == "weights" else weights, **options)
    assert contents(output) == before


def test_two_commands_do_not_share_a_folder(restored, weights):
    from gamax.files import lock

    sources, output, _ = restored
    with lock(output, wait=False), pytest.raises(UserError, match="another process is at work"):
        restore_files(sources, output, weights)


def test_a_full_disk_stops_the_work_and_it_goes_on_later(tmp_path, weights, monkeypatch, capsys):
    sources = fill(tmp_path / "in", "a.png", "b.png", "c.png")
    replace_atomically = module.replace_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == "b.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace_atomically", full)
        with pytest.raises(StoppedError, match="is full; make room") as stopped:
            restore_files(sources, tmp_path / "out", weights)
    assert stopped.value.exit_code == 2
    restore_files(sources, tmp_path / "out", weights)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "b.png", "c.png"}


@pytest.mark.slow
def test_a_killed_process_is_continued(tmp_path, weights):
    sources = fill(tmp_path / "in", *(f"{index}.png" for index in range(40)), height=200, width=300)
    command = [sys.executable, "-m", "gamax.cli", "restore", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    command += ["--weights", str(weights), "--tile", "32"]
    for wanted in (1, 10, 25):
        process = subprocess.Popen(command, env=os.environ, cwd=ROOT, stdout=subprocess.DEVNULL)
        while len(list((tmp_path / "out").glob("*.png"))) < wanted and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "out").glob("*.png"):
            assert read_image(path).shape == (200, 300, 3)
    count = len(list((tmp_path / "out").glob("*.png")))
    assert count < 40
    finished = subprocess.run(command, env=os.environ, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{count} of 40 are restored already" in finished.stdout
    at_once = restore_files(sources, tmp_path / "at once", weights, tile="32")
    assert len(at_once) == 40
    for path in at_once:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


# ---- pictures before and after ----


def test_compare_writes_a_picture_beside_the_file_or_in_a_folder(tmp_path, weights):
    sources = fill(tmp_path / "in", "a.png", "b.png", height=500, width=300)
    (target,) = restore_files(sources[:1], tmp_path / "one.png", weights, compare=True)
    picture = read_image(tmp_path / "one_compare.png")
    np.testing.assert_array_equal(picture, before_after(read_image(sources[0]), read_image(target)))
    target.unlink()
    with pytest.raises(UserError, match=r"one_compare.png' exists already"):
        restore_files(sources[:1], target, weights, compare=True)
    restore_files(sources, tmp_path / "out", weights, compare=True)
    pictures = contents(tmp_path / "out" / "compare")
    assert set(pictures) == {"a.png", "b.png"}
    (tmp_path / "out/compare/b.png").unlink()
    restore_files(sources, tmp_path / "out", weights, compare=True)
    assert contents(tmp_path / "out/compare") == pictures


def test_pictures_of_two_files_that_differ_in_suffix_have_two_names(tmp_path, weights):
    sources = fill(tmp_path / "in", "a.png", "a.jpg")
    restore_files(sources, tmp_path / "out", weights, compare=True)
    assert set(contents(tmp_path / "out" / "compare")) == {"a.png.png", "a.jpg.png"}


def test_what_changed_most_is_found_and_shown():
    before = random_image(200, 300, dtype=np.uint16)
    after = before.copy()
    after[120:140, 230:260] ^= 0xFFFF
    top, left = most_changed(before, after, (40, 50))
    assert 100 <= top <= 120
    assert 210 <= left <= 230
    assert most_changed(before, before, (1000, 40)) == (0, 0)
