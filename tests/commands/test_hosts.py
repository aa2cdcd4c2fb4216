"""Two processes, each with two devices, train together; killed, they go on as two, as one, and as two again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
STEPS, IMAGES, BATCH = 36, 12, 4


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Cluster:
    """The processes of one start, each with its part of four devices."""

    def __init__(self, workspace: Path, run: str, processes: int, of_the_last: Sequence[str] = ()):
        self.metrics = workspace / run / "metrics.jsonl"
        command = [
            *(sys.executable, str(ROOT / "tests/commands/train_recorded.py")),
            *("RECORD", str(ROOT / "configs/quickstart.py"), "--logging.run-dir", str(workspace / run)),
            *("--data.dataset", "clean_folder", "--data.source", str(workspace / "photographs")),
            *("--data.prepared-dir", str(workspace / "prepared"), "--data.patch-size", "16"),
            *("--model.overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1"),
            *("--training.steps", str(STEPS), "--training.batch-size", str(BATCH), "--training.checkpoint-every", "6"),
            *("--logging.every", "1", "--logging.tensorboard", "False", "--evaluation.every", "18"),
        ]
        if processes > 1:
            command += ["--distributed.coordinator-address", f"localhost:{port()}"]
            command += ["--distributed.num-processes", str(processes)]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={4 // processes}"
        self.processes = []
        for index in range(processes):
            command[2] = str(workspace / f"{run}-samples-{len(list(workspace.glob(f'{run}-samples-*')))}")
            Path(command[2]).touch()
            own = ["--distributed.process-id", str(index)] if processes > 1 else []
            own += of_the_last if index == processes - 1 else []
            self.processes.append(
                subprocess.Popen(
                    [*command, *own],
                    env={**os.environ, "XLA_FLAGS": flags},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def stop(self, at_step: int, number: int, count: int | None = None) -> None:
        """Sends a signal to all processes, or to the last `count` of them, once the step has been logged."""
        deadline = time.monotonic() + 200
        while not (self.metrics.exists() and f'"step": {at_step},' in self.metrics.read_text()):
            assert all(process.poll() is None for process in self.processes), self.outputs()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for process in self.processes[-(count or len(self.processes)) :]:
            process.send_signal(number)
        self.outputs()

    def outputs(self) -> list[str]:
        return [process.communicate(timeout=300)[0] for process in self.processes]

    def finish(self) -> list[str]:
        outputs = self.outputs()
        assert [process.returncode for process in self.processes] == [0] * len(self.processes), "\n".join(outputs)
        return outputs


def losses(workspace: Path, run: str) -> list[float]:
    records = [json.loads(line) for line in (workspace / run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["loss"] for record in records]


def images_seen(workspace: Path, run: str) -> np.ndarray:
    """The image numbers of all steps; what a step after a checkpoint reads twice is the same."""
    shares: dict[tuple[int, str], list[int]] = {}
    for path in sorted(workspace.glob(f"{run}-samples-*")):
        for line in path.read_text().splitlines():
            step, numbers = json.loads(line)
            shares[step, path.name] = numbers
    # A step that a killed start had begun is made again by the next one, perhaps by another number of processes.
    starts: dict[int, dict[str, list[int]]] = {}
    for (step, name), numbers in shares.items():
        starts.setdefault(step, {})[name] = numbers
    steps = []
    for step in range(1, STEPS + 1):
        latest = sorted(starts[step].items(), key=lambda item: int(item[0].rpartition("-")[2]))
        numbers = [number for _, share in latest for number in share][-BATCH:]
        steps.append(numbers)
    return np.array(steps)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    for split, count in {"train": IMAGES, "test": 3}.items():
        (folder / "photographs" / split).mkdir(parents=True)
        for index in range(count):
            path = folder / "photographs" / split / f"{index:02}.png"
            cv2.imwrite(str(path), np.full((24, 24, 3), 10 * index, np.uint8))
    return folder


def test_two_processes_killed_go_on_as_two_as_one_and_as_two_again(workspace):
    outputs = Cluster(workspace, "whole", 2).finish()
    assert "4 x cpu in 2 process(es)" in outputs[0]
    assert "training" not in outputs[1], "only the first process prints"

    two = Cluster(workspace, "cut", 2)
    # The notice to one of them stops both, at the same step.
    two.stop(11, signal.SIGTERM, count=1)
    assert [process.returncode for process in two.processes] == [75, 75]
    Cluster(workspace, "cut", 2).stop(20, signal.SIGKILL)
    one = Cluster(workspace, "cut", 1)
    one.stop(27, signal.SIGTERM)
    assert [process.returncode for process in one.processes] == [75]
    Cluster(workspace, "cut", 2).finish()

    whole, cut = losses(workspace, "whole"), losses(workspace, "cut")
    # As long as the mesh is the same, to the bit; one process adds up gradients in another order.
    assert cut[:18] == whole[:18]
    np.testing.assert_allclose(cut, whole, rtol=1e-4)
    ends = [load_file(workspace / run / "weights.safetensors") for run in ("whole", "cut")]
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, atol=1e-4 * max(abs(value).max(), 1e-3), err_msg=name)

    for run in ("whole", "cut"):
        epochs = images_seen(workspace, run).reshape(-1)[: STEPS * BATCH // IMAGES * IMAGES].reshape(-1, IMAGES)
        assert (np.sort(epochs, axis=1) == np.arange(IMAGES)).all(), run
    results = [json.loads((workspace / run / "result.json").read_text()) for run in ("whole", "cut")]
    assert [row["name"] for row in results[0]["per_image"]] == ["00", "01", "02"]
    assert results[0]["psnr"] == pytest.approx(results[1]["psnr"], abs=0.01)


def test_the_error_of_one_process_ends_all(workspace):
    cluster = Cluster(workspace, "unlike", 2, ["--training.seed", "1"])
    outputs = cluster.outputs()
    assert [process.returncode for process in cluster.processes] == [2, 2], outputs
    assert all("the processes do not agree on training" in output for output in outputs)


def test_processes_without_all_addresses_get_a_sentence(workspace):
    command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/quickstart.py")]
    result = subprocess.run([*command, "--distributed.num-processes", "2"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "several processes need all of --distributed.coordinator-address" in result.stderr
