"""Bad input gives one clear sentence and exit code 2, and leaves nothing behind."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from gamax.files import lock

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.py")


def image(path: Path, height: int = 40, width: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    return path


def truncated(path: Path) -> Path:
    content = image(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


DAMAGES = {
    "truncated": truncated,
    "text": lambda path: path.write_text("This is not a picture."),
    "empty": Path.touch,
    "one pixel": lambda path: image(path, 1, 1),
}


def files(folder: Path) -> set[Path]:
    """All below `folder` but prepared datasets, which a later, corrected command uses again."""
    return {path for path in folder.rglob("*") if "prepared" not in path.relative_to(folder).parts}


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Runs a script or verb; asserts exit code 2, one sentence on stderr, nothing written; returns the sentence."""

    def run(program: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        before = files(tmp_path)
        path = str(ROOT / ("gamax/cli.py" if program == "gamax" else program))
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(path, run_name="__main__")
        assert stopped.value.code == 2
        assert files(tmp_path) == before
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run


def train_arguments(tmp_path: Path, *more: object) -> list[object]:
    prepared = ("--data.prepared-dir", tmp_path / "prepared", "--data.patch-size", 16, "--training.batch-size", 8)
    return [QUICKSTART, "--logging.run-dir", tmp_path / "run", *prepared, *more]


def folder_arguments(tmp_path: Path, dataset: str, folder: Path) -> list[object]:
    """The quick start on a folder, by way of a configuration file as a user would write it."""
    degradations = "()" if dataset == "paired_folder" else "(GaussianNoise(),)"
    protocol = "paired-rgb" if dataset == "paired_folder" else "gauss-color-25"
    config = tmp_path / "mine.py"
    config.write_text(
        "from gamax.config import *\nfrom gamax.data.degradations import *\n"
        f"data = DataConfig(dataset={dataset!r}, source={str(folder)!r}, patch_size=16, degradations={degradations},\n"
        f"    prepared_dir={str(tmp_path / 'prepared')!r})\n"
        "experiment = Experiment(data=data, training=TrainingConfig(steps=1, batch_size=8))\n"
    )
    run_dir = ("--logging.run-dir", tmp_path / "run")
    return [config, "--evaluation.data", folder, "--evaluation.protocol", protocol, *run_dir]


def test_unknown_field_on_the_command_line_names_the_nearest(fails, tmp_path):
    error = fails("train.py", *train_arguments(tmp_path, "--optimizer.lerning-rate", "1"))
    assert "optimizer.lerning_rate" in error
    assert "did you mean 'optimizer.learning_rate'" in error


def test_unknown_field_in_a_configuration_file_names_the_nearest(fails, tmp_path):
    config = tmp_path / "typo.py"
    config.write_text("from gamax.config import *\nexperiment = Experiment(data=DataConfig(patchsize=3))\n")
    error = fails("train.py", config)
    assert "typo.py" in error
    assert "'patchsize' (did you mean 'patch_size'?)" in error


def test_unknown_field_in_a_resolved_configuration_names_the_nearest(fails, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"training": {"step": 3}}))
    assert "'training.step' (did you mean 'training.steps'?)" in fails("train.py", tmp_path / "config.json")


def test_unknown_network_field_names_the_nearest(fails, tmp_path):
    error = fails("train.py", *train_arguments(tmp_path, "--model.overrides", "widht=8"))
    assert "did you mean 'width'" in error


def test_images_of_a_dual_pixel_camera_that_no_network_takes(fails, tmp_path):
    for part in ("inputL", "inputR", "target"):
        image(tmp_path / "dpdd/train" / part / "a.png")
    config, *more = folder_arguments(tmp_path, "paired_folder", tmp_path / "unused")
    error = fails("train.py", config, "--data.dataset", "dpdd_dual", "--data.source", tmp_path / "dpdd", *more[4:])
    assert "takes 3 channels, but data.dataset dpdd_dual gives it 6: choose a network for two views" in error
    assert not (tmp_path / "prepared").exists()


def test_a_prior_and_a_network_that_do_not_belong_together(fails, tmp_path, tiny_workspace):
    for folder in ("input", "target"):
        image(tmp_path / "pairs" / folder / "a.png")
    scored = (tiny_workspace / "runs/quickstart", "--protocol", "paired-rgb", "--data", tmp_path / "pairs")
    assert "--prior is set, but this GAMAIR takes no diffusion prior" in fails("eval.py", *scored, "--prior", "x")
    evaluated = ("--evaluation.data", tmp_path / "pairs", "--evaluation.protocol", "paired-rgb")
    arguments = train_arguments(tmp_path, *evaluated, "--evaluation.prior", tmp_path / "prior")
    assert "evaluation.prior is set, but this GAMAIR takes no diffusion prior" in fails("train.py", *arguments)
    config, *more = folder_arguments(tmp_path, "paired_folder", tmp_path / "pairs")
    network = ("--model.name", "swintormer_prior")
    assert "set evaluation.prior to a folder" in fails("train.py", config, *more, *network)
    error = fails("train.py", config, *more[2:], *network, "--data.prior", tmp_path / "prior")
    assert f"no prior in '{tmp_path / 'prior'}' (it has no prior.json); make one with `gamax data prior`" in error


def test_negative_learning_rate(fails, tmp_path):
    error = fails("train.py", *train_arguments(tmp_path, "--optimizer.learning-rate", "-0.001"))
    assert "'optimizer.learning_rate' must be above 0, not -0.001" in error


def test_batch_not_divisible_by_devices(fails, tmp_path):
    error = fails("train.py", *train_arguments(tmp_path, "--training.batch-size", 6))
    assert "8 devices cannot share a batch of 6 crops of 16 pixels evenly; use 6 device(s), or another batch" in error


@pytest.mark.parametrize("dataset", ["clean_folder", "paired_folder"])
def test_missing_folder(fails, tmp_path, dataset):
    error = fails("train.py", *folder_arguments(tmp_path, dataset, tmp_path / "absent"))
    assert str(tmp_path / "absent") in error


def test_unpaired_file(fails, tmp_path):
    for name in ("input/a.png", "target/a.png", "input/lonely.png"):
        image(tmp_path / "pairs" / name)
    assert "lonely" in fails("train.py", *folder_arguments(tmp_path, "paired_folder", tmp_path / "pairs"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_training_image(fails, tmp_path, damage):
    folder = tmp_path / "clean"
    image(folder / "good.png")
    DAMAGES[damage](folder / "bad.png")
    assert "bad.png" in fails("train.py", *folder_arguments(tmp_path, "clean_folder", folder))


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_damaged_image_to_restore(fails, tmp_path, tiny_workspace, damage):
    bad = tmp_path / "bad.png"
    if damage != "missing":
        DAMAGES[damage](bad)
    weights = tiny_workspace / "runs/quickstart"
    assert "bad.png" in fails("gamax", "restore", bad, "-o", tmp_path / "out.png", "--weights", weights)


@pytest.mark.parametrize("program", ["gamax", "eval.py"])
@pytest.mark.parametrize("damage", ["another network", "truncated", "text", "missing"])
def test_wrong_weights(fails, tmp_path, tiny_workspace, program, damage):
    weights = tmp_path / "weights.safetensors"
    content = (tiny_workspace / "runs/quickstart/weights.safetensors").read_bytes()
    match damage:
        case "another network":
            save_file({"encoder/kernel": np.zeros((3, 3), np.float32)}, weights)
        case "truncated":
            weights.write_bytes(content[: len(content) // 2])
        case "text":
            weights.write_text("not weights")
    photo = image(tmp_path / "photographs/photo.png")
    arguments = {
        "gamax": ("restore", photo, "-o", tmp_path / "out.png", "--weights", weights),
        "eval.py": (weights, "--protocol", "gauss-color-25", "--data", photo.parent),
    }[program]
    assert "weights.safetensors" in fails(program, *arguments)


def test_restore_refuses_to_overwrite(fails, tmp_path, tiny_workspace):
    photo = image(tmp_path / "photo.png")
    content = photo.read_bytes()
    error = fails("gamax", "restore", photo, "-o", photo, "--weights", tiny_workspace / "runs/quickstart")
    assert "--overwrite" in error
    assert photo.read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "small"])
def test_an_image_that_cannot_be_evaluated_is_found_before_training(fails, tmp_path, damage):
    for name in ("train/a.png", "test/a.png"):
        image(tmp_path / "clean" / name)
    if damage == "truncated":
        truncated(tmp_path / "clean/test/z.png")
    else:
        image(tmp_path / "clean/test/z.png", 10, 40)
    config, _, _, *rest = folder_arguments(tmp_path, "clean_folder", tmp_path / "clean/train")
    error = fails("train.py", config, "--evaluation.data", tmp_path / "clean/test", *rest)
    assert "z.png" in error or "'z'" in error


def test_a_network_that_cannot_take_the_images_is_found_before_training(fails, tmp_path):
    error = fails("train.py", *train_arguments(tmp_path, "--model.overrides", "mixer=non_local"))
    assert "NonLocal on 432x640 pixels" in error


def test_an_image_that_eval_cannot_read_leaves_nothing(fails, tmp_path, tiny_workspace):
    image(tmp_path / "clean/a.png")
    truncated(tmp_path / "clean/z.png")
    arguments = ("--protocol", "gauss-color-25", "--data", tmp_path / "clean", "--output", tmp_path / "out/result.json")
    assert "z.png" in fails("eval.py", tiny_workspace / "runs/quickstart", *arguments)


@pytest.mark.parametrize("output", ["/proc/gamax/result.json", "picture.png"])
def test_eval_checks_its_output_first(fails, tmp_path, tiny_workspace, output):
    image(tmp_path / "clean/a.png")
    arguments = ("--protocol", "gauss-color-25", "--data", tmp_path / "clean", "--output", output)
    assert output.rpartition("/")[0] in fails("eval.py", tiny_workspace / "runs/quickstart", *arguments)


@pytest.mark.parametrize(
    ("protocol", "options", "sentence"),
    [
        ("gopro-tlc", ("--local-window", 256), "gopro-tlc is for a local window of 384, not 256"),
        ("gauss-gray-25", ("--tile", 13), "tile must be a multiple of"),
        ("dpdd-dual16", (), "dpdd-dual16 is for networks that take 6 channels, and this GAMAIR takes 3"),
        ("sidd-srgb", (), "it takes input/ and target/ with images of equal names, or else"),
        ("rain-y-matlab", (), "`gamax data info NAME` describes for test100, rain100h, rain100l, test2800, test1200"),
        ("dnd-submit", (), "no images for protocol dnd-submit"),
        ("gauss-color-25", ("--batch-size", 0), "--batch-size must be 1 or more, not 0"),
        ("gauss-color-25", ("--extra-metrics", "sharpness"), "unknown metric 'sharpness'"),
    ],
)
def test_eval_checks_what_does_not_fit_together(fails, tmp_path, tiny_workspace, protocol, options, sentence):
    image(tmp_path / "clean/a.png")
    arguments = ("--protocol", protocol, "--data", tmp_path / "clean", *options)
    assert sentence in fails("eval.py", tiny_workspace / "runs/quickstart", *arguments)


def test_a_protocol_that_training_cannot_score(fails, tmp_path):
    pairs = ("--evaluation.data", tmp_path / "pairs")
    for folder in ("input", "target"):
        image(tmp_path / "pairs" / folder / "a.png")
    error = fails("train.py", *train_arguments(tmp_path, "--evaluation.protocol", "gopro-tlc", *pairs))
    assert "gopro-tlc is for the network with local_window=384, not None" in error
    error = fails("train.py", *train_arguments(tmp_path, "--evaluation.protocol", "dnd-submit"))
    assert "protocol dnd-submit scores nothing" in error


def test_a_run_that_diverges_has_no_result(fails, tmp_path, capsys):
    huge = ("--optimizer.learning-rate", "1e30", "--training.steps", "4")
    network = ("--model.overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1")
    with pytest.raises(AssertionError):
        # It leaves its run folder, unlike the other failures here.
        fails("train.py", *train_arguments(tmp_path, *huge, *network))
    assert "the gradient was not finite" in capsys.readouterr().err
    assert not (tmp_path / "run/result.json").exists()
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_two_processes_in_one_run_folder(fails, tmp_path, tiny_workspace):
    run = tiny_workspace / "runs/quickstart"
    with lock(run, wait=False):
        assert "another process is at work" in fails("train.py", run / "config.json", "--logging.run-dir", run)


def test_restore_checks_the_format_first(fails, tmp_path, tiny_workspace):
    photo, run = image(tmp_path / "photo.png"), tiny_workspace / "runs/quickstart"
    assert "out.pgm" in fails("gamax", "restore", photo, "-o", tmp_path / "new/out.pgm", "--weights", run)


def test_restore_and_bench_without_anything_to_do(fails, tiny_workspace):
    assert "no image" in fails("gamax", "restore", "--weights", tiny_workspace / "runs/quickstart")
    assert "at least one model" in fails("gamax", "bench", "infer", "--models")


@pytest.mark.parametrize("override", ["width=wide", "width=4.5", "dtype=bfloat16", "mixer=3"])
def test_network_fields_of_the_wrong_type(fails, tmp_path, override):
    fails("train.py", *train_arguments(tmp_path, "--model.overrides", override))


def test_unknown_protocol_names_the_nearest(fails, tmp_path, tiny_workspace):
    arguments = (tiny_workspace / "runs/quickstart", "--protocol", "gauss-colour-25", "--data", tmp_path)
    assert "did you mean 'gauss-color-25'" in fails("eval.py", *arguments)


def test_no_permission_to_write_the_run_folder(fails, tmp_path):
    # Not even root may write below /proc.
    assert "/proc/gamax" in fails("train.py", *train_arguments(tmp_path, "--logging.run-dir", "/proc/gamax"))


def test_no_permission_to_write_the_restored_image(fails, tmp_path, tiny_workspace):
    photo = image(tmp_path / "photo.png")
    error = fails("gamax", "restore", photo, "-o", "/proc/gamax.png", "--weights", tiny_workspace / "runs/quickstart")
    assert "/proc" in error


def test_another_experiment_in_the_run_folder(fails, tmp_path, tiny_workspace):
    run = tiny_workspace / "runs/quickstart"
    error = fails("train.py", run / "config.json", "--optimizer.learning-rate", "0.5", "--logging.run-dir", run)
    assert "optimizer.learning_rate" in error


def test_a_real_process_exits_with_2_and_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), QUICKSTART, "--optimizer.learning-rate", "-1"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "error: configuration field 'optimizer.learning_rate' must be above 0, not -1.0"
    ]
    assert not list(tmp_path.iterdir())
