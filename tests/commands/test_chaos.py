"""A run that is killed again and again, whatever it is doing, ends with the very same weights: see also test_resume."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gamax.errors import RESTART_EXIT_CODE

ROOT = Path(__file__).parents[2]
RUN = [
    *(sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/quickstart.py")),
    *("--model.overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1"),
    *("--data.patch-size", "16", "--training.batch-size", "8", "--logging.tensorboard", "False"),
    *("--training.steps", "600", "--training.checkpoint-every", "7", "--logging.every", "5"),
    *("--evaluation.every", "150", "--training.checkpoints-kept-every", "100"),
]
TIMES = {"images_per_second", "input_wait", "process_memory_peak_gib"}
"""What differs from run to run in `metrics.jsonl`."""


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that a run has computed."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run_dir / "result.json").read_text())
    return {
        "weights": [path.read_bytes() for path in sorted(run_dir.glob("*.safetensors"))],
        "metrics": [{name: value for name, value in record.items() if name not in TIMES} for record in records],
        "images": result["per_image"],
        "checkpoints": sorted(path.name for path in (run_dir / "checkpoints").iterdir()),
        "damaged": [path.name for path in run_dir.glob("damaged*")],
    }


@pytest.mark.slow
def test_killed_at_random_moments_the_run_ends_bit_identical(tmp_path, prepared_dir):
    def start(name: str) -> subprocess.Popen:
        command = [*RUN, "--logging.run-dir", str(tmp_path / name), "--data.prepared-dir", str(prepared_dir)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(name: str) -> None:
        process = start(name)
        output, _ = process.communicate()
        assert process.returncode == 0, output

    def wait(process: subprocess.Popen, step: int, seconds: float) -> None:
        """Until so many seconds after a step has been logged, or the process has ended."""
        metrics = tmp_path / "killed/metrics.jsonl"
        while process.poll() is None and step and not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    finish("uninterrupted")
    draw = random.Random(0)
    # While it starts; while it trains, evaluates and writes checkpoints, of which there is one every seven steps; and
    # while it writes and evaluates its result.
    moments = [(0, draw.uniform(0, 8)) for _ in range(4)]
    moments += [(step, draw.uniform(0, 0.5)) for step in sorted(draw.sample(range(5, 600, 5), 18))]
    moments += [(600, draw.uniform(0, 3)) for _ in range(4)]
    codes = []
    for step, seconds in moments:
        process, number = start("killed"), draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        wait(process, step, seconds)
        process.send_signal(number)
        output, _ = process.communicate(timeout=100)
        codes.append(process.returncode)
        # Before the program itself begins, SIGTERM ends it as it ends any other.
        assert codes[-1] in {0, -number, RESTART_EXIT_CODE}, output
        assert (codes[-1] == RESTART_EXIT_CODE) == ("asked to stop" in output), output
    assert sum(code != 0 for code in codes) >= 20
    assert {-signal.SIGKILL, RESTART_EXIT_CODE} <= {*codes}

    finish("killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "uninterrupted")
