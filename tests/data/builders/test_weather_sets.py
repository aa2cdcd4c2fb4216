from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from gamax.config import DataConfig
from gamax.data.builders import test100, test1200, test2800
from gamax.data.builders.core import cut_positions, image_set_config, read_facts
from gamax.data.builders.paired_folder import PairedFolder
from gamax.data.builders.rain13k import Rain13K
from gamax.data.builders.rain100h import Rain100H
from gamax.data.builders.rain100l import Rain100L
from gamax.data.builders.rain800 import Rain800
from gamax.data.builders.reside import RESIDEIndoor, RESIDEOutdoor
from gamax.data.datasets import prepare
from gamax.errors import UserError

# Not `Test100` and so on: pytest would take them for tests.
CLASSES = [Rain13K, test100.Test100, Rain100H, Rain100L, test2800.Test2800, test1200.Test1200, Rain800]
CLASSES += [RESIDEIndoor, RESIDEOutdoor]


def prepare_set(tmp_path, name, source):
    prepared_dir = str(tmp_path / "prepared")
    config = DataConfig(name, str(source), prepared_dir, cut_size=16, cut_stride=12, patch_size=8)
    return prepare(config, training=False)


def write(path, height=24, width=32):
    """Writes an image that resembles no other one and returns the pixels that a decoder finds in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), image)
    return cv2.imread(str(path))[..., ::-1]


def pairs(inputs, targets, names, size=(24, 32)):
    """Writes pairs `names`: input path to target path below the two folders; a target may come twice."""
    written = {target: write(targets / target, *size) for target in dict.fromkeys(names.values())}
    return {
        Path(name).with_suffix("").name: {"input": write(inputs / name), "target": written[target]}
        for name, target in names.items()
    }


def equal_names(root, names):
    return pairs(root / "input", root / "target", {name: name for name in names})


def rain13k(root):
    return {"train": equal_names(root / "train/Rain13K", ("1.jpg", "2.jpg", "10.jpg"))}


def five_sets(folder, names=("1.png", "2.png", "10.png")):
    return lambda root: {"test": equal_names(root / "test" / folder, names)}


def kinds_of_rain(root):
    names = {"901_1.jpg": "901.jpg", "901_2.jpg": "901.jpg", "926_1.jpg": "926.jpg"}
    return {"test": pairs(root / "Test2800/input", root / "Test2800/target", names)}


def rain100(folder, rainy="rainy", clean="."):
    def write_set(root):
        names = {f"rain-{i:03d}.png": f"norain-{i:03d}.png" for i in (1, 2, 10)}
        written = pairs(root / folder / rainy, root / folder / clean, names)
        # Some copies repeat the rainy images.
        write(root / folder / "rain-001.png")
        return {"test": written}

    return write_set


def rain800(root):
    def side_by_side(path):
        both = write(path, width=64)
        return {"target": both[:, :32], "input": both[:, 32:]}

    folders = {"train": "training", "test": "test_syn"}
    return {
        split: {str(i): side_by_side(root / "rain" / folder / f"{i}.jpg") for i in (1, 2, 10)}
        for split, folder in folders.items()
    }


def centre(examples):
    return {name: {**images, "target": images["target"][2:26, 1:33]} for name, images in examples.items()}


def indoor(train, test, hazy="hazy", clear="clear"):
    def write_set(root):
        its = {"1_1_0.9.png": "1.png", "1_2_0.7.png": "1.png", "2_1_0.8.png": "2.png"}
        sots = {"1400_1.png": "1400.png", "1400_10.png": "1400.png", "1401_2.png": "1401.png"}
        written = {
            "train": pairs(root / train / hazy, root / train / clear, its, (28, 34)),
            "test": pairs(root / test / "hazy", root / test / "gt", sots, (28, 34)),
        }
        return {split: centre(examples) for split, examples in written.items()}

    return write_set


def outdoor(train, hazy, clear):
    def write_set(root):
        names = ("0001_0.8_0.04.jpg", "0001_0.8_0.06.jpg", "0002_0.9_0.1.jpg")
        folder = root / train / hazy
        written = pairs(folder, root / train / clear, {name: f"{name[:4]}.jpg" for name in names})
        if hazy == "hazy":
            for number, name in enumerate(names):
                part = folder / f"part{number // 2 + 1}"
                part.mkdir(exist_ok=True)
                (folder / name).rename(part / name)
        sots = {"0001_0.8_0.2.jpg": "0001.png", "0003_0.8_0.08.jpg": "0003.png"}
        return {"train": written, "test": pairs(root / "SOTS/outdoor/hazy", root / "SOTS/outdoor/gt", sots)}

    return write_set


def equal_reside(folder, hazy, clear="GT"):
    def write_set(root):
        names = {name: name for name in hazy}
        return {
            split: pairs(root / folder / split / "hazy", root / folder / split / clear, names)
            for split in ("train", "test")
        }

    return write_set


LAYOUTS: dict[str, tuple[type, Callable, str]] = {
    "rain13k": (Rain13K, rain13k, ""),
    "rain13k itself": (Rain13K, rain13k, "train/Rain13K"),
    "test100": (test100.Test100, five_sets("Test100"), ""),
    "test100 itself": (test100.Test100, five_sets("Test100"), "test/Test100"),
    "test1200": (test1200.Test1200, five_sets("Test1200", ("1.jpg", "2.jpg", "10.jpg")), "test"),
    "test2800": (test2800.Test2800, five_sets("Test2800", ("901_1.jpg", "901_2.jpg", "926_1.jpg")), ""),
    "test2800 of pictures": (test2800.Test2800, kinds_of_rain, ""),
    "rain100h": (Rain100H, five_sets("Rain100H"), ""),
    "rain100h in one folder": (Rain100H, rain100("Rain100H"), ""),
    "rain100h in two folders": (Rain100H, rain100("Rain100H", "rain", "norain"), "Rain100H"),
    "rain100l": (Rain100L, five_sets("Rain100L"), ""),
    "rain100l in one folder": (Rain100L, rain100("Rain100L"), "Rain100L"),
    "rain800": (Rain800, rain800, ""),
    "rain800 itself": (Rain800, rain800, "rain"),
    "reside_indoor": (RESIDEIndoor, indoor("ITS", "SOTS/indoor"), ""),
    "reside_indoor nyuhaze500": (RESIDEIndoor, indoor("RESIDE/ITS", "RESIDE/SOTS/indoor/nyuhaze500"), ""),
    "reside_indoor early": (RESIDEIndoor, indoor("ITS/train", "SOTS/nyuhaze500", "ITS_haze", "ITS_clear"), ""),
    "reside_indoor equal names": (RESIDEIndoor, equal_reside("RESIDE-IN", ("1_1.png", "1_2.png", "2_1.png")), ""),
    "reside_outdoor": (RESIDEOutdoor, outdoor("OTS", "hazy", "clear"), ""),
    "reside_outdoor alpha": (RESIDEOutdoor, outdoor("OTS_ALPHA", "OTS", "clear_images"), ""),
    "reside_outdoor equal names": (
        RESIDEOutdoor,
        equal_reside("reside-outdoor", ("0001_0.8_0.2.jpg", "0002_1_0.2.jpg"), "gt"),
        "reside-outdoor",
    ),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """A miniature of an official layout: its builder, the folder a user would name, and what is in it."""
    builder_class, write_set, source = LAYOUTS[request.param]
    expected = write_set(tmp_path / "source")
    return SimpleNamespace(builder=builder_class, source=tmp_path / "source" / source, expected=expected)


def stored(split, examples):
    """What the prepared set must hold of `examples`: cuts of training images, everything else whole."""
    if split != "train":
        return examples
    return {
        f"{name}_{y}_{x}": {key: image[y : y + 16, x : x + 16] for key, image in images.items()}
        for name, images in examples.items()
        for y, x in cut_positions(24, 32, 16, 12)
    }


def test_miniature_of_the_official_layout(tmp_path, layout):
    dataset = prepare_set(tmp_path, layout.builder.name, layout.source)
    assert dataset.num_images == {split: len(examples) for split, examples in layout.expected.items()}
    assert set(dataset.splits) == set(layout.expected)
    for split, examples in layout.expected.items():
        expected = stored(split, examples)
        assert [example["name"] for example in dataset.splits[split]] == list(expected)
        for example in dataset.splits[split]:
            images = expected[example["name"]]
            assert set(example) == {"name", "input", "target"}
            for key, image in images.items():
                np.testing.assert_array_equal(example[key], image, strict=True)


TWO_SPLITS = [name for name, (builder_class, *_) in LAYOUTS.items() if len(builder_class.COUNTS) == 2]
TWO_FILES = [name for name, (builder_class, *_) in LAYOUTS.items() if builder_class is not Rain800]


@pytest.mark.parametrize("layout", TWO_SPLITS, indirect=True)
@pytest.mark.parametrize("split", ["train", "test"])
def test_only_the_splits_that_are_there(layout, split):
    folder = layout.builder.examples(layout.source)[split][0].images["input"].path.parent
    shutil.rmtree(folder if layout.builder is Rain800 else folder.parent)
    assert set(layout.builder.examples(layout.source)) == {"train", "test"} - {split}


@pytest.mark.parametrize("layout", TWO_FILES, indirect=True)
@pytest.mark.parametrize("key", ["input", "target"])
def test_a_missing_partner_is_named(layout, key):
    # Of every miniature, the last example shares its target with no other.
    images = list(layout.builder.examples(layout.source).values())[-1][-1].images
    images[key].path.unlink()
    other = images["target" if key == "input" else "input"].path.name
    with pytest.raises(UserError, match=rf"partner .*{re.escape(other)}") as caught:
        layout.builder.examples(layout.source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["input", "target"])
def test_a_corrupt_file_is_named_before_anything_is_written(tmp_path, layout, key):
    path = list(layout.builder.examples(layout.source).values())[-1][-1].images[key].path
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=f"{re.escape(path.name)}' is cut short") as caught:
        prepare_set(tmp_path, layout.builder.name, layout.source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("builder_class", CLASSES)
def test_a_folder_with_something_else_gets_the_instructions(tmp_path, builder_class):
    write(tmp_path / "photos/a.png")
    for source in (tmp_path, tmp_path / "photos", tmp_path / "nothing"):
        with pytest.raises(UserError, match=re.escape(builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS)):
            builder_class.examples(source)


def test_rain100_without_clean_images_gets_the_instructions(tmp_path):
    write(tmp_path / "Rain100L/rainy/rain-001.png")
    write(tmp_path / "Rain100L/other.png")
    with pytest.raises(UserError, match=r"no images norain-NNN.png in '.*Rain100L'; download"):
        Rain100L.examples(tmp_path)


def test_a_copied_input_of_test2800_is_named(tmp_path):
    kinds_of_rain(tmp_path)
    write(tmp_path / "Test2800/input/927_10(1).jpg")
    with pytest.raises(UserError, match=r"1 of the images .* no partner .*: 927_10\(1\).jpg"):
        test2800.Test2800.examples(tmp_path)


def test_halves_of_unequal_width_are_refused(tmp_path):
    write(tmp_path / "test_syn/1.png", width=63)
    with pytest.raises(UserError, match=r"1.png' is 63 pixels wide"):
        prepare_set(tmp_path, "rain800", tmp_path)


def test_reside_needs_a_folder_of_clear_images(tmp_path):
    write(tmp_path / "SOTS/outdoor/hazy/1_1.jpg")
    with pytest.raises(UserError, match=r"no folder clear or gt .* beside '.*hazy'"):
        RESIDEOutdoor.examples(tmp_path)


def test_a_clear_image_smaller_than_its_hazy_one_is_refused(tmp_path):
    pairs(tmp_path / "ITS/hazy", tmp_path / "ITS/clear", {"1_1.png": "1.png"}, (20, 30))
    with pytest.raises(UserError, match=r"1_1.png' and '.*1.png' differ in size .32x24 and 30x20"):
        prepare_set(tmp_path, "reside_indoor", tmp_path)


def test_clear_images_are_cut_to_hazy_ones_that_are_no_png(tmp_path):
    names = {"1_1.jpg": "1.png", "1_2.jpg": "1.png"}
    expected = centre(pairs(tmp_path / "SOTS/indoor/hazy", tmp_path / "SOTS/indoor/gt", names, (28, 34)))
    dataset = prepare_set(tmp_path, "reside_indoor", tmp_path)
    np.testing.assert_array_equal(dataset.splits["test"][1]["target"], expected["1_2"]["target"], strict=True)


def real(shared_folder, name):
    folder = shared_folder / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no real photographs in '{folder}'")
    return folder


def test_real_rain800(tmp_path, shared_folder):
    folder = real(shared_folder, "rain800")
    for split, name in (("train", "training"), ("test", "test_syn")):
        (tmp_path / name).symlink_to(folder / split / "sidebyside")
    dataset = prepare_set(tmp_path, "rain800", tmp_path)
    assert dataset.num_images == {"train": 10, "test": 50}
    assert dataset.psnr_input == {"train": pytest.approx(21.56, abs=0.005), "test": pytest.approx(21.10, abs=0.005)}


def test_real_rain800_in_pairs(shared_folder):
    facts = read_facts(image_set_config(PairedFolder, real(shared_folder, "rain800")), 3)
    assert facts.num_images == {"train": 441, "test": 50}
    assert facts.psnr_input == {"train": pytest.approx(21.75, abs=0.005), "test": pytest.approx(21.21, abs=0.005)}


def test_real_sots_indoor(tmp_path, shared_folder):
    (tmp_path / "SOTS").mkdir()
    (tmp_path / "SOTS/indoor").symlink_to(real(shared_folder, "sots_indoor_sample"))
    dataset = prepare_set(tmp_path, "reside_indoor", tmp_path)
    assert dataset.num_images == {"test": 25}
    assert dataset.psnr_input == {"test": pytest.approx(12.48, abs=0.005)}
    assert dataset.splits["test"][0]["name"] == "1400_1"
    assert dataset.splits["test"][0]["target"].shape == (460, 620, 3)
