"""A run that is killed or asked to stop, and started again, ends with the very same weights."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gamax.errors import RESTART_EXIT_CODE

ROOT = Path(__file__).parents[2]

RUN = [
    *(sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/quickstart.py")),
    *("--model.overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1"),
    *("--data.patch-size", "16", "--training.batch-size", "8", "--logging.tensorboard", "False"),
    *("--training.steps", "120", "--training.checkpoint-every", "10", "--logging.every", "5"),
]


# Optimised programs, as users run: these decide about the last bit. Eight devices would take long for checkpoints.
TWO_DEVICES = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def start(run_dir: Path, prepared_dir: Path, *more: str) -> subprocess.Popen:
    command = [*RUN, "--logging.run-dir", str(run_dir), "--data.prepared-dir", str(prepared_dir), *more]
    return subprocess.Popen(command, env=TWO_DEVICES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen, reached, number: int = signal.SIGKILL) -> str:
    deadline = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, f"ended before it could be killed:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate()[0]


def logged(run_dir: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == len({record["step"] for record in records}), "a step was logged twice"
    return {record["step"]: record["loss"] for record in records}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, prepared_dir) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(run_dir, prepared_dir))
    return run_dir


def test_killed_three_times_the_run_ends_bit_identical(uninterrupted, tmp_path, prepared_dir):
    run_dir = tmp_path / "run"
    metrics = run_dir / "metrics.jsonl"
    # While the first checkpoint is being written, later between two checkpoints, and at any step after that.
    kill_when(
        start(run_dir, prepared_dir),
        lambda: (run_dir / "checkpoints").exists() and any((run_dir / "checkpoints").iterdir()),
    )
    process = start(run_dir, prepared_dir)
    output = kill_when(process, lambda: metrics.exists() and '"step": 45' in metrics.read_text(), signal.SIGTERM)
    assert process.returncode == RESTART_EXIT_CODE
    (saved,) = re.findall(r"asked to stop: saved after step (\d+) of 120; the same command goes on", output)
    assert (run_dir / "checkpoints" / saved).is_dir()
    # Each step reads 8 of 16 cuts, so every odd checkpoint is in the middle of an epoch.
    process = start(run_dir, prepared_dir, "--data.loader-threads", "1")
    kill_when(process, lambda: metrics.exists() and '"step": 80' in metrics.read_text())
    assert not (run_dir / "result.json").exists()

    output = finish(start(run_dir, prepared_dir))
    assert "resuming from the checkpoint of step" in output

    weights = [(folder / "weights.safetensors").read_bytes() for folder in (uninterrupted, run_dir)]
    assert weights[0] == weights[1]
    assert logged(run_dir) == logged(uninterrupted)
    results = [json.loads((folder / "result.json").read_text()) for folder in (uninterrupted, run_dir)]
    assert results[0]["per_image"] == results[1]["per_image"]


def test_a_run_may_be_resumed_with_other_settings_that_change_no_number(uninterrupted, prepared_dir):
    finish(start(uninterrupted, prepared_dir, "--data.loader-threads", "1", "--training.checkpoints-kept", "2"))


def test_a_finished_run_is_evaluated_again_not_trained(uninterrupted, prepared_dir):
    before = json.loads((uninterrupted / "result.json").read_text())
    log = (uninterrupted / "metrics.jsonl").read_text()
    finish(start(uninterrupted, prepared_dir))
    after = json.loads((uninterrupted / "result.json").read_text())
    assert {**before, "environment": None} == {**after, "environment": None}
    assert (uninterrupted / "metrics.jsonl").read_text() == log
