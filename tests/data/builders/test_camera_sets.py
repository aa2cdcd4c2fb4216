from __future__ import annotations

import gc
import shutil
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from gamax.config import DataConfig
from gamax.data.builders import matlab
from gamax.data.builders.core import ImageSetBuilder, image_set_config
from gamax.data.builders.dnd import DND
from gamax.data.builders.dpdd import DPDD, DPDDDual
from gamax.data.builders.gopro import GoPro
from gamax.data.builders.hide import HIDE
from gamax.data.builders.matlab import MatlabVariable, read_matlab_image
from gamax.data.builders.polyu import PolyU
from gamax.data.builders.realblur import RealBlurJ, RealBlurR
from gamax.data.builders.realdof import RealDOF
from gamax.data.builders.reds import REDS
from gamax.data.builders.sidd import SIDD, SIDDBenchmark
from gamax.data.datasets import PreparedDataset, prepare
from gamax.errors import UserError

SHAPE = (24, 32)
# Where cuts of 16 pixels begin in an image of that shape, 12 pixels apart.
CUTS = [(y, x) for y in (0, 8) for x in (0, 12, 16)]

Images = dict[str, np.ndarray]
Splits = dict[str, dict[str, Images]]
"""The images of every example of every split."""
Write = Callable[[Path], Splits]


class Painter:
    """Writes images of random pixels, no two alike, and returns what OpenCV reads back."""

    def __init__(self, save):
        self._save = save
        self._seed = 0

    def __call__(self, path: Path, dtype: type = np.uint8) -> np.ndarray:
        self._seed += 1
        image = self._save(path, SHAPE, dtype, self._seed)
        return cv2.imread(str(path))[..., ::-1] if path.suffix.lower() == ".jpg" else image


@pytest.fixture
def paint(save) -> Painter:
    return Painter(save)


def h5py_or_skip():
    return pytest.importorskip("h5py", reason="MATLAB files of version 7.3 need h5py (pip install 'gamax[matlab]')")


def write_gopro(root, paint):
    return {
        split: {
            f"{sequence}_{frame:06d}": {
                "input": paint(root / f"GOPRO_Large/{split}/{sequence}/blur/{frame:06d}.png"),
                "target": paint(root / f"GOPRO_Large/{split}/{sequence}/sharp/{frame:06d}.png"),
                "unused": paint(root / f"GOPRO_Large/{split}/{sequence}/blur_gamma/{frame:06d}.png"),
            }
            for sequence in sequences
            for frame in (1, 47)
        }
        for split, sequences in (("train", ["GOPR0372_07_00", "GOPR0372_07_01"]), ("test", ["GOPR0384_11_00"]))
    }


def random_blocks(seed):
    return np.random.default_rng(seed).integers(0, 256, (2, 3, *SHAPE, 3), np.uint8)


def save_mat(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {path.stem: values}, do_compression=True)
    return values


def block_examples(**blocks):
    return {
        f"{i + 1:04d}_{j + 1:02d}": {key: values[i, j] for key, values in blocks.items()}
        for i in range(2)
        for j in range(3)
    }


def write_sidd(root, paint):
    scenes = ("0001_001_S6_00100_00060_3200_L", "0002_001_S6_00100_00020_3200_N")
    train = {}
    for scene in scenes:
        for shot in ("010", "011"):
            folder, number = root / "SIDD_Medium_Srgb/Data" / scene, scene[:4]
            train[f"{scene}_{number}_SRGB_{shot}"] = {
                "input": paint(folder / f"{number}_NOISY_SRGB_{shot}.PNG"),
                "target": paint(folder / f"{number}_GT_SRGB_{shot}.PNG"),
            }
    noisy = save_mat(root / "SIDD_Validation/ValidationNoisyBlocksSrgb.mat", random_blocks(1))
    clean = save_mat(root / "SIDD_Validation/ValidationGtBlocksSrgb.mat", random_blocks(2))
    return {"train": train, "validation": block_examples(input=noisy, target=clean)}


def write_sidd_benchmark(root, paint):
    blocks = save_mat(root / "SIDD_Benchmark/BenchmarkNoisyBlocksSrgb.mat", random_blocks(3))
    return {"benchmark": block_examples(input=blocks)}


def write_dnd(root, paint):
    h5py = h5py_or_skip()
    root = root / "dnd_2017"
    (root / "images_srgb").mkdir(parents=True)
    # Top, left, bottom, right, from 1 and inclusive.
    boxes = [[(1, 1, 24, 32), (3, 5, 10, 20)], [(2, 2, 9, 9), (40, 44, 50, 60)]]
    crops = {}
    # MATLAB's own files begin with a header of 512 bytes.
    with h5py.File(root / "info.mat", "w", userblock_size=512) as file:
        references = file.create_dataset("info/boundingboxes", (1, 2), h5py.ref_dtype)
        for i, table in enumerate(boxes):
            stored = file.create_dataset(f"#refs#/{i}", data=np.array(table, np.float64).T)
            references[0, i] = stored.ref
            image = np.random.default_rng(i).random((50, 60, 3), np.float32)
            with h5py.File(root / f"images_srgb/{i + 1:04d}.mat", "w", userblock_size=512) as image_file:
                image_file["InoisySRGB"] = image.T
            for j, (top, left, bottom, right) in enumerate(table):
                crop = image[top - 1 : bottom, left - 1 : right]
                stored_crop = np.rint(crop * np.float32(65535)).astype(np.uint16)
                assert np.abs(stored_crop / 65535 - crop).max() <= 1 / 131070 + 1e-7
                crops[f"{i + 1:04d}_{j + 1:02d}"] = {"input": stored_crop}
    return {"benchmark": crops}


def write_polyu(root, paint):
    folder = root / "PolyU-Real-World-Noisy-Images-Dataset-master/CroppedImages"
    names = ("Canon5D2_5_160_3200_chair_11", "Nikon_4-5_160_1800_plant__4", "Sony_6-3_100_1600_toy_2")
    return {
        "test": {
            name: {"input": paint(folder / f"{name}_real.JPG"), "target": paint(folder / f"{name}_mean.JPG")}
            for name in names
        }
    }


def write_hide(root, paint):
    root = root / "HIDE_dataset"
    folders = {
        "3fromGOPR1089": ("train", root / "train"),
        "8fromGOPR1096": ("train", root / "train"),
        "2fromGOPR0950": ("test", root / "test/test-close-ups"),
        "17fromGOPR0861": ("test", root / "test/test-long-shot"),
    }
    splits = {"train": {}, "test": {}}
    for name, (split, folder) in folders.items():
        pair = {"input": paint(folder / f"{name}.png"), "target": paint(root / f"GT/{name}.png")}
        splits[split][name] = pair
    return splits


def write_realblur(letter, folder_name):
    def write(root, paint):
        root = root / "RealBlur"
        chosen = {"train": (("scene001", 2), ("scene001", 11)), "test": (("scene244_reflect", 1),)}
        splits = {}
        for split, images in chosen.items():
            lines = []
            splits[split] = {}
            for scene, number in images:
                sharp = f"{folder_name}/{scene}/gt/gt_{number}.png"
                blurred = f"{folder_name}/{scene}/blur/blur_{number}.png"
                splits[split][f"{scene}_{number}"] = {"input": paint(root / blurred), "target": paint(root / sharp)}
                lines.append(f"{sharp} {blurred}\n")
            (root / f"RealBlur_{letter}_{split}_list.txt").write_text("".join(lines))
        # Not in a list.
        paint(root / folder_name / "scene002/blur/blur_1.png")
        return splits

    return write


def write_reds(root, paint):
    splits = {}
    for part, split, frames in (("train", "train", (0, 1)), ("val", "validation", (8, 9, 19))):
        folder = root / "REDS" / part
        pairs = {
            f"{clip}_{frame:08d}": {
                "input": paint(folder / f"{part}_blur_jpeg/{clip}/{frame:08d}.jpg"),
                "target": paint(folder / f"{part}_sharp/{clip}/{frame:08d}.png"),
            }
            for clip in ("000", "001")
            for frame in frames
        }
        splits[split] = {name: pair for name, pair in pairs.items() if part == "train" or name.endswith("9")}
    return splits


DPDD_SCENES = {"train": ((917, 916), (933, 932)), "validation": ((1034, 1036),), "test": ((1041, 1040), (2000, 1999))}
DPDD_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def write_dpdd(root, paint):
    return {
        split: {
            f"1P0A{blurred:04d}": {
                "input": paint(root / f"dd_dp_dataset_canon/{part}_c/source/1P0A{blurred:04d}.png", np.uint16),
                "target": paint(root / f"dd_dp_dataset_canon/{part}_c/target/1P0A{sharp:04d}.png", np.uint16),
            }
            for blurred, sharp in DPDD_SCENES[split]
        }
        for split, part in DPDD_FOLDERS.items()
    }


def write_dpdd_dual(root, paint):
    splits = write_dpdd(root, paint)
    for split, part in DPDD_FOLDERS.items():
        for name, images in splits[split].items():
            views = [
                paint(root / f"dd_dp_dataset_canon/{part}_{side.lower()}/source/{name}_{side}.png", np.uint16)
                for side in "LR"
            ]
            images["input"] = np.concatenate(views, axis=-1)
    return splits


def write_realdof(root, paint):
    return {
        "test": {
            str(number): {
                "input": paint(root / f"RealDOF/source/{number}.png"),
                "target": paint(root / f"RealDOF/target/{number}.png"),
            }
            for number in (1, 2, 10)
        }
    }


@dataclass(frozen=True)
class Case:
    builder: type[ImageSetBuilder]
    write: Callable[[Path, Painter], Splits]
    folder: str
    """The folder around which the layout is also found."""
    corrupt: str
    """A file in that folder."""
    missing: str = ""
    """A file in that folder that another one needs."""
    words: str = ""
    """What the message about it says."""


CASES = [
    Case(
        GoPro,
        write_gopro,
        "GOPRO_Large",
        corrupt="test/GOPR0384_11_00/blur/000047.png",
        missing="train/GOPR0372_07_01/sharp/000047.png",
        words="no partner in .*sharp': 000047.png",
    ),
    Case(
        SIDD,
        write_sidd,
        ".",
        corrupt="SIDD_Medium_Srgb/Data/0002_001_S6_00100_00020_3200_N/0002_GT_SRGB_011.PNG",
        missing="SIDD_Medium_Srgb/Data/0002_001_S6_00100_00020_3200_N/0002_GT_SRGB_011.PNG",
        words="no partner .*0002_NOISY_SRGB_011.PNG",
    ),
    Case(
        SIDD,
        write_sidd,
        ".",
        corrupt="SIDD_Validation/ValidationNoisyBlocksSrgb.mat",
        missing="SIDD_Validation/ValidationGtBlocksSrgb.mat",
        words="no ValidationGtBlocksSrgb.mat in",
    ),
    Case(SIDDBenchmark, write_sidd_benchmark, "SIDD_Benchmark", corrupt="BenchmarkNoisyBlocksSrgb.mat"),
    Case(
        DND,
        write_dnd,
        "dnd_2017",
        corrupt="images_srgb/0002.mat",
        missing="images_srgb/0002.mat",
        words="cannot read .*0002.mat' .No such file",
    ),
    Case(
        PolyU,
        write_polyu,
        "PolyU-Real-World-Noisy-Images-Dataset-master",
        corrupt="CroppedImages/Sony_6-3_100_1600_toy_2_mean.JPG",
        missing="CroppedImages/Nikon_4-5_160_1800_plant__4_mean.JPG",
        words="no partner .*plant__4_real.JPG",
    ),
    Case(
        HIDE,
        write_hide,
        "HIDE_dataset",
        corrupt="test/test-long-shot/17fromGOPR0861.png",
        missing="GT/17fromGOPR0861.png",
        words="no partner in .*GT': 17fromGOPR0861.png",
    ),
    *(
        Case(
            builder,
            write_realblur(letter, folder),
            "RealBlur",
            corrupt=f"{folder}/scene001/gt/gt_11.png",
            missing=f"{folder}/scene244_reflect/blur/blur_1.png",
            words="cannot read .*scene244_reflect/blur/blur_1.png",
        )
        for builder, letter, folder in (
            (RealBlurJ, "J", "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"),
            (RealBlurR, "R", "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref"),
        )
    ),
    Case(
        REDS,
        write_reds,
        "REDS",
        corrupt="val/val_blur_jpeg/001/00000019.jpg",
        missing="val/val_sharp/001/00000009.png",
        words="no partner in .*val_sharp/001': 00000009.jpg",
    ),
    Case(
        DPDD,
        write_dpdd,
        "dd_dp_dataset_canon",
        corrupt="test_c/target/1P0A1999.png",
        missing="train_c/target/1P0A0916.png",
        words="train_c/source' holds 2 images and '.*train_c/target' 1,",
    ),
    Case(
        DPDDDual,
        write_dpdd_dual,
        "dd_dp_dataset_canon",
        corrupt="val_r/source/1P0A1034_R.png",
        missing="test_r/source/1P0A1041_R.png",
        words="no right view in .*test_r/source' for .*1P0A1041_L.png",
    ),
    Case(
        RealDOF,
        write_realdof,
        "RealDOF",
        corrupt="source/10.png",
        missing="target/2.png",
        words="no partner in .*target': 2.png",
    ),
]


BUILDER_CLASSES = list(dict.fromkeys(case.builder for case in CASES))


def each(cases):
    ids = [f"{case.builder.name}-{Path(case.corrupt).suffix[1:]}" for case in cases]
    return pytest.mark.parametrize("case", cases, ids=ids)


@pytest.fixture
def prepare_set(tmp_path):
    def prepare_set(builder: type[ImageSetBuilder], source: Path, **values) -> PreparedDataset:
        values = {"cut_size": 16, "cut_stride": 12, "patch_size": 8, **values}
        prepared = str(tmp_path / "prepared")
        return prepare(DataConfig(builder.name, str(source), prepared, **values), training=False)

    return prepare_set


def check_prepared(dataset: PreparedDataset, expected: Splits) -> None:
    assert dataset.num_images == {split: len(examples) for split, examples in expected.items()}
    for split, examples in expected.items():
        keys = {key for images in examples.values() for key in images if key != "unused"}
        whole = {example["name"]: example for example in dataset.splits[split]}
        assert len(whole) == len(dataset.splits[split])
        cuts = CUTS if split == "train" else [None]
        assert list(whole) == [
            name if cut is None else f"{name}_{cut[0]}_{cut[1]}" for name in examples for cut in cuts
        ]
        for name, images in examples.items():
            for cut in cuts:
                example = whole[name if cut is None else f"{name}_{cut[0]}_{cut[1]}"]
                assert set(example) == {"name", *keys}
                for key in keys:
                    pixels = images[key] if cut is None else images[key][cut[0] :, cut[1] :][:16, :16]
                    np.testing.assert_array_equal(example[key], pixels, strict=True)


@each(CASES)
def test_a_miniature_of_the_published_layout(tmp_path, paint, prepare_set, case):
    expected = case.write(tmp_path / "download", paint)
    check_prepared(prepare_set(case.builder, tmp_path / "download"), expected)


@each(CASES)
def test_the_source_may_be_the_folder_itself(tmp_path, paint, case):
    expected = case.write(tmp_path / "download", paint)
    found = case.builder.examples(tmp_path / "download" / case.folder)
    names = {split: [files.name for files in examples] for split, examples in found.items()}
    assert names == {split: list(examples) for split, examples in expected.items()}


@each([case for case in CASES if case.missing])
def test_a_missing_partner_is_named(tmp_path, paint, case):
    case.write(tmp_path / "download", paint)
    (tmp_path / "download" / case.folder / case.missing).unlink()
    with pytest.raises(UserError, match=case.words) as caught:
        image_set_config(case.builder, tmp_path / "download")
    assert "\n" not in str(caught.value)


@each(CASES)
def test_a_corrupt_file_is_named(tmp_path, paint, prepare_set, case):
    case.write(tmp_path / "download", paint)
    path = tmp_path / "download" / case.folder / case.corrupt
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(UserError, match=f"{path.name}' (is cut short|cannot be read)") as caught:
        prepare_set(case.builder, tmp_path / "download")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("builder", BUILDER_CLASSES, ids=lambda builder: builder.name)
def test_what_to_download_is_said_where_nothing_is(tmp_path, builder):
    for source in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as caught:
            builder.examples(source)
        assert str(source) in str(caught.value)
        assert str(caught.value).endswith(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
    assert builder.MANUAL_DOWNLOAD_INSTRUCTIONS[-1] != "."


@pytest.mark.parametrize("builder", BUILDER_CLASSES, ids=lambda builder: builder.name)
def test_a_set_says_what_it_is(builder):
    assert builder.__doc__
    for text in (builder.TASK, builder.LICENSE, builder.CITATION, builder.HOMEPAGE):
        assert text
    assert builder.CITATION.startswith("@")
    assert builder.CITATION.count("{") == builder.CITATION.count("}")
    assert builder.COUNTS


@each([case for case in CASES if "train" in case.builder.COUNTS])
def test_only_the_splits_that_are_there(tmp_path, paint, case):
    expected = case.write(tmp_path / "download", paint)
    parts = [
        "SIDD_Medium_Srgb",
        "train",
        "train_c",
        "train_l",
        "train_r",
        *(f"RealBlur_{x}_train_list.txt" for x in "JR"),
    ]
    for part in parts:
        path = tmp_path / "download" / case.folder / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    del expected["train"]
    found = case.builder.examples(tmp_path / "download")
    assert {split: len(examples) for split, examples in found.items()} == {
        split: len(examples) for split, examples in expected.items()
    }


def test_polyu_in_the_folder_with_the_images(tmp_path, paint):
    expected = write_polyu(tmp_path, paint)
    found = PolyU.examples(tmp_path / "PolyU-Real-World-Noisy-Images-Dataset-master/CroppedImages")
    assert [files.name for files in found["test"]] == list(expected["test"])


def test_hide_as_it_is_copied(tmp_path, paint, prepare_set):
    def write(folder):
        return {n: {key: paint(folder / key / f"{n}.png") for key in ("input", "target")} for n in ("2from", "17from")}

    test_only = {"test": write(tmp_path / "one/HIDE")}
    check_prepared(prepare_set(HIDE, tmp_path / "one"), test_only)
    both = {split: write(tmp_path / "two/HIDE" / split) for split in ("train", "test")}
    check_prepared(prepare_set(HIDE, tmp_path / "two"), both)


def test_hide_without_any_partner(tmp_path, paint):
    write_hide(tmp_path, paint)
    shutil.rmtree(tmp_path / "HIDE_dataset/train")
    for path in (tmp_path / "HIDE_dataset/GT").glob("*fromGOPR0*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"2 of the images in '.*test-close-ups' have no partner in '.*GT'"):
        HIDE.examples(tmp_path)


def test_reds_as_nafnet_arranges_it(tmp_path, paint, prepare_set):
    def write(source, target, names):
        return {
            name: {"input": paint(source / f"{name}.jpg"), "target": paint(target / f"{name}.png")} for name in names
        }

    train, val = tmp_path / "REDS/train", tmp_path / "REDS/val"
    expected = {
        "train": write(train / "train_blur_jpeg", train / "train_sharp", ("000_00000000", "000_00000001")),
        "validation": write(val / "blur_300", val / "sharp_300", ("000_00000009", "029_00000099")),
    }
    check_prepared(prepare_set(REDS, tmp_path), expected)
    # All validation frames beside the chosen ones change nothing.
    write(val / "val_blur_jpeg", val / "val_sharp", ("000_00000008", "000_00000009"))
    check_prepared(prepare_set(REDS, tmp_path), expected)
    # Without the chosen ones, those are chosen that end in 9.
    shutil.rmtree(val / "blur_300")
    assert [files.name for files in REDS.examples(tmp_path)["validation"]] == ["000_00000009"]


def test_reds_with_a_clip_on_one_side_only(tmp_path, paint):
    write_reds(tmp_path, paint)
    shutil.rmtree(tmp_path / "REDS/train/train_blur_jpeg/001")
    with pytest.raises(UserError, match=r"no folder '.*train_blur_jpeg/001'"):
        REDS.examples(tmp_path)
    shutil.rmtree(tmp_path / "REDS/train/train_sharp")
    with pytest.raises(UserError, match=r"no folder '.*train_sharp', the partner of"):
        REDS.examples(tmp_path)


@pytest.mark.parametrize("suffixes", [("", ""), ("_L", "_R")])
def test_dpdd_as_it_is_copied(tmp_path, paint, prepare_set, suffixes):
    single, dual = {}, {}
    for split, part in DPDD_FOLDERS.items():
        folder = tmp_path / "DPDD" / part
        names = ("1P0A0917", "1P0A0933")
        targets = {name: paint(folder / f"target/{name}.png", np.uint16) for name in names}
        centre, left, right = (
            {name: paint(folder / f"input{view}/{name}{suffix}.png", np.uint16) for name in names}
            for view, suffix in zip("CLR", ("", *suffixes), strict=True)
        )
        single[split] = {name: {"input": centre[name], "target": targets[name]} for name in names}
        dual[split] = {
            name: {"input": np.concatenate([left[name], right[name]], axis=-1), "target": targets[name]}
            for name in names
        }
    check_prepared(prepare_set(DPDD, tmp_path), single)
    check_prepared(prepare_set(DPDDDual, tmp_path), dual)


def test_dpdd_files_that_are_paired_by_order_must_fit(tmp_path, paint):
    write_dpdd_dual(tmp_path, paint)
    folder = tmp_path / "dd_dp_dataset_canon"
    (folder / "train_c/source/1P0A0917.png").unlink()
    (folder / "train_c/target/1P0A0932.png").unlink()
    with pytest.raises(UserError, match=r"1P0A0933.png' and '.*1P0A0916.png' are paired by their order but"):
        DPDD.examples(tmp_path)
    paint(folder / "test_r/source/1P0A3000_R.png")
    shutil.rmtree(folder / "train_l")
    with pytest.raises(UserError, match=r"no left view in '.*test_l/source' for '.*1P0A3000_R.png'"):
        DPDDDual.examples(tmp_path)


def test_realdof_files_may_be_paired_by_order(tmp_path, paint):
    for number in (2, 10):
        paint(tmp_path / f"source/a{number}.png")
        paint(tmp_path / f"target/b{number}.png")
    pairs = RealDOF.examples(tmp_path)["test"]
    assert [(files.name, files.images["target"].path.stem) for files in pairs] == [("a2", "b2"), ("a10", "b10")]
    # A name that two different images happen to have.
    paint(tmp_path / "source/c1.png")
    paint(tmp_path / "target/a2.png")
    pairs = RealDOF.examples(tmp_path)["test"]
    assert [(files.name, files.images["target"].path.stem) for files in pairs] == [
        ("a2", "a2"),
        ("a10", "b2"),
        ("c1", "b10"),
    ]


def test_the_scene_of_realblur_whose_folder_has_another_name(tmp_path, save):
    for part in ("blur", "gt"):
        save(tmp_path / f"RealBlur-J/scene244_reflect/{part}/{part}_1.png")
    line = " ".join(f"RealBlur-J/scene244/{part}/{part}_1.png" for part in ("gt", "blur"))
    (tmp_path / "RealBlur_J_test_list.txt").write_text(line)
    ((files,),) = RealBlurJ.examples(tmp_path).values()
    assert files.name == "scene244_reflect_1"
    assert all(image.path.is_file() for image in files.images.values())


def test_a_line_of_a_realblur_list_that_names_no_pair(tmp_path):
    (tmp_path / "RealBlur_J_test_list.txt").write_text(
        "a/gt/gt_1.png a/blur/blur_1.png\n\na/gt/gt_1.png a/gt/gt_2.png\n"
    )
    with pytest.raises(UserError, match=r"line 3 of '.*RealBlur_J_test_list.txt' does not name"):
        RealBlurJ.examples(tmp_path)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The names of the variables that were loaded, in order."""
    names = []
    load = matlab._load
    monkeypatch.setattr(matlab, "_load", lambda path, name: names.append(name) or load(path, name))
    return names


def test_blocks_are_loaded_once_a_round_and_released(tmp_path, paint, prepare_set, monkeypatch, loads):
    write_sidd(tmp_path / "download", paint)
    arrays = []
    in_order = np.ascontiguousarray

    def watch(values):
        array = in_order(values)
        if array.ndim == 5:
            arrays.append(weakref.ref(array))
        return array

    monkeypatch.setattr(matlab.np, "ascontiguousarray", watch)
    dataset = prepare_set(SIDD, tmp_path / "download")
    assert len(dataset.splits["validation"]) == 6
    # Once when the images are checked and once when they are stored.
    assert sorted(set(loads)) == ["ValidationGtBlocksSrgb", "ValidationNoisyBlocksSrgb"]
    assert len(loads) == len(arrays) == 4
    gc.collect()
    assert [array() for array in arrays] == [None] * 4


def test_blocks_are_released_with_the_examples(tmp_path, loads):
    save_mat(tmp_path / "BenchmarkNoisyBlocksSrgb.mat", random_blocks(0))
    examples = SIDDBenchmark.examples(tmp_path)["benchmark"]
    image = examples[0].images["input"]
    block = image.read(image.path)
    variable = weakref.ref(image.read.args[0])
    assert (block.base, variable()._values.shape) == (None, (2, 3, *SHAPE, 3))
    del examples, image
    gc.collect()
    assert variable() is None


def test_threads_load_a_variable_once(tmp_path, monkeypatch, loads):
    values = save_mat(tmp_path / "a.mat", random_blocks(0))
    load = matlab._load

    def load_slowly(path, name):
        time.sleep(0.05)
        return load(path, name)

    monkeypatch.setattr(matlab, "_load", load_slowly)
    variable = MatlabVariable(tmp_path / "a.mat", "a", times=32)
    assert (variable.shape, loads) == (values.shape, [])
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: variable.values(), range(32)))
    assert loads == ["a"]
    np.testing.assert_array_equal(read[0], values, strict=True)
    assert all(array is read[0] for array in read)
    assert read[0].flags.c_contiguous
    np.testing.assert_array_equal(variable.values(), values, strict=True)
    assert loads == ["a", "a"]


def test_blocks_that_are_not_as_published(tmp_path):
    noisy, clean = (tmp_path / f"Validation{kind}BlocksSrgb.mat" for kind in ("Noisy", "Gt"))
    save_mat(noisy, random_blocks(0))

    def read_targets():
        for files in SIDD.examples(tmp_path)["validation"]:
            files.images["target"].read(files.images["target"].path)

    def fails(words):
        with pytest.raises(UserError, match=words) as caught:
            read_targets()
        assert "\n" not in str(caught.value)

    scipy.io.savemat(clean, {"other": random_blocks(0), "more": 1})
    fails(r"Gt.*mat' has no variable ValidationGtBlocksSrgb, only other, more")
    save_mat(clean, random_blocks(0)[0])
    fails(r"ValidationGtBlocksSrgb in '.*mat' is .3, 24, 32, 3., not .photographs, blocks,")
    save_mat(clean, random_blocks(0)[:1])
    fails(r"Noisy.*mat' and '.*Gt.*mat' hold different numbers of blocks")
    save_mat(clean, random_blocks(0) / 255)
    fails(r"ValidationGtBlocksSrgb in '.*mat' is float64 .24, 32, 3., not an image of 8 or 16 bits")
    for content in (b"", b"no MATLAB file", b"no MATLAB file" * 100):
        clean.write_bytes(content)
        fails(r"Gt.*mat' cannot be read as a MATLAB file .*copy it again")


def test_matlab_files_of_version_7_3(tmp_path, monkeypatch):
    h5py = h5py_or_skip()
    values = random_blocks(0)
    for userblock_size in (0, 512):
        with h5py.File(tmp_path / f"{userblock_size}.mat", "w", userblock_size=userblock_size) as file:
            file["a"] = values.T
        variable = MatlabVariable(tmp_path / f"{userblock_size}.mat", "a")
        assert variable.shape == values.shape
        np.testing.assert_array_equal(variable.values(), values, strict=True)
        with pytest.raises(UserError, match=r".mat' has no variable b, only a"):
            MatlabVariable(tmp_path / f"{userblock_size}.mat", "b")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"512.mat' is a MATLAB file of version 7.3, .*pip install 'gamax\[matlab\]'"):
        variable = MatlabVariable(tmp_path / "512.mat", "a")


def test_dnd_files_that_are_not_as_published(tmp_path, paint, prepare_set):
    h5py = h5py_or_skip()
    write_dnd(tmp_path, paint)
    path = tmp_path / "dnd_2017/images_srgb/0002.mat"

    def fails(words, image):
        with h5py.File(path, "w") as file:
            file["InoisySRGB"] = image.T
        with pytest.raises(UserError, match=words) as caught:
            prepare_set(DND, tmp_path)
        assert "\n" not in str(caught.value)

    fails(r"0002.mat' has no pixels at rows 40 to 50, columns 44 to 60", np.zeros((49, 60, 3), np.float32))
    fails(r"0002.mat' holds values that are no numbers", np.full((50, 60, 3), np.nan, np.float32))
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(UserError, match=r"0002.mat' cannot be read as a MATLAB file .*InoisySRGB"):
        prepare_set(DND, tmp_path)
    (tmp_path / "dnd_2017/info.mat").write_text("no MATLAB file")
    with pytest.raises(UserError, match=r"info.mat' cannot be read as a MATLAB file"):
        DND.examples(tmp_path)


def real(shared_folder, name):
    folder = shared_folder / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no real images in '{folder}'")
    return folder


def test_real_gopro(shared_folder, prepare_set):
    # Whole frames, raw: cutting and compressing them would take most of the time.
    dataset = prepare_set(GoPro, real(shared_folder, "gopro_sample"), cut_size=2048, encoding="raw")
    assert dataset.num_images == {"train": 6, "test": 6}
    assert dataset.psnr_input == pytest.approx({"train": 23.64, "test": 22.68}, abs=0.005)
    assert dataset.train[-1]["name"] == "GOPR0372_07_00_000122_0_0"
    assert dataset.train[-1]["input"].shape == (720, 1280, 3)


def test_real_polyu(tmp_path, shared_folder, prepare_set):
    folder = real(shared_folder, "polyu")
    cropped = tmp_path / "PolyU-Real-World-Noisy-Images-Dataset/CroppedImages"
    cropped.mkdir(parents=True)
    for part, word in (("input", "real"), ("target", "mean")):
        for path in (folder / part).iterdir():
            (cropped / f"{path.stem}_{word}.JPG").symlink_to(path)
    dataset = prepare_set(PolyU, tmp_path)
    assert dataset.num_images == PolyU.COUNTS
    # Of 86 images 35.81 dB, of 14 images 36.94 dB.
    assert dataset.psnr_input["test"] == pytest.approx((86 * 35.81 + 14 * 36.94) / 100, abs=0.005)


def test_real_sidd_blocks(tmp_path, shared_folder, prepare_set):
    folder = real(shared_folder, "sidd_tiny")
    images = [read_matlab_image(folder / f"{name}.mat", f"im_{name}") for name in ("noisy", "gt")]
    assert all((image.shape, image.dtype) == ((256, 256, 3), np.uint8) for image in images)
    assert cv2.PSNR(*images) == pytest.approx(16.15, abs=0.005)
    with pytest.raises(UserError, match=r"gt.mat' has no variable im_noisy, only im_gt"):
        read_matlab_image(folder / "gt.mat", "im_noisy")
    # As the only block of the only photograph of a validation set.
    for name, image in zip(("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"), images, strict=True):
        scipy.io.savemat(tmp_path / f"{name}.mat", {name: image[np.newaxis, np.newaxis]}, do_compression=True)
    dataset = prepare_set(SIDD, tmp_path)
    assert dataset.num_images == {"validation": 1}
    assert dataset.psnr_input["validation"] == pytest.approx(16.15, abs=0.005)
    np.testing.assert_array_equal(dataset.test[0]["input"], images[0])
