"""Test sets are found in the layouts of their authors and in plain folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamax.data.prior import prior_path
from gamax.errors import UserError
from gamax.evaluation.protocol_data import label_examples, protocol_examples
from gamax.evaluation.protocols import PROTOCOLS, find_protocol, protocol_example


def image(path: Path, seed: int = 0, dtype: type = np.uint8, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (12, 16, channels), dtype)
    cv2.imwrite(str(path), pixels)
    return path


def images(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        image(folder / name, seed)
    return folder


def names(examples: Iterable[dict[str, object]]) -> list[tuple[object, object]]:
    return [(example["name"], example.get("set")) for example in examples]


def test_pairs_of_a_plain_folder(tmp_path):
    images(tmp_path, "input/a.png", "input/b.png", "target/b.png", "target/a.png")
    for protocol in ("paired-rgb", "gopro", "sidd-srgb", "polyu"):
        examples = protocol_examples(find_protocol(protocol), tmp_path)
        assert names(examples) == [("a", None), ("b", None)]
        np.testing.assert_array_equal(examples[0]["input"], cv2.imread(str(tmp_path / "input/a.png"))[..., ::-1])
        np.testing.assert_array_equal(examples[-1]["target"], cv2.imread(str(tmp_path / "target/b.png"))[..., ::-1])
    assert [example["name"] for example in examples[:1]] == ["a"]


def test_clean_images_of_a_plain_folder_in_colour_and_gray(tmp_path):
    images(tmp_path / "Kodak", "2.png", "10.png")
    assert names(protocol_examples(find_protocol("gauss-color-50"), tmp_path / "Kodak")) == [
        ("2", "Kodak"),
        ("10", "Kodak"),
    ]
    gray = find_protocol("gauss-gray-50")
    (first, _) = protocol_examples(gray, tmp_path / "Kodak")
    assert protocol_example(gray, first)["target"].shape == (12, 16, 1)


def test_the_clean_side_of_a_published_set_is_not_taken_for_clean_images(tmp_path):
    images(tmp_path / "Rain100L", "rainy/rain-001.png", "rainy/rain-002.png", "norain-001.png", "norain-002.png")
    examples = protocol_examples(find_protocol("lir-crop32"), tmp_path / "Rain100L")
    assert names(examples) == [("rain-001", "Rain100L"), ("rain-002", "Rain100L")]
    assert all("input" in example for example in examples)


def test_images_of_one_scene_carry_its_name(tmp_path):
    for sequence, frame in (("GOPR0384_11_00", 1), ("GOPR0384_11_00", 2), ("GOPR0854_11_00", 1)):
        images(tmp_path / "test" / sequence, f"blur/{frame:06d}.png", f"sharp/{frame:06d}.png")
    examples = protocol_examples(find_protocol("gopro"), tmp_path)
    assert [example["scene"] for example in examples] == ["GOPR0384_11_00", "GOPR0384_11_00", "GOPR0854_11_00"]
    images(tmp_path / "SOTS/indoor", "hazy/1400_1.png", "hazy/1400_10.png", "gt/1400.png")
    examples = protocol_examples(find_protocol("sots"), tmp_path)
    assert [example["scene"] for example in examples] == ["1400", "1400"]


def test_a_complete_set_is_known_in_any_folder(tmp_path):
    for index in range(76):
        images(tmp_path / "defocus", f"input/{index:02d}.png", f"target/{index:02d}.png")
    examples = protocol_examples(find_protocol("dpdd-single8"), tmp_path / "defocus")
    assert [example["set"] for example in examples].count("outdoor") == 39


@pytest.mark.parametrize(
    ("protocol", "set_name", "name", "scene"),
    [
        ("gopro", "GoPro", "GOPR0384_11_00-000001", "GOPR0384_11_00"),
        ("hide", "HIDE", "2fromGOPR0950", "GOPR0950"),
        ("rain-y-matlab", "Test2800", "901_14", "901"),
        ("sidd-srgb", "SIDD", "0003_21", "0003"),
        ("sots", "outdoor", "0001_0.8_0.2", "0001"),
    ],
)
def test_scenes_are_read_from_names(protocol, set_name, name, scene):
    part = next(part for part in find_protocol(protocol).datasets if part.name == set_name)
    (example,) = label_examples(find_protocol(protocol), part.dataset, [{"name": name}])
    assert example["scene"] == scene


def test_a_link_may_have_the_name_of_a_set(tmp_path):
    images(tmp_path / "store/abc", "input/1.png", "target/1.png")
    (tmp_path / "Rain100L").symlink_to(tmp_path / "store/abc")
    assert names(protocol_examples(find_protocol("rain-y-matlab"), tmp_path / "Rain100L")) == [("1", "Rain100L")]


def test_prepared_examples_get_the_same_labels(tmp_path):
    prepared = [{"name": f"{index:02d}"} for index in range(76)]
    labelled = label_examples(find_protocol("dpdd-single8"), "dpdd", prepared)
    assert [example["set"] for example in labelled].count("indoor") == 37
    assert label_examples(find_protocol("gauss-color-25"), "cbsd68", prepared)[5]["set"] == "CBSD68"
    assert label_examples(find_protocol("gopro"), "gopro", [{"name": "GOPR_11_00_000001"}])[0] == {
        "name": "GOPR_11_00_000001",
        "scene": "GOPR_11_00",
    }
    assert label_examples(find_protocol("gauss-color-25"), "clean_folder", prepared) is prepared


def test_all_rain_sets_that_are_there(tmp_path, capsys):
    images(tmp_path / "test/Test100", "input/1.png", "target/1.png")
    images(tmp_path / "test/Rain100H", "input/1.png", "input/2.png", "target/1.png", "target/2.png")
    examples = protocol_examples(find_protocol("rain-y-matlab"), tmp_path)
    assert names(examples) == [("1", "Test100"), ("1", "Rain100H"), ("2", "Rain100H")]
    printed = capsys.readouterr().out
    assert "note: 2 of the 100 published images of Rain100H are here" in printed
    assert "note: without Rain100L, Test2800, Test1200, which are not in" in printed


def test_a_single_rain_set_is_named_by_its_folder(tmp_path, capsys):
    images(tmp_path / "rain100l", "input/1.png", "target/1.png")
    assert names(protocol_examples(find_protocol("rain-y-matlab"), tmp_path / "rain100l")) == [("1", "Rain100L")]
    assert "1 of the 100 published images of Rain100L" in capsys.readouterr().out
    images(tmp_path / "mine", "input/1.png", "target/1.png")
    assert names(protocol_examples(find_protocol("rain-y-matlab"), tmp_path / "mine")) == [("1", "mine")]
    assert "note" not in capsys.readouterr().out


def test_a_folder_that_may_be_one_of_two_sets_needs_its_name(tmp_path):
    images(tmp_path / "rain", "rainy/rain-001.png", "norain-001.png")
    with pytest.raises(UserError, match="may hold Rain100H or Rain100L: give it the name of the one"):
        protocol_examples(find_protocol("rain-y-matlab"), tmp_path / "rain")
    (tmp_path / "rain").rename(tmp_path / "Rain100H")
    assert names(protocol_examples(find_protocol("rain-y-matlab"), tmp_path / "Rain100H")) == [("rain-001", "Rain100H")]


def test_gopro_as_its_authors_distribute_it(tmp_path, capsys):
    images(tmp_path / "GOPRO_Large/test/GOPR0384_11_00", "blur/000001.png", "sharp/000001.png")
    images(tmp_path / "GOPRO_Large/train/GOPR0372_07_00", "blur/000047.png", "sharp/000047.png")
    assert names(protocol_examples(find_protocol("gopro-tlc"), tmp_path)) == [("GOPR0384_11_00_000001", None)]
    assert "note: 1 of the 1,111 published images of GoPro are here" in capsys.readouterr().out


def test_sots_indoor_and_outdoor_are_sets(tmp_path):
    images(tmp_path / "SOTS/indoor", "hazy/1400_1.png", "gt/1400.png")
    images(tmp_path / "SOTS/outdoor", "hazy/0001_0.8_0.2.png", "gt/0001.png")
    examples = protocol_examples(find_protocol("sots"), tmp_path)
    assert names(examples) == [("1400_1", "indoor"), ("0001_0.8_0.2", "outdoor")]


def test_realblur_j_and_r_are_sets(tmp_path):
    for letter, kind in (("J", ""), ("R", "BM3D_")):
        folder = f"RealBlur-{letter}_{kind}ECC_IMCORR_centroid_itensity_ref/scene001"
        images(tmp_path / folder, "blur/blur_1.png", "gt/gt_1.png")
        line = f"{folder}/gt/gt_1.png {folder}/blur/blur_1.png\n"
        (tmp_path / f"RealBlur_{letter}_test_list.txt").write_text(line)
    examples = protocol_examples(find_protocol("realblur-ecc"), tmp_path)
    assert names(examples) == [("scene001_1", "RealBlur-J"), ("scene001_1", "RealBlur-R")]
    (tmp_path / "RealBlur_R_test_list.txt").unlink()
    assert names(protocol_examples(find_protocol("realblur-ecc"), tmp_path)) == [("scene001_1", "RealBlur-J")]


def test_a_complete_dpdd_is_divided_by_position(tmp_path):
    for number in range(76):
        image(tmp_path / f"DPDD/test/inputC/{number}.png", number, np.uint16)
        image(tmp_path / f"DPDD/test/target/{number}.png", number, np.uint16)
    examples = protocol_examples(find_protocol("dpdd-single8"), tmp_path)
    assert len(examples) == 76
    assert [examples[index]["set"] for index in (7, 8, 13, 14, 56, 57, 58, 59, 75)] == [
        *("outdoor", "indoor", "indoor", "outdoor", "indoor", "outdoor", "outdoor", "indoor", "indoor")
    ]
    (tmp_path / "DPDD/test/inputC/75.png").unlink()
    (tmp_path / "DPDD/test/target/75.png").unlink()
    assert "set" not in protocol_examples(find_protocol("dpdd-single8"), tmp_path)[8]


def test_the_two_views_of_dpdd_are_one_input(tmp_path):
    for seed, part in enumerate(("inputL", "inputR", "target")):
        image(tmp_path / f"DPDD/test/{part}/1.png", seed, np.uint16)
    (example,) = protocol_examples(find_protocol("dpdd-dual16"), tmp_path)
    left = cv2.imread(str(tmp_path / "DPDD/test/inputL/1.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert (example["input"].shape, example["input"].dtype) == ((12, 16, 6), np.uint16)
    np.testing.assert_array_equal(example["input"][..., :3], left)


def test_lir_takes_pairs_and_clean_images(tmp_path):
    images(tmp_path / "CBSD68", "1.png")
    images(tmp_path / "pairs", "input/1.png", "target/1.png")
    assert set(protocol_examples(find_protocol("lir-crop32"), tmp_path / "CBSD68")[0]) == {"name", "set", "target"}
    assert set(protocol_examples(find_protocol("lir-crop32"), tmp_path / "pairs")[0]) == {
        "name",
        "set",
        "input",
        "target",
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_folder_without_anything_of_a_protocol_says_what_it_takes(tmp_path, name):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError) as raised:
        protocol_examples(find_protocol(name), tmp_path)
    sentence = str(raised.value)
    assert str(tmp_path) in sentence
    assert "\n" not in sentence
    if name != "paired-rgb":
        assert f"no images for protocol {name} in" in sentence
    with pytest.raises(UserError, match="no folder"):
        protocol_examples(find_protocol(name), tmp_path / "absent")


def test_a_damaged_set_is_not_passed_over_for_another(tmp_path):
    images(tmp_path / "Test100", "input/1.png", "target/1.png")
    images(tmp_path / "Rain100L", "input/1.png", "input/2.png", "target/1.png")
    with pytest.raises(UserError, match=r"1 image has no partner of the same name in folder '.*Rain100L'"):
        protocol_examples(find_protocol("rain-y-matlab"), tmp_path)


def test_priors_are_found_by_the_names_of_the_images(tmp_path):
    images(tmp_path / "a/test", "input/1.png", "input/2.png", "target/1.png", "target/2.png")
    prior, protocol = tmp_path / "prior", find_protocol("paired-rgb")
    with pytest.raises(UserError, match=r"no prior in '.*prior' \(it has no prior.json\)"):
        protocol_examples(protocol, tmp_path / "a/test", prior)
    for split, numbers in {"train": (1, 2, 3), "validation": (1,)}.items():
        for number in numbers:
            image(prior_path(prior, split, str(number)), 10 * len(split) + number, np.uint16)
    (prior / "prior.json").write_text("{}")
    # The same names are in another split: other images, or an interrupted `gamax data prior`.
    with pytest.raises(UserError, match=r"no prior '.*prior/test/1.png'"):
        protocol_examples(protocol, tmp_path / "a/test", prior)
    (tmp_path / "a/test").rename(tmp_path / "a/others")
    examples = protocol_examples(protocol, tmp_path / "a/others", prior)
    given = cv2.imread(str(prior / "train/2.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert examples[1]["input"].dtype == np.uint16
    np.testing.assert_array_equal(examples[1]["input"][..., 3:], given)
    # In two splits: only the name of a split says which.
    for number in (1, 2):
        image(prior_path(prior, "test", str(number)), 0, np.uint16)
    with pytest.raises(UserError, match=r"priors for the images in '.*others' in each of test, train: give the folder"):
        protocol_examples(protocol, tmp_path / "a/others", prior)
    shutil.copytree(tmp_path / "a/others", tmp_path / "a/test")
    examples = protocol_examples(protocol, tmp_path / "a/test", prior)
    given = cv2.imread(str(prior / "test/2.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(examples[1]["input"][..., 3:], given)
    images(tmp_path / "a/others", "input/4.png", "target/4.png")
    with pytest.raises(UserError, match=r"no folder in '.*prior' has a prior for each of the 3 images in '.*others'"):
        protocol_examples(protocol, tmp_path / "a/others", prior)
