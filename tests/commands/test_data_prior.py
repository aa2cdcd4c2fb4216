"""`gamax data prior`, and what follows it: training and evaluation with the prior; several processes, killed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from gamax.cli_prior import DataPrior
from gamax.data.prior_sampler import PriorSampler
from gamax.interop.weights import save_weights
from gamax.models import create_model

ROOT = Path(__file__).parents[2]
SAMPLING = ["--steps", "2", "--window", "16", "--stride", "16", "--windows-at-once", "1"]


@pytest.fixture(scope="session")
def diffusion_weights(tmp_path_factory, random_params) -> Path:
    path = tmp_path_factory.mktemp("diffusion") / "weights.safetensors"
    save_weights(path, random_params(create_model("ldm_small"), (1, 16, 16, 3)), "ldm_small", {})
    return path


def make_pairs(folder: Path, train: int) -> Path:
    for split, count in {"train": train, "test": 1}.items():
        for side in ("input", "target"):
            (folder / split / side).mkdir(parents=True)
            for index in range(count):
                image = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
                cv2.imwrite(str(folder / split / side / f"{index}.png"), cv2.blur(image, (3, 3)))
    return folder


def test_the_defaults_are_those_of_the_sampler():
    fields = {field.name: field.default for field in dataclasses.fields(PriorSampler)}
    own = {field.name: field.default for field in dataclasses.fields(DataPrior)}
    sampling = fields.keys() - {"model", "params"}
    assert {name: own[name] for name in sampling} == {name: fields[name] for name in sampling}


def test_the_table_and_the_folder_of_a_configuration(gamax, capsys, tmp_path, diffusion_weights, monkeypatch):
    monkeypatch.setattr(PriorSampler, "__call__", lambda self, image, progress: np.uint16(257) * image)
    path = tmp_path / "mine.py"
    path.write_text(
        "from gamax.config import DataConfig, Experiment\n"
        f"experiment = Experiment(data=DataConfig('paired_folder', prior={str(tmp_path / 'mine')!r}))\n"
    )
    pairs = make_pairs(tmp_path / "pairs", train=2)
    command = ("data", "prior", path, "--weights", diffusion_weights, "--source", pairs)
    gamax(*command, "--split", "test", "--limit", "2.5")
    gamax(*command, "--limit", "2.5")
    printed = capsys.readouterr().out
    assert re.search(r"train +│ +2 │ +2 │ +0 │ +0\.0 │ +\d\.\d{3} │ +0\.\d% │", printed)
    assert re.search(r"test +│ +1 │ +0 │ +1 │", printed)
    assert f"--data.prior {tmp_path / 'mine'}" in printed
    assert json.loads((tmp_path / "mine/prior.json").read_text())["limit"] == 2.5


def test_weights_of_another_network_are_refused(gamax, capsys, tmp_path, random_params):
    pairs, weights = make_pairs(tmp_path / "pairs", train=1), tmp_path / "restorer.safetensors"
    options = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
    params = random_params(create_model("gama_ir_tiny", **options), (1, 16, 16, 3))
    save_weights(weights, params, "gama_ir_tiny", options)
    with pytest.raises(SystemExit) as stopped:
        gamax("data", "prior", "paired_folder", "--source", pairs, "--weights", weights)
    assert stopped.value.code == 2
    assert "a prior is sampled from a latent diffusion model" in capsys.readouterr().err
    assert not (tmp_path / "pairs_prior").exists()


@pytest.mark.slow
def test_prior_then_training_then_evaluation(gamax, train, tmp_path, diffusion_weights):
    pairs = make_pairs(tmp_path / "pairs", train=2)
    gamax("data", "prior", "paired_folder", "--source", pairs, "--weights", diffusion_weights, *SAMPLING)
    run = tmp_path / "run"
    train(
        [
            *(str(ROOT / "configs/swintormer_dpdd.py"), "--model.name", "swintormer_prior"),
            *("--model.overrides", "width=4", "blocks=0,0,0,2", "heads=1,1,1,1", "refinement_blocks=0"),
            *("window_size=2", "--data.patch-size", "32", "--training.steps", "2", "--training.batch-size", "8"),
            *("--data.dataset", "paired_folder", "--data.source", str(pairs)),
            *("--data.prior", str(tmp_path / "pairs_prior"), "--data.prepared-dir", str(tmp_path / "prepared")),
            *("--evaluation.protocol", "paired-rgb", "--logging.run-dir", str(run), "--logging.tensorboard", "False"),
        ]
    )
    result = json.loads((run / "result.json").read_text())
    assert [row["name"] for row in result["per_image"]] == ["0"]
    assert 5 < result["psnr"] < 60


def start(pairs: Path, weights: Path, output: Path, processes: int) -> list[subprocess.Popen[str]]:
    """Starts the command as several processes, each with one device: the devices decide about the last bit."""
    command = [sys.executable, "-m", "gamax.cli", "data", "prior", "paired_folder", "--source", str(pairs)]
    command += ["--weights", str(weights), "--output", str(output), *SAMPLING, "--steps", "40"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            command += ["--distributed.coordinator-address", f"localhost:{free.getsockname()[1]}"]
        command += ["--distributed.num-processes", str(processes)]
    environment = {**os.environ, "XLA_FLAGS": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own = [["--distributed.process-id", str(index)] if processes > 1 else [] for index in range(processes)]
    return [subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, **pipes) for flags in own]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


@pytest.mark.slow
def test_two_processes_killed_and_one_that_goes_on_write_what_one_writes(tmp_path, diffusion_weights):
    pairs = make_pairs(tmp_path / "pairs", train=15)
    cut, whole, two = (tmp_path / name for name in ("cut", "whole", "two"))
    processes = start(pairs, diffusion_weights, cut, 2)
    deadline = time.monotonic() + 300
    while len(list(cut.glob("*/*.png"))) < 3:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    left = {path: path.stat().st_mtime_ns for path in cut.glob("*/[!.]*.png")}
    assert 3 <= len(left) < 16

    finish(start(pairs, diffusion_weights, cut, 1))
    finish(start(pairs, diffusion_weights, whole, 1))
    outputs = finish(start(pairs, diffusion_weights, two, 2))
    assert "16/16" not in outputs[0], "each process makes its share"
    assert "sampling" not in outputs[1], "only the first process prints"
    assert re.search(r"train +│ +15 │ +15 │", outputs[0])
    names = sorted(path.relative_to(whole) for path in whole.glob("*/*.png"))
    assert len(names) == 16
    for name in names:
        assert (cut / name).read_bytes() == (whole / name).read_bytes() == (two / name).read_bytes(), name
    assert {path: path.stat().st_mtime_ns for path in left} == left
