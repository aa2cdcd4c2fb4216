"""Files that lose something on their way, or that a disk or an encoder does not take."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import jax
import numpy as np
import PIL.Image
import pytest

from gamax.data.images import read_image, write_image
from gamax.errors import StoppedError, UserError
from gamax.evaluation import restore_files as module
from gamax.evaluation.restore_files import restore_files
from gamax.interop.weights import save_weights
from gamax.models import abstract_params, create_model

ROOT = Path(__file__).parents[2]
TINY = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
IMAGE = np.full((16, 24, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of a network whose output is its input."""
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(create_model("gama_ir_tiny", **TINY))
    )
    save_weights(path := tmp_path_factory.mktemp("weights") / "w.safetensors", params, "gama_ir_tiny", TINY)
    return path


def test_a_damaged_note_is_reported_and_stops_no_other(tmp_path, weights, capsys):
    exif = PIL.Image.Exif()
    exif.update({271: "Maker", 272: "Model", 315: 80 * "name "})
    source = tmp_path / "in" / "a.jpg"
    source.parent.mkdir()
    PIL.Image.fromarray(IMAGE).save(source, exif=exif)
    # The maker (0x010F) as a fraction (5) instead of text (2).
    source.write_bytes(source.read_bytes().replace(b"\x01\x0f\0\x02", b"\x01\x0f\0\x05"))
    write_image(tmp_path / "in" / "b.png", IMAGE)
    assert len(restore_files(sorted(source.parent.iterdir()), tmp_path / "out", weights)) == 2
    assert "not kept of 'a.jpg': EXIF fields, which are damaged" in capsys.readouterr().out


def test_colours_that_only_png_names_are_reported_elsewhere(tmp_path, weights, capsys):
    png = cv2.imencode(".png", IMAGE)[1].tobytes()
    chunk = b"gAMA" + (100_000).to_bytes(4, "big")
    chunk = b"\0\0\0\x04" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(png[:33] + chunk + png[33:])
    restore_files([tmp_path / "a.png"], tmp_path / "b.png", weights)
    assert "not kept" not in capsys.readouterr().out
    assert chunk in (tmp_path / "b.png").read_bytes()
    restore_files([tmp_path / "a.png"], tmp_path / "b.jpg", weights)
    assert "not kept of 'a.png': colour space" in capsys.readouterr().out


def test_what_the_encoder_refuses_is_reported_and_all_else_restored(tmp_path, weights, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    # WebP by name only, as no such file is WebP.
    for name, width in (("a.webp", 20000), ("b.webp", 24)):
        content = cv2.imencode(".png", np.zeros((2, width, 3), np.uint8))[1].tobytes()
        (tmp_path / "in" / name).write_bytes(content)
    sources = sorted((tmp_path / "in").iterdir())
    with pytest.raises(UserError, match="1 of 2 images"):
        restore_files(sources, tmp_path / "out", weights)
    out = capsys.readouterr().out
    assert f"not restored: cannot write 20000x2 pixels to '{tmp_path / 'out/a.webp'}': sides go up to 16383" in out
    # The same where no one has looked before.
    monkeypatch.setattr(module, "check_format", lambda path, image: None)
    with pytest.raises(UserError, match="1 of 2 images"):
        restore_files(sources, tmp_path / "out", weights)
    assert f"not restored: cannot write '{tmp_path / 'out/a.webp'}': 20000x2 pixels" in capsys.readouterr().out
    assert read_image(tmp_path / "out/b.webp").shape == (2, 24, 3)


def test_a_log_line_that_the_disk_cuts_short_is_a_full_disk(tmp_path, weights, monkeypatch):
    write_image(tmp_path / "in.png", IMAGE)

    class FullDisk(module.FileIO):
        def write(self, content):
            return super().write(content[:10])

    monkeypatch.setattr(module, "open_log", lambda folder: FullDisk(folder / "restored.jsonl", "ab"))
    with pytest.raises(StoppedError, match="is full; make room"):
        restore_files([tmp_path / "in.png"], tmp_path / "out", weights)
    assert not (tmp_path / "out/in.png").exists()
    monkeypatch.undo()
    restore_files([tmp_path / "in.png"], tmp_path / "out", weights)
    np.testing.assert_array_equal(read_image(tmp_path / "out/in.png"), IMAGE)


PRINTS = """
from gamax.console import print_table, progress_bar, say
from gamax.errors import UserError, exit_on_user_error
name = "caf\\udce9 \\u5165.png"
say(f"not restored: '{name}'")
print_table("table", ["name", "db"], [{"name": name, "db": "1"}])
with progress_bar("restoring", 1, "images") as update:
    update(1, name)
with exit_on_user_error():
    raise UserError(f"no image '{name}'")
"""


@pytest.mark.parametrize(("encoding", "printed"), [("utf-8", "caf\\udce9 入.png"), ("ascii", "caf\\udce9 \\u5165.png")])
def test_names_that_the_output_cannot_encode_are_escaped(encoding, printed):
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    command = [sys.executable, "-c", PRINTS]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, encoding=encoding, check=False)
    assert ended.returncode == 2, ended.stderr
    assert f"not restored: '{printed}'\n" in ended.stdout
    assert ended.stdout.count(printed) == 3
    assert ended.stderr == f"error: no image '{printed}'\n"
