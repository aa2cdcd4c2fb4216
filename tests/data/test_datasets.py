from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamax.config import DataConfig
from gamax.data.builders import core
from gamax.data.builders.clean_folder import CleanFolder
from gamax.data.builders.core import cut_positions
from gamax.data.datasets import prepare, source_examples
from gamax.data.degradations import GaussianNoise
from gamax.errors import UserError
from gamax.files import lock

REPOSITORY = Path(__file__).parents[2]


def config(tmp_path, **values):
    values = {"dataset": "clean_folder", "source": str(tmp_path / "photos"), "patch_size": 16, **values}
    if values["dataset"] != "paired_folder":
        values = {"degradations": (GaussianNoise(),), **values}
    return DataConfig(prepared_dir=str(tmp_path / "prepared"), **values)


def prepared_sets(tmp_path):
    return sorted(path.parent.parent.name for path in (tmp_path / "prepared").glob("*/*/*/dataset_info.json"))


@pytest.mark.parametrize(("height", "width", "size", "stride"), [(40, 50, 16, 12), (16, 16, 16, 12), (9, 33, 16, 16)])
def test_cuts_cover_the_image_and_stay_inside(height, width, size, stride):
    positions = cut_positions(height, width, size, stride)
    covered = np.zeros((height, width), bool)
    for y, x in positions:
        assert y + min(size, height) <= height
        assert x + min(size, width) <= width
        covered[y : y + size, x : x + size] = True
    assert covered.all()
    assert len(set(positions)) == len(positions)


def test_published_cutting_of_a_full_hd_frame():
    assert cut_positions(720, 1280, 512, 384) == [(y, x) for y in (0, 208) for x in (0, 384, 768)]


@pytest.mark.parametrize("encoding", ["png", "raw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_clean_folder_round_trip(tmp_path, save, encoding, dtype):
    images = {f"i{i}": save(tmp_path / f"photos/train/i{i}.png", (20 + i, 45), dtype, seed=i) for i in (2, 10)}
    test_image = save(tmp_path / "photos/test/t.png", (50, 70), dtype)
    dataset = prepare(config(tmp_path, cut_size=32, cut_stride=8, encoding=encoding))
    assert dataset.num_images == {"train": 2, "test": 1}
    assert dataset.psnr_input == {"train": None, "test": None}
    names = [example["name"] for example in dataset.train]
    assert names == [f"{stem}_0_{x}" for stem in ("i2", "i10") for x in (0, 8, 13)]
    for example in dataset.train:
        stem, y, x = example["name"].split("_")
        cut = images[stem][int(y) : int(y) + 32, int(x) : int(x) + 32]
        np.testing.assert_array_equal(example["target"], cut, strict=True)
    assert dataset.test is not None
    assert len(dataset.test) == 1
    assert dataset.test[-1]["name"] == "t"
    np.testing.assert_array_equal(dataset.test[0]["target"], test_image, strict=True)
    with pytest.raises(IndexError):
        dataset.test[1]


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_paired_folder_round_trip(tmp_path, save, encoding):
    source = save(tmp_path / "photos/input/a.png", (20, 40), seed=1)
    target = save(tmp_path / "photos/target/a.png", (20, 40), seed=2)
    dataset = prepare(config(tmp_path, dataset="paired_folder", cut_size=32, cut_stride=32, encoding=encoding))
    assert dataset.test is None
    first, last = dataset.train[0:2]
    assert (first["name"], last["name"]) == ("a_0_0", "a_0_8")
    np.testing.assert_array_equal(last["input"], source[:, 8:])
    np.testing.assert_array_equal(last["target"], target[:, 8:])


@pytest.mark.parametrize("name", [".hidden", "a b:c-\u00e9", "1.0.0"])
def test_any_folder_name_will_do(tmp_path, save, name):
    image = save(tmp_path / name / "a.png")
    for _ in range(2):
        dataset = prepare(config(tmp_path, source=str(tmp_path / name)))
        np.testing.assert_array_equal(dataset.train[0]["target"], image)


def test_gray_and_alpha_become_rgb(tmp_path, save):
    gray = save(tmp_path / "photos/gray.png", (20, 20, 1))
    alpha = save(tmp_path / "photos/alpha.png", (20, 20, 4))
    targets = {example["name"]: example["target"] for example in prepare(config(tmp_path)).train}
    np.testing.assert_array_equal(targets["gray_0_0"], gray[..., [0, 0, 0]])
    np.testing.assert_array_equal(targets["alpha_0_0"], alpha[..., :3])


def test_sample_photographs(tmp_path):
    dataset = prepare(DataConfig(prepared_dir=str(tmp_path), patch_size=256, degradations=(GaussianNoise(),)))
    assert dataset.num_images == {"train": 3, "test": 2}
    assert dataset.test is not None
    assert [example["name"] for example in dataset.test] == ["astronaut", "rocket"]
    assert [example["target"].shape for example in dataset.test] == [(512, 512, 3), (427, 640, 3)]
    assert {example["name"].rsplit("_", 2)[0] for example in dataset.train} == {"chelsea", "coffee", "motorcycle_left"}
    for example in (*dataset.train, *dataset.test):
        assert example["target"].dtype == np.uint8
        assert example["target"].std() > 20


def test_a_prepared_set_is_reused_without_reading_images(tmp_path, save, monkeypatch):
    save(tmp_path / "photos/a.png")
    first = prepare(config(tmp_path))

    def fail(*_):
        raise AssertionError("read an image")

    monkeypatch.setattr(core, "read_facts", fail)
    monkeypatch.setattr(core, "read_images", fail)
    again = prepare(config(tmp_path))
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.train[0]["target"], first.train[0]["target"])


def test_fingerprint_follows_files_and_settings(tmp_path, save):
    path = tmp_path / "photos/a.png"
    save(path)
    prints = [prepare(config(tmp_path)).fingerprint]
    prints += [prepare(config(tmp_path, **{key: 20})).fingerprint for key in ("cut_size", "cut_stride")]
    prints.append(prepare(config(tmp_path, encoding="raw")).fingerprint)
    os.utime(path, ns=(0, 0))
    prints.append(prepare(config(tmp_path)).fingerprint)
    save(tmp_path / "photos/b.png")
    prints.append(prepare(config(tmp_path)).fingerprint)
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{8}", fingerprint) for fingerprint in prints)
    assert prepared_sets(tmp_path) == sorted(f"photos_{fingerprint}" for fingerprint in prints)
    # What the network is trained on does not change what is stored.
    assert prepare(config(tmp_path, patch_size=8)).fingerprint == prints[-1]


def test_preparing_shows_its_progress_and_nothing_else(tmp_path, save, capfd):
    save(tmp_path / "photos/a.png")
    prepare(config(tmp_path))
    output, errors = capfd.readouterr()
    assert [line.split(" (")[0] for line in output.splitlines()] == ["checking 1/1", "cutting and storing 1/1"]
    assert errors == ""


def test_problems_are_found_before_anything_is_written(tmp_path, save):
    photos = tmp_path / "photos"
    paired = {"dataset": "paired_folder"}

    def fails(words, **values):
        with pytest.raises(UserError, match=words) as caught:
            prepare(config(tmp_path, **values))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "prepared").exists()

    fails("no folder '.*photos'")
    fails("no folder '.*photos'", **paired)
    photos.mkdir()
    fails("no images directly in folder '.*photos'")
    fails("must hold the folders input/ and target/", **paired)

    (photos / "link.png").symlink_to(tmp_path / "nothing.png")
    fails("cannot read '.*link.png' .No such file")
    (photos / "link.png").unlink()
    save(photos / "big.png", (40, 40))
    save(photos / "small.png", (15, 60))
    fails("small.png' is only 15 pixels wide or high, less than data.patch_size 16")
    save(photos / "small.png", (40, 40), np.uint16)
    fails("'.*big.png' and '.*small.png' differ in bit depth .8 and 16.")
    (photos / "small.png").write_text("no image")
    fails("small.png' is not an image")
    save(photos / "big.jpg", (40, 40))
    fails("2 images in folder '.*photos' are named 'big'")

    save(photos / "input/a.png", (40, 40))
    save(photos / "target/b.png", (40, 40))
    fails("2 images have no partner .*: input/a.png, target/b.png", **paired)
    (photos / "target/b.png").unlink()
    save(photos / "target/a.png", (40, 41))
    fails("a.png' differ in size .40x40 and 41x40 pixels.", **paired)
    save(photos / "target/a.png", (40, 40), np.uint16)
    fails("a.png' differ in bit depth", **paired)


def test_the_patch_size_is_also_checked_against_a_prepared_set(tmp_path, save):
    save(tmp_path / "photos/a.png", (20, 40))
    prepare(config(tmp_path))
    with pytest.raises(UserError, match=r"a.png' is only 20 pixels wide or high, less than data.patch_size 21"):
        prepare(config(tmp_path, patch_size=21))


def test_a_place_that_cannot_be_written_is_named(tmp_path, save):
    save(tmp_path / "photos/a.png")
    (tmp_path / "prepared").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write the prepared dataset to '.*prepared.*set data.prepared_dir"):
        prepare(config(tmp_path))


PREPARE = """
import sys
from gamax.config import DataConfig
from gamax.data.builders import core
from gamax.data.datasets import prepare
source, prepared = sys.argv[1:]
core.SHARD_BYTES = 2**20
config = DataConfig("clean_folder", source, prepared, cut_size=96, cut_stride=32)
dataset = prepare(config, training=False)
print(len(dataset.train))
"""


def start_prepare(tmp_path, before=""):
    command = [sys.executable, "-c", before + PREPARE, str(tmp_path / "photos"), str(tmp_path / "prepared")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_preparation_that_is_killed_ten_times_is_finished_by_the_next(tmp_path, save):
    images = {str(i): save(tmp_path / f"photos/{i}.png", (480, 480), seed=i) for i in range(24)}
    folder = tmp_path / "prepared/clean_folder"
    delays = np.random.default_rng(0)
    shards: set[tuple[str, int]] = set()
    most_shards = killed = 0

    def being_written():
        # Also the shards that an earlier start has not finished, by the time of their last change.
        return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*/incomplete.*/.*partial")}

    def complete_shards():
        return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*/incomplete.*/clean*")}

    def reached(before):
        # The first is killed while it starts, the second as soon as there is a folder, the others while they write, the
        # last when it has finished a shard.
        if killed == 9:
            return complete_shards() - shards
        return killed == 0 or (any(folder.glob("*")) if killed == 1 else being_written() - before)

    while killed < 10:
        before = being_written()
        process = start_prepare(tmp_path)
        while process.poll() is None and not reached(before):
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.15))
        process.kill()
        process.communicate()
        if prepared_sets(tmp_path):
            # A fast machine was done before the kill.
            shutil.rmtree(folder)
            shards = set()
            continue
        killed += 1
        assert not any(folder.glob("*/2.*"))
        # What was complete has stayed and is not written again.
        complete = complete_shards()
        assert shards <= complete
        shards = complete
        most_shards = max(most_shards, len(shards))
    assert most_shards
    output, _ = start_prepare(tmp_path).communicate()
    assert int(output.splitlines()[-1]) == 24 * 13**2
    assert not any(folder.glob("*/incomplete.*"))
    assert not any(folder.glob("*/2.*/.*"))
    assert len(prepared_sets(tmp_path)) == 1
    assert shards <= {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*/2.*/clean*")}
    prepared_dir = str(tmp_path / "prepared")
    config = DataConfig("clean_folder", str(tmp_path / "photos"), prepared_dir, cut_size=96, cut_stride=32)
    dataset = prepare(config, training=False)
    assert len({example["name"] for example in dataset.train}) == 24 * 13**2
    for example in dataset.train[::97]:
        stem, y, x = example["name"].split("_")
        cut = images[stem][int(y) : int(y) + 96, int(x) : int(x) + 96]
        np.testing.assert_array_equal(example["target"], cut)


def interrupted(tmp_path, monkeypatch):
    """Prepares in shards of one image and stops at the last."""
    monkeypatch.setattr(core, "SHARD_BYTES", 1)
    write_shard = core.ImageSetBuilder._write_shard

    def write(self, path, examples):
        if "00002-of" in path.name:
            raise KeyboardInterrupt
        write_shard(self, path, examples)

    with monkeypatch.context() as patch:
        patch.setattr(core.ImageSetBuilder, "_write_shard", write)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(tmp_path))
    (folder,) = (tmp_path / "prepared").glob("*/*/incomplete.*")
    return folder


def test_what_was_checked_and_written_before_an_interruption_is_kept(tmp_path, save, monkeypatch):
    for name in "abc":
        save(tmp_path / f"photos/{name}.png")
    folder = interrupted(tmp_path, monkeypatch)
    assert {path.name[-14:] for path in folder.glob("*record*")} == {"00000-of-00003", "00001-of-00003"}
    # Another plan for new sets does not touch this one, and nothing is checked again.
    monkeypatch.setattr(core, "SHARD_BYTES", 2**27)
    monkeypatch.setattr(core, "read_facts", None)
    assert [example["name"] for example in prepare(config(tmp_path)).train] == ["a_0_0", "b_0_0", "c_0_0"]


@pytest.mark.parametrize("damage", ["shard cut", "shard empty", "facts cut", "facts of another version", "facts gone"])
def test_damaged_leftovers_are_made_anew(tmp_path, save, monkeypatch, damage):
    images = {name: save(tmp_path / f"photos/{name}.png", seed=ord(name)) for name in "abc"}
    folder = interrupted(tmp_path, monkeypatch)
    shard, facts = min(folder.glob("*record*")), folder / "facts.json"
    if damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == "shard empty":
        shard.write_bytes(b"")
    elif damage == "facts cut":
        facts.write_text(facts.read_text()[:50])
    elif damage == "facts of another version":
        facts.write_text("{}")
    else:
        facts.unlink()
        monkeypatch.setattr(core, "SHARD_BYTES", 2**27)
    for example in prepare(config(tmp_path)).train:
        np.testing.assert_array_equal(example["target"], images[example["name"][0]])


def test_files_that_change_while_they_are_prepared_are_refused(tmp_path, save, monkeypatch):
    save(tmp_path / "photos/a.png", (40, 40))
    original = (tmp_path / "photos/a.png").read_bytes()
    read_facts = core.read_facts

    def read_and_change(*arguments):
        facts = read_facts(*arguments)
        save(tmp_path / "photos/a.png", (50, 50))
        return facts

    with monkeypatch.context() as patch:
        patch.setattr(core, "read_facts", read_and_change)
        with pytest.raises(UserError, match=r"files in '.*photos' have changed while they were prepared"):
            prepare(config(tmp_path))
    assert not prepared_sets(tmp_path)
    assert not any((tmp_path / "prepared").glob("*/*/incomplete.*"))
    (tmp_path / "photos/a.png").write_bytes(original)
    assert prepare(config(tmp_path)).train[0]["target"].shape == (40, 40, 3)


def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path, save):
    save(tmp_path / "photos/a.png", (480, 480))
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
    first = start_prepare(tmp_path, limit)
    # Its partial files would be there while it works.
    first.communicate()
    process = subprocess.run(
        first.args,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert re.search(
        r"UserError: cannot write the prepared dataset to '.*' \(.*File too large.*data.prepared_dir", process.stderr
    )
    assert not prepared_sets(tmp_path)
    assert not any((tmp_path / "prepared").rglob("*partial"))


def test_a_shard_that_lost_records_is_no_shard(tmp_path, save, monkeypatch):
    save(tmp_path / "photos/a.png")
    count_records = core._num_records
    monkeypatch.setattr(core, "_num_records", lambda path: (count_records(path) or 0) - 1 if path.exists() else None)
    with pytest.raises(UserError, match=r"cannot write .* \(0 of 1 records have arrived in 'clean_folder-train"):
        prepare(config(tmp_path))
    assert not any((tmp_path / "prepared").rglob("*record*"))


def test_a_preparation_waits_for_another(tmp_path, save):
    save(tmp_path / "photos/a.png")
    folder = tmp_path / "prepared/clean_folder" / core.image_set_config(CleanFolder, tmp_path / "photos", 96, 32).name
    with lock(folder, wait=False):
        process = start_prepare(tmp_path)
        lines = [process.stdout.readline() for _ in range(2)]
        assert "checking 1/1" in lines[0]
        assert "waiting for another process that is at work" in lines[1]
        time.sleep(0.3)
        assert not prepared_sets(tmp_path)
    assert process.communicate()[0].splitlines()[-1] == "1"
    assert len(prepared_sets(tmp_path)) == 1


def test_equal_pairs_do_not_count_in_the_mean(tmp_path, save):
    for name in "ab":
        save(tmp_path / f"photos/input/{name}.png")
        save(tmp_path / f"photos/target/{name}.png", seed=ord(name) - ord("a"))
    dataset = prepare(config(tmp_path, dataset="paired_folder"))
    expected = cv2.PSNR(*(cv2.imread(str(tmp_path / f"photos/{part}/b.png")) for part in ("input", "target")))
    assert dataset.psnr_input["train"] == pytest.approx(expected)
    (tmp_path / "photos/input/b.png").unlink()
    (tmp_path / "photos/target/b.png").unlink()
    assert prepare(config(tmp_path, dataset="paired_folder")).psnr_input == {"train": None}


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_prepared_set_with_a_damaged_description_is_named(tmp_path, save, name, damage):
    save(tmp_path / "photos/a.png")
    path = prepare(config(tmp_path)).folder / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"'.*2\.0\.0' (cannot be opened|was not prepared by).*delete that folder"):
        prepare(config(tmp_path))


def test_a_folder_with_test_images_alone_is_for_testing(tmp_path, save):
    save(tmp_path / "photos/test/a.png")
    with pytest.raises(UserError, match=r"clean_folder has no training images here, only test"):
        prepare(config(tmp_path))
    assert prepare(config(tmp_path), training=False).num_images == {"test": 1}


def test_two_processes_may_prepare_the_same_set(tmp_path, save):
    for i in range(4):
        save(tmp_path / f"photos/{i}.png", (200, 200), seed=i)
    processes = [start_prepare(tmp_path) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [int(output.splitlines()[-1]) for output in outputs] == [4 * 5**2] * 2
    assert len(prepared_sets(tmp_path)) == 1


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path, save):
    save(tmp_path / "photos/a.png", (200, 200))
    dataset = prepare(config(tmp_path, cut_size=100, cut_stride=100))
    expected = [example["target"] for example in dataset.train]
    (shard,) = dataset.folder.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    damaged = []
    examples = prepare(config(tmp_path, cut_size=100, cut_stride=100)).train
    for index, target in enumerate(expected):
        try:
            np.testing.assert_array_equal(examples[index]["target"], target)
        except UserError as error:
            damaged.append((index, str(error)))
    ((index, message),) = damaged
    assert re.match(rf"record {index} of '.*{re.escape(shard.name)}' cannot be read \(.*hash mismatch", message)
    assert "delete its folder and prepare the set again" in message


def test_a_record_is_named_by_its_place_in_its_shard(tmp_path, save, monkeypatch):
    monkeypatch.setattr(core, "SHARD_BYTES", 1)
    for name in "abc":
        save(tmp_path / f"photos/{name}.png", (40, 40), seed=ord(name))
    dataset = prepare(config(tmp_path, cut_size=20, cut_stride=20))
    shards = sorted(dataset.folder.glob("*train*"))
    assert len(shards) == 3
    shards[1].write_bytes(shards[1].read_bytes()[:-3] + b"abc")
    content = bytearray(shards[1].read_bytes())
    for position in range(200, len(content), 50):
        content[position] ^= 0xFF
    shards[1].write_bytes(content)
    with pytest.raises(UserError, match=f"record 3 of '.*{shards[1].name}'"):
        dataset.train[7]
    assert dataset.train[8]["name"] == "c_0_0"


def test_datasets_that_do_not_fit_training_are_named(tmp_path, save):
    save(tmp_path / "photos/input/a.png")
    save(tmp_path / "photos/target/a.png")
    save(tmp_path / "photos/clean/a.png")
    clean = {"source": str(tmp_path / "photos/clean")}
    noise = (GaussianNoise(),)
    for words, values in [
        ("unknown dataset 'clean_foldr' .did you mean 'clean_folder'", {"dataset": "clean_foldr"}),
        ("clean_folder has clean images only: set data.degradations", {**clean, "degradations": ()}),
        (
            "paired_folder has inputs of its own: remove data.degradations",
            {"dataset": "paired_folder", "degradations": noise},
        ),
        ("clean_folder needs data.source: put photographs into", {"source": None}),
        ("sample_photographs takes no data.source", {"dataset": "sample_photographs"}),
        ("gopro is prepared|no train or test in", {"dataset": "gopro", "degradations": ()}),
    ]:
        with pytest.raises(UserError, match=words):
            prepare(config(tmp_path, **values))
    assert not (tmp_path / "prepared").exists()
    prepare(config(tmp_path, **clean, degradations=()), training=False)


def test_source_examples_are_whole_and_need_no_preparation(tmp_path, save):
    image = save(tmp_path / "photos/train/a.png", (700, 600))
    examples = source_examples(config(tmp_path), "train")
    assert [example["name"] for example in examples] == ["a"]
    np.testing.assert_array_equal(examples[0]["target"], image)
    assert not (tmp_path / "prepared").exists()
    with pytest.raises(UserError, match=r"no split 'trian' .did you mean 'train'"):
        source_examples(config(tmp_path), "trian")


@pytest.mark.parametrize("key", ["facts", "nothing"])
def test_a_builder_without_facts_writes_nothing(tmp_path, save, key):
    save(tmp_path / "photos/a.png")
    image_set = core.image_set_config(CleanFolder, tmp_path / "photos")
    if key == "facts":
        image_set = dataclasses.replace(image_set, facts=core.read_facts(image_set, 3))
        CleanFolder(config=image_set, data_dir=tmp_path / "prepared").download_and_prepare()
        assert len(prepared_sets(tmp_path)) == 1
    else:
        with pytest.raises(UserError, match=r"has not been checked: use gamax.data.datasets.prepare"):
            CleanFolder(config=image_set, data_dir=tmp_path / "prepared").download_and_prepare()
        assert not prepared_sets(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 2**16, 2**16 + 100])
def test_a_stored_file_that_is_cut_short_is_named(tmp_path, save, size):
    save(tmp_path / "photos/a.png", (300, 300))
    shard = next(prepare(config(tmp_path)).folder.glob("*train*"))
    assert shard.stat().st_size > 2**17
    with shard.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(UserError, match=rf"{shard.name}' cannot be read .*prepare the set again"):
        prepare(config(tmp_path)).train[0]
