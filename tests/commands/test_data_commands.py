"""`gamax data list`, `info`, `prepare`, `check` and `show`."""

import re

import cv2
import numpy as np
import pytest

from gamax.data.builders import BUILDERS


def save(path, shape=(60, 90), seed=0, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (*shape, 3), dtype)
    assert cv2.imwrite(str(path), image)
    return image


@pytest.fixture
def photos(tmp_path):
    """Clean photographs in `photos`, and the flags that name them."""
    for i in range(2):
        save(tmp_path / f"photos/train/{i}.png", seed=i)
    save(tmp_path / "photos/test/t.png", seed=9)
    return ("--source", tmp_path / "photos", "--prepared-dir", tmp_path / "prepared")


@pytest.fixture
def pairs(tmp_path):
    for split, names in (("train", "abc"), ("test", "de")):
        for name in names:
            target = save(tmp_path / f"pairs/{split}/target/{name}.png", seed=ord(name))
            noise = np.random.default_rng(0).normal(0, 10, target.shape)
            path = tmp_path / f"pairs/{split}/input/{name}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), np.clip(target + noise, 0, 255).astype(np.uint8))
    return tmp_path / "pairs"


def configuration(tmp_path, **values):
    flags = ", ".join(f"{name}={value!r}" for name, value in values.items())
    path = tmp_path / "mine.py"
    path.write_text(
        "from gamax.config import *\nfrom gamax.data.degradations import *\n"
        f"data = DataConfig(dataset='clean_folder', source={str(tmp_path / 'photos')!r},\n"
        f"    prepared_dir={str(tmp_path / 'prepared')!r}, patch_size=16, degradations=(JPEG(),), {flags})\n"
        "experiment = Experiment(data=data, training=TrainingConfig(batch_size=4, seed=5))\n"
    )
    return path


@pytest.fixture
def error(gamax, capsys):
    """Runs a command that must fail and returns its one sentence."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            gamax(*arguments)
        assert stopped.value.code == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        return sentence

    return run


def test_list_names_every_dataset_and_what_is_prepared(gamax, capsys, tmp_path, photos):
    gamax("data", "prepare", "clean_folder", *photos)
    capsys.readouterr()
    gamax("data", "list", "--prepared-dir", tmp_path / "prepared")
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert set(BUILDERS) <= set(rows)
    assert re.search(r"│ +1 │$", rows["clean_folder"])
    assert "2,103" in rows["gopro"]


def test_the_data_folder_of_the_environment_is_looked_into(gamax, capsys, tmp_path, photos, monkeypatch):
    gamax("data", "prepare", "clean_folder", *photos)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    gamax("data", "info", "clean_folder")
    assert f"prepared in {tmp_path / 'prepared'}" in capsys.readouterr().out


def test_info(gamax, capsys, tmp_path):
    gamax("data", "info", "gopro", "--prepared-dir", tmp_path)
    printed = capsys.readouterr().out
    for text in ("3,214 pairs", "train 2,103, test 1,111", "nah2017deep", "seungjunnah.github.io", "SEQUENCE"):
        assert text in printed
    assert "nothing of it is prepared" in printed


def test_prepare_by_name(gamax, capsys, tmp_path, photos):
    gamax("data", "prepare", "clean_folder", *photos, "--cut-size", 40, "--cut-stride", 30, "--encoding", "raw")
    printed = capsys.readouterr().out
    assert re.search(r"train +│ +2 │ +12 │", printed)
    assert re.search(r"test +│ +1 │ +1 │", printed)
    gamax("data", "info", "clean_folder", "--prepared-dir", tmp_path / "prepared")
    assert re.search(r"train +│ +2 │ +12 │", capsys.readouterr().out)


def test_prepare_pairs_prints_the_psnr(gamax, capsys, tmp_path, pairs):
    gamax("data", "prepare", "paired_folder", "--source", pairs, "--prepared-dir", tmp_path / "prepared")
    assert re.search(r"train +│ +3 │ +3 │ +2[789]\.\d\d dB │ +0\.\d │", capsys.readouterr().out)


def test_prepare_what_a_configuration_trains_on(gamax, tmp_path, photos):
    from gamax.config import load
    from gamax.data.datasets import prepare

    path = configuration(tmp_path, cut_size=32, cut_stride=32)
    gamax("data", "prepare", path)
    (folder,) = (tmp_path / "prepared").glob("*/*/*/dataset_info.json")
    assert prepare(load(path).data).folder == folder.parent
    gamax("data", "prepare", path, "--cut-size", 48)
    assert len(list((tmp_path / "prepared").glob("*/*/*/dataset_info.json"))) == 2


def test_names_that_do_not_exist(error, tmp_path):
    for verb in ("info", "prepare", "show"):
        assert "did you mean 'clean_folder'" in error("data", verb, "clean_foldr")
    assert "no configuration file" in error("data", "prepare", tmp_path / "none.py")
    assert "'data.cut_stride' must be" in error("data", "prepare", "clean_folder", "--cut-size", 10, "--cut-stride", 20)
    assert "needs data.source" in error("data", "prepare", "gopro")


def test_check_prints_what_it_finds(gamax, capsys, pairs):
    gamax("data", "check", pairs)
    printed = capsys.readouterr().out
    assert re.search(r"train │ +3 pairs │ +│ +8 │ +90x60 \(3\) │ +2[789]\.\d\d dB", printed)
    assert re.search(r"test: from 2[789]\.\d\d dB \('[de]'\) to ", printed)
    assert printed.endswith("no problems\n")


def test_check_counts_the_problems(gamax, capsys, pairs):
    save(pairs / "train/input/lonely.png")
    (pairs / "test/target/d.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        gamax("data", "check", pairs)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert len(re.findall("^problem: ", printed.out, re.MULTILINE)) == 2
    assert printed.err == f"error: '{pairs}' has 2 problem(s), listed above\n"


def test_check_compares_the_bit_depths_of_the_parts(gamax, capsys, tmp_path):
    for part, dtype in (("train", np.uint8), ("test", np.uint16)):
        save(tmp_path / part / "a.png", dtype=dtype, seed=len(part))
    with pytest.raises(SystemExit):
        gamax("data", "check", tmp_path)
    assert "mixes bit depths (1 of 8 bits and 1 of 16 bits)" in capsys.readouterr().out


def test_check_reads_an_official_layout(gamax, capsys, tmp_path):
    for split in ("train", "test"):
        for side in ("blur", "sharp"):
            save(tmp_path / split / "GOPR1" / side / "1.png", seed=len(split + side))
    with pytest.raises(SystemExit):
        gamax("data", "check", tmp_path, "--dataset", "gopro")
    printed = capsys.readouterr().out
    assert re.search(r"train │ +1 pairs │ +2,103 │", printed)
    assert "show different pictures" in printed


def test_show_draws_noise_for_a_bare_name(gamax, capsys, tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gamax("data", "show", "clean_folder", *photos, "--patch-size", 48, "--count", 2)
    assert "GaussianNoise()" in capsys.readouterr().out
    sheet = cv2.imread(str(tmp_path / "clean_folder.png"))
    assert sheet.shape[1] == 3 * (4 * 48 + 8) + 8


def test_show_takes_degradation_and_seed_from_a_configuration(gamax, capsys, tmp_path, photos):
    from gamax.config import load
    from gamax.data.contact_sheet import contact_sheet

    path, output = configuration(tmp_path), tmp_path / "new/sheet.png"
    gamax("data", "show", path, "-o", output, "--count", 2)
    assert "step 0 of training with seed 5" in capsys.readouterr().out
    expected = contact_sheet(load(path).data, 2, seed=5, batch_size=4)
    np.testing.assert_array_equal(cv2.imread(str(output))[..., ::-1], expected)
    gamax("data", "show", path, "-o", output, "--count", 2, "--seed", 6)
    assert (cv2.imread(str(output))[..., ::-1] != expected).any()


def test_show_overwrites_pictures_only(error, tmp_path, photos):
    output = tmp_path / "notes.png"
    output.write_text("not a picture")
    assert "is no PNG" in error("data", "show", "clean_folder", *photos, "-o", output)
    assert output.read_text() == "not a picture"
    assert "must end in .png" in error("data", "show", "clean_folder", *photos, "-o", tmp_path / "sheet.jpg")
    assert not (tmp_path / "prepared").exists()
    sizes = ("--patch-size", 16, "--count", 33, "-o", tmp_path / "sheet.png")
    assert "from 1 to the 32 crops" in error("data", "show", "clean_folder", *photos, *sizes)
    assert not (tmp_path / "sheet.png").exists()


def test_show_real_pairs(gamax, shared_folder, tmp_path):
    source = ("--source", shared_folder / "data/gopro_sample", "--prepared-dir", tmp_path)
    gamax("data", "show", "gopro", *source, "--count", 1, "-o", tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 3 * (256 + 8) + 8
