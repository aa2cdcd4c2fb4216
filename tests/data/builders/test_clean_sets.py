from __future__ import annotations

import io
import json
import re
import shutil
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from gamax.config import DataConfig
from gamax.data.builders.bsd68 import BSD68
from gamax.data.builders.bsds500 import BSDS500
from gamax.data.builders.cbsd68 import CBSD68
from gamax.data.builders.core import cut_positions, image_set_config, read_facts
from gamax.data.builders.dfwb import DFWB
from gamax.data.builders.div2k import DIV2K
from gamax.data.builders.flickr2k import Flickr2K
from gamax.data.builders.kodak24 import Kodak24
from gamax.data.builders.mcmaster import McMaster
from gamax.data.builders.set12 import Set12
from gamax.data.builders.urban100 import Urban100
from gamax.data.builders.wed import WED
from gamax.data.datasets import prepare
from gamax.data.images import encode_image
from gamax.errors import UserError

CLASSES = [DIV2K, Flickr2K, WED, BSDS500, DFWB, CBSD68, Kodak24, McMaster, Urban100, Set12, BSD68]


def prepare_set(tmp_path, name, source):
    prepared_dir = str(tmp_path / "prepared")
    config = DataConfig(name, str(source), prepared_dir, cut_size=16, cut_stride=12, patch_size=8)
    return prepare(config, training=False)


def write(folder, *names, channels=3):
    """Writes images that resemble no other ones and returns, by name, the pixels that a decoder finds in them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name in names:
        image = np.random.default_rng(zlib.crc32(str(folder / name).encode())).integers(
            0, 256, (24, 32, channels), np.uint8
        )
        assert cv2.imwrite(str(folder / name), image)
        read = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
        images[name.partition(".")[0]] = read[..., np.newaxis] if channels == 1 else read[..., ::-1]
    return images


def one_split(split, folder, *names, channels=3):
    return lambda root: {split: write(root / folder, *names, channels=channels)}


def div2k(folder="."):
    def write_set(root):
        return {
            "train": write(root / folder / "DIV2K_train_HR", "0001.png", "0002.png", "0800.png"),
            "validation": write(root / folder / "DIV2K_valid_HR", "0801.png", "0900.png"),
        }

    return write_set


def bsds500(folder):
    def write_set(root):
        images = root / folder
        train = write(images / "train", "8143.jpg", "100075.jpg") | write(images / "test", "3063.jpg", "100007.jpg")
        return {"train": train, "validation": write(images / "val", "3096.jpg", "101085.jpg")}

    return write_set


def dfwb(root):
    parts = {
        "div2k": div2k("DIV2K")(root)["train"],
        "flickr2k": write(root / "Flickr2K/Flickr2K_HR", "000001.png", "002650.png"),
        "wed": write(root / "WED/pristine_images", "00001.bmp", "04744.bmp"),
        "bsds500": bsds500("BSDS500/BSDS500/data/images")(root)["train"],
    }
    return {"train": {f"{part}_{name}": image for part, images in parts.items() for name, image in images.items()}}


def flat_dfwb(root):
    folders = {"div2k": "DIV2K", "flickr2k": "Flickr2K", "wed": "WaterlooED", "bsds500": "BSD400"}
    # Two of the sets have an image of the same name.
    parts = {part: write(root / folder, "0001.png", f"{part}.png") for part, folder in folders.items()}
    return {"train": {f"{part}_{name}": image for part, images in parts.items() for name, image in images.items()}}


KODAK = ("kodim01.png", "kodim02.png", "kodim24.png")
PRISTINE = "exploration_database_and_code/pristine_images"
LAYOUTS: dict[str, tuple[type, Callable, str]] = {
    "div2k": (DIV2K, div2k(), ""),
    "div2k around": (DIV2K, div2k("DIV2K"), ""),
    "div2k flat": (DIV2K, one_split("train", ".", "0001.png", "0002.png"), ""),
    "div2k flat around": (DIV2K, one_split("train", "DIV2K", "0001.png", "0002.png"), ""),
    "flickr2k": (Flickr2K, one_split("train", "Flickr2K/Flickr2K_HR", "000001.png", "002650.png"), ""),
    "flickr2k itself": (Flickr2K, one_split("train", "Flickr2K/Flickr2K_HR", "000001.png", "002650.png"), "Flickr2K"),
    "wed": (WED, one_split("train", PRISTINE, "00001.bmp", "04744.bmp"), ""),
    "wed itself": (WED, one_split("train", PRISTINE, "00001.bmp", "04744.bmp"), PRISTINE),
    "bsds500": (BSDS500, bsds500("BSR/BSDS500/data/images"), ""),
    "bsds500 itself": (BSDS500, bsds500("BSR/BSDS500/data/images"), "BSR"),
    "bsds500 folders": (BSDS500, bsds500("."), ""),
    "bsd400": (BSDS500, one_split("train", "BSD400", "3063.jpg", "100007.jpg"), ""),
    "dfwb": (DFWB, dfwb, ""),
    "dfwb flat": (DFWB, flat_dfwb, ""),
    "cbsd68": (CBSD68, one_split("test", "CBSD68", "3096.png", "101085.png"), ""),
    "cbsd68 with noisy copies": (CBSD68, one_split("test", "CBSD68/original_png", "0000.png", "0001.png"), "CBSD68"),
    "kodak24": (Kodak24, one_split("test", "Kodak24", *KODAK), ""),
    "kodak24 of Restormer": (Kodak24, one_split("test", "Kodak", *KODAK), ""),
    "mcmaster": (McMaster, one_split("test", "McMaster", "1.tif", "2.tif", "10.tif"), ""),
    "urban100": (Urban100, one_split("test", "Urban100", "img_001.png", "img_002.png"), "Urban100"),
    "set12": (Set12, one_split("test", "Set12", "01.png", "12.png", channels=1), ""),
    "bsd68": (BSD68, one_split("test", "BSD68", "test001.png", "test068.png", channels=1), ""),
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
        f"{name}_{y}_{x}": image[y : y + 16, x : x + 16]
        for name, image in examples.items()
        for y, x in cut_positions(24, 32, 16, 12)
    }


def test_miniature_of_the_official_layout(tmp_path, layout):
    dataset = prepare_set(tmp_path, layout.builder.name, layout.source)
    assert dataset.num_images == {split: len(examples) for split, examples in layout.expected.items()}
    assert dataset.psnr_input == dict.fromkeys(layout.expected)
    assert set(dataset.splits) == set(layout.expected)
    for split, examples in layout.expected.items():
        expected = stored(split, examples)
        assert [example["name"] for example in dataset.splits[split]] == list(expected)
        for example in dataset.splits[split]:
            assert set(example) == {"name", "target"}
            np.testing.assert_array_equal(example["target"], expected[example["name"]], strict=True)


def test_a_corrupt_file_is_named_before_anything_is_written(tmp_path, layout):
    path = list(layout.builder.examples(layout.source).values())[-1][-1].path
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=f"{re.escape(path.name)}' is not an image") as caught:
        prepare_set(tmp_path, layout.builder.name, layout.source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("builder_class", CLASSES)
def test_a_folder_with_nothing_gets_the_instructions(tmp_path, builder_class):
    for source in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=re.escape(builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS)):
            builder_class.examples(source)


@pytest.mark.parametrize(
    ("builder_class", "write_set", "folders", "left"),
    [
        (DIV2K, div2k(), ("DIV2K_valid_HR",), "train"),
        (DIV2K, div2k(), ("DIV2K_train_HR",), "validation"),
        (BSDS500, bsds500("."), ("val",), "train"),
        (BSDS500, bsds500("."), ("train", "test"), "validation"),
    ],
)
def test_only_the_splits_that_are_there(tmp_path, builder_class, write_set, folders, left):
    write_set(tmp_path)
    for folder in folders:
        shutil.rmtree(tmp_path / folder)
    assert set(builder_class.examples(tmp_path)) == {left}


@pytest.mark.parametrize(("folder", "name"), [("WED", "wed"), ("BSDS500", "bsds500")])
def test_dfwb_names_the_set_that_is_missing(tmp_path, folder, name):
    dfwb(tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(UserError, match=f"no {name} in '.*; download div2k, flickr2k, wed and bsds500"):
        DFWB.examples(tmp_path)


def test_dfwb_names_the_set_that_has_no_training_images(tmp_path):
    dfwb(tmp_path)
    shutil.rmtree(tmp_path / "DIV2K/DIV2K_train_HR")
    with pytest.raises(UserError, match=r"no training images in '.*DIV2K'; download DIV2K_train_HR.zip"):
        DFWB.examples(tmp_path)


def test_dfwb_has_the_published_size():
    assert DFWB.COUNTS == {"train": 8594}


def test_two_images_of_one_name_are_refused(tmp_path):
    write(tmp_path / "train", "1.jpg")
    write(tmp_path / "test", "1.jpg")
    with pytest.raises(UserError, match=r"2 images .* are named '1'"):
        BSDS500.examples(tmp_path)


def test_colour_images_become_gray_in_gray_sets(tmp_path):
    write(tmp_path, "01.png")
    (example,) = prepare_set(tmp_path, "set12", tmp_path).splits["test"]
    expected = cv2.cvtColor(cv2.imread(str(tmp_path / "01.png")), cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(example["target"], expected[..., np.newaxis], strict=True)


class TfdsDIV2K(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set with the features of the builder of tensorflow_datasets, written without TensorFlow."""

    name = "div2k"
    VERSION = tfds.core.Version("2.0.0")
    code_path = None
    images: dict[str, dict[str, np.ndarray]]

    def _info(self):
        features = {"lr": tfds.features.Image(), "hr": tfds.features.Image()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(images) for split, images in self.images.items()}

    def _generate_examples(self, images):
        for name, image in images.items():
            files = {"lr": encode_image(image[::2, ::2], ".png"), "hr": encode_image(image, ".png")}
            yield name, {key: io.BytesIO(data) for key, data in files.items()}


@pytest.fixture
def tfds_div2k(tmp_path):
    """The folder of a miniature of what `tfds build div2k` writes, and its images."""
    images = div2k()(tmp_path / "downloads")
    builder = TfdsDIV2K(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.images = images
    builder.download_and_prepare()
    return tmp_path / "tfds/div2k/2.0.0", images


def test_div2k_that_tfds_has_prepared(tmp_path, tfds_div2k):
    folder, images = tfds_div2k
    dataset = prepare_set(tmp_path, "div2k", folder)
    assert dataset.num_images == {"train": 3, "validation": 2}
    # The names and the order of the files are lost.
    validation = dataset.splits["validation"]
    assert [example["name"] for example in validation] == ["record_0000", "record_0001"]
    assert {example["target"].tobytes() for example in validation} == {
        image.tobytes() for image in images["validation"].values()
    }
    cuts = stored("train", images["train"])
    assert len(dataset.train) == len(cuts)
    assert {example["target"].tobytes() for example in dataset.train} == {cut.tobytes() for cut in cuts.values()}
    assert len({example["name"] for example in dataset.train}) == len(cuts)


def test_dfwb_takes_the_div2k_that_tfds_has_prepared(tmp_path, tfds_div2k):
    folder, _ = tfds_div2k
    flat_dfwb(tmp_path / "source")
    shutil.rmtree(tmp_path / "source/DIV2K")
    (tmp_path / "source/DIV2K").symlink_to(folder)
    names = [files.name for files in DFWB.examples(tmp_path / "source")["train"]]
    assert names[:4] == ["div2k_record_0000", "div2k_record_0001", "div2k_record_0002", "flickr2k_0001"]


def test_a_damaged_set_of_tfds_is_named(tmp_path, tfds_div2k):
    folder, _ = tfds_div2k
    (shard,) = folder.glob("*validation*")
    shard.write_bytes(b"no records" * 1000)
    with pytest.raises(UserError, match=f"record 0 of '.*{shard.name}' cannot be read .*; run `tfds build` again"):
        prepare_set(tmp_path, "div2k", folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"cannot read '.*{shard.name}' .No such file"):
        prepare_set(tmp_path, "div2k", folder)


def test_other_sets_of_tfds_are_refused(tfds_div2k):
    folder, _ = tfds_div2k
    features = (folder / "features.json").read_text()
    (folder / "features.json").write_text(features.replace('"hr"', '"image"'))
    with pytest.raises(UserError, match=r"is not the dataset div2k .*: it has no feature hr"):
        DIV2K.examples(folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="was not prepared as array_record; run `tfds build` with --file_format"):
        DIV2K.examples(folder)


def test_citation_of_div2k_is_that_of_tfds():
    assert DIV2K.CITATION.startswith("@InProceedings{Agustsson_2017")


@pytest.mark.parametrize(
    ("builder_class", "name", "counts", "sizes"),
    [
        (BSDS500, "bsds500", {"train": 400}, {(321, 481), (481, 321)}),
        (CBSD68, "cbsd68", {"test": 68}, {(321, 481), (481, 321)}),
        (Kodak24, "kodak24", {"test": 24}, {(500, 500)}),
    ],
)
def test_real_photographs(shared_folder, builder_class, name, counts, sizes):
    folder = shared_folder / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no real photographs in '{folder}'")
    config = image_set_config(builder_class, folder)
    facts = read_facts(config, builder_class.CHANNELS)
    assert facts.num_images == counts
    images = [files.images["target"] for files in next(iter(config.splits.values()))[:24]]
    assert {image.read(image.path).shape[:2] for image in images} == sizes
