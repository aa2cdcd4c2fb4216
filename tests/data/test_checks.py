from __future__ import annotations

import csv
import re

import cv2
import numpy as np
import pytest
from skimage import data as photographs

from gamax.data import checks
from gamax.data.checks import SAME_PICTURE, check_images, find_shift, thumbnail
from gamax.errors import UserError

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def photograph(name, side=256):
    image = getattr(photographs, name)()
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def gray(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def noisy(image, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def motion_blur(image):
    return cv2.filter2D(image, -1, np.full((1, 15), 1 / 15))


def as_jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def write_pairs(folder, change):
    for name in PHOTOGRAPHS:
        write(folder / f"target/{name}.png", photograph(name))
        write(folder / f"input/{name}.png", change(photograph(name)))


def test_a_good_folder(tmp_path, save):
    for i in range(3):
        save(tmp_path / f"{i}.png", (20, 30 + 10 * (i // 2)), seed=i)
    report = check_images(tmp_path)
    (split,) = report.splits
    assert (split.name, split.paired, split.num_examples, split.num_published) == ("", False, 3, None)
    assert (split.sizes, split.bit_depths, split.psnr_input) == ({(20, 30): 2, (20, 40): 1}, {8: 3}, None)
    assert report.problems == report.notes == ()


def test_every_problem_of_the_files_is_reported(tmp_path, save):
    for seed, name in enumerate(("ok", "size", "depth", "lonely", "broken", "deep", "empty")):
        dtype = np.uint16 if name == "deep" else np.uint8
        save(tmp_path / f"input/{name}.png", (20, 30), dtype, seed)
        if name != "lonely":
            shape = (20, 31) if name == "size" else (20, 30)
            save(tmp_path / f"target/{name}.png", shape, np.uint16 if name == "depth" else dtype, seed)
    (tmp_path / "input/broken.png").write_bytes((tmp_path / "input/broken.png").read_bytes()[:-40])
    (tmp_path / "target/empty.png").write_bytes(b"")
    report = check_images(tmp_path)
    (split,) = report.splits
    assert (split.num_examples, split.sizes, split.bit_depths) == (6, {(20, 30): 2}, {8: 1, 16: 1})
    expected = [
        "1 image has no partner .*lonely.png; add the partner or remove the image",
        "broken.png' is cut short; copy it again",
        "depth.png' differ in bit depth; convert one",
        "empty.png' is empty .*; copy it again",
        "size.png' differ in size .30x20 and 31x20 pixels.; cut both",
        "deep.png' are equal, as are all pairs",
        "mixes bit depths .1 of 8 bits and 1 of 16 bits.; convert",
    ]
    assert len(report.problems) == len(expected)
    for words, problem in zip(expected, report.problems, strict=True):
        assert re.search(words, problem)


def test_nothing_to_check(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        check_images(tmp_path / "none")
    with pytest.raises(UserError, match=r"did you mean 'gopro'"):
        check_images(tmp_path, "gopr")


def test_psnr_of_the_inputs(tmp_path):
    write_pairs(tmp_path, lambda image: noisy(image, 10))
    write(tmp_path / "input/coffee.png", noisy(photograph("coffee"), 40))
    write(tmp_path / "input/rocket.png", photograph("rocket"))
    report = check_images(tmp_path)
    psnr = report.splits[0].psnr_input
    scores = {
        name: cv2.PSNR(noisy(photograph(name), sigma), photograph(name))
        for name, sigma in (("astronaut", 10), ("chelsea", 10), ("coffee", 40))
    }
    assert psnr.mean == pytest.approx(np.mean(list(scores.values())))
    assert (psnr.lowest, psnr.lowest_name) == (pytest.approx(scores["coffee"]), "coffee")
    assert psnr.highest == pytest.approx(max(scores.values()))
    assert report.problems == ()
    assert report.notes == ("1 pairs have an input equal to the target; look at rocket",)


def test_an_input_far_below_the_others_is_noted(tmp_path):
    write_pairs(tmp_path, lambda image: noisy(image, 10))
    write(tmp_path / "input/chelsea.png", photograph("chelsea") // 8)
    write(tmp_path / "target/chelsea.png", np.maximum(photograph("chelsea"), 150))
    (note,) = check_images(tmp_path).notes
    assert re.search(r"1 inputs are far worse than the median of .*chelsea \(.* dB\)", note)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: as_jpeg(image, 20), id="recompressed"),
        pytest.param(lambda image: cv2.resize(image, None, fx=0.93, fy=0.93), id="smaller"),
        pytest.param(
            lambda image: cv2.resize(image, None, fx=1.04, fy=1.04, interpolation=cv2.INTER_CUBIC), id="larger"
        ),
        pytest.param(lambda image: cv2.resize(image, (image.shape[1] // 2, 180)), id="other aspect"),
        pytest.param(lambda image: (image * 0.7 + 20).astype(np.uint8), id="darker"),
        pytest.param(lambda image: noisy(image, 25), id="noisy"),
    ],
)
def test_thumbnails_of_the_same_picture(name, change):
    image = photograph(name)
    assert thumbnail(gray(image)) @ thumbnail(gray(change(image))) > SAME_PICTURE


def test_thumbnails_of_different_pictures():
    prints = np.stack([thumbnail(gray(photograph(name))) for name in PHOTOGRAPHS])
    correlations = prints @ prints.T
    np.testing.assert_allclose(np.diag(correlations), 1, rtol=1e-6)
    assert np.triu(correlations, 1).max() < 0.5
    assert not thumbnail(np.full((40, 40), 99.0, np.float32)).any()


def test_pictures_in_both_train_and_test(tmp_path):
    for name in PHOTOGRAPHS[:3]:
        write(tmp_path / f"train/{name}.png", photograph(name))
    write(tmp_path / "train/again.png", photograph("coffee", 240))
    write(tmp_path / "test/rocket.png", photograph("rocket"))
    write(tmp_path / "test/cat.jpg", as_jpeg(photograph("chelsea", 270), 60))
    report = check_images(tmp_path)
    assert [split.name for split in report.splits] == ["train", "test"]
    (problem,) = report.problems
    assert re.search(r"train/chelsea.png' of train .*test/cat.jpg' of test .*remove it from train", problem)
    (note,) = report.notes
    assert re.match(r"train: 1 of 4 pictures repeat an earlier one.*: coffee \(again\)", note)


def test_a_target_that_serves_several_inputs_is_no_repetition(tmp_path, monkeypatch):
    write(tmp_path / "gt/a.png", photograph("coffee"))
    for i in range(3):
        write(tmp_path / f"hazy/a_{i}.png", noisy(photograph("coffee"), 10 + i))
    examples = [checks.pair(tmp_path / f"hazy/a_{i}.png", tmp_path / "gt/a.png") for i in range(3)]
    monkeypatch.setattr(checks, "_list_folder", lambda folder: ({"train": examples}, []))
    assert check_images(tmp_path).notes == ()


def test_matches_are_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    prints = rng.normal(size=(50, 576)).astype(np.float32)
    prints[[7, 31, 49]] = prints[[3, 3, 20]]
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    expected = [(7, 3), (31, 3), (49, 20)]
    for block in (4, 1024):
        monkeypatch.setattr(checks, "_BLOCK", block)
        assert [match[:2] for match in checks._matches(prints, prints, earlier=True)] == expected
        assert [match[:2] for match in checks._matches(prints[40:], prints[:30])] == [(9, 20)]


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (2, -3), (10, 4)])
@pytest.mark.parametrize("degrade", [lambda image: noisy(image, 25), lambda image: noisy(motion_blur(image), 5)])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_shifts_are_found(name, degrade, shift):
    image = photograph(name, 400)
    right, down = shift
    target = image[40:360, 40:360]
    moved = degrade(image)[40 - down : 360 - down, 40 - right : 360 - right]
    found = find_shift(gray(moved), gray(target))
    assert (found.right, found.down) == pytest.approx(shift, abs=0.2)
    assert found.gain == 0 if shift == (0, 0) else found.gain > 0


def test_misaligned_and_wrong_pairs(tmp_path):
    write_pairs(tmp_path, lambda image: noisy(image, 25))
    write(tmp_path / "input/astronaut.png", noisy(np.roll(photograph("astronaut"), (-3, 2), (0, 1)), 25))
    write(tmp_path / "input/coffee.png", noisy(photograph("rocket"), 25))
    report = check_images(tmp_path)
    expected = [
        r"astronaut.png' are misaligned \(the input lies 2.0 pixels right and 3.0 up\); align",
        r"coffee.png' show different pictures \(correlation .*\); find the right partner",
    ]
    assert len(report.problems) == len(expected)
    for words, problem in zip(expected, report.problems, strict=True):
        assert re.search(words, problem)


def test_images_without_contrast_have_no_shift():
    flat = np.full((64, 64), 9.0, np.float32)
    assert find_shift(flat, flat) is None
    assert find_shift(flat[:4], flat[:4]) is None


def test_counts_of_a_published_set(tmp_path):
    for split in ("train", "test"):
        for side, image in (("sharp", photograph("coffee")), ("blur", motion_blur(photograph("coffee")))):
            write(tmp_path / f"GOPRO_Large/{split}/GOPR1/{side}/1.png", image)
    report = check_images(tmp_path, "gopro")
    assert [split.num_published for split in report.splits] == [2103, 1111]
    assert [split.paired for split in report.splits] == [True, True]
    assert "train has 1 examples, the published set 2,103; complete it" in report.notes[0]
    assert len(report.problems) == 1


def test_real_rain(shared_folder):
    source = shared_folder / "data/rain800"
    report = check_images(source)
    (problem,) = report.problems
    with open(source / "index.csv") as file:
        train = [row for row in csv.DictReader(file) if row["split"] == "train" and row["layout"] == "cut"]
    assert [row["file"] for row in train if row["shares_clean_with_test"]] == ["460.jpg"]
    assert "train/target/460.jpg' of train shows the same picture as" in problem
    repeats = len(train) - len({row["clean_group"] for row in train})
    assert f"train: {repeats} of {len(train)} pictures repeat" in report.notes[0]
    assert report.splits[0].psnr_input.mean == pytest.approx(21.75, abs=0.01)


@pytest.mark.parametrize(
    ("name", "dataset", "mean"), [("polyu", None, 35.97), ("gopro_sample", "gopro", 23.64), ("kodak24", None, None)]
)
def test_real_photographs_are_not_complained_about(shared_folder, name, dataset, mean):
    report = check_images(shared_folder / "data" / name, dataset)
    assert report.problems == ()
    assert not [note for note in report.notes if "shifted" in note]
    psnr = report.splits[0].psnr_input
    assert mean is None if psnr is None else psnr.mean == pytest.approx(mean, abs=0.01)


def test_real_photographs_of_two_sets_overlap(shared_folder, tmp_path):
    # 90.jpg of Rain800's test pictures is in BSDS500 train; its file holds both halves of the pair.
    (tmp_path / "train").symlink_to(shared_folder / "data/bsds500/train")
    both = cv2.imread(str(shared_folder / "data/rain800/test/sidebyside/90.jpg"))[..., ::-1]
    write(tmp_path / "test/90.jpg", both[:, : both.shape[1] // 2])
    report = check_images(tmp_path)
    assert len(report.problems) == 1
