from __future__ import annotations

import json
import os
import struct
import sys
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from gamax.config import LoggingConfig
from gamax.errors import UserError
from gamax.training.watching import InputWait, MetricsLog, Profiler, check_logging, memory_use, summary

FILE_ONLY = LoggingConfig(tensorboard=False)
TENSORBOARD = LoggingConfig()
WANDB = LoggingConfig(tensorboard=False, wandb="denoising")


def records(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def events(run_dir: Path) -> list[Event]:
    """What TensorBoard reads: for each event its length, a checksum of that, the event and its checksum."""
    found = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def values(run_dir: Path) -> dict[tuple[int, str], Any]:
    return {(event.step, value.tag): value for event in events(run_dir) for value in event.summary.value}


def test_a_disk_that_takes_no_record_does_not_end_training(tmp_path, capsys):
    with closing(MetricsLog(tmp_path, 0, FILE_ONLY, {})) as log:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        log.write(5, {"loss": 0.25})
    assert capsys.readouterr().out == "the metrics of step 5 could not be written (Is a directory); training goes on\n"


def test_a_record_is_a_line_of_json_and_a_scalar_of_tensorboard_for_every_value(tmp_path):
    with closing(MetricsLog(tmp_path, 0, TENSORBOARD, {})) as log:
        log.write(5, {"loss": 0.25, "psnr": float("inf"), "gradient_norm": float("nan")})
        assert records(tmp_path) == [{"step": 5, "loss": 0.25, "psnr": None, "gradient_norm": None}]
    stored = {key: value.simple_value for key, value in values(tmp_path).items()}
    assert stored.pop((5, "loss")) == 0.25
    assert stored.pop((5, "psnr")) == float("inf")
    assert np.isnan(stored.pop((5, "gradient_norm")))
    assert not stored


def test_a_resumed_run_has_no_record_twice(tmp_path):
    with closing(MetricsLog(tmp_path, 0, TENSORBOARD, {})) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with closing(MetricsLog(tmp_path, 4, TENSORBOARD, {})) as log:
        log.write(6, {"loss": -6.0})
    assert records(tmp_path) == [{"step": step, "loss": loss} for step, loss in ((2, 2.0), (4, 4.0), (6, -6.0))]
    # TensorBoard forgets what was recorded from there on.
    assert any(event.session_log.status == event.session_log.START and event.step == 5 for event in events(tmp_path))


def test_pictures_keep_their_pixels_from_memory_and_from_a_file(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "sample.png"), image[..., ::-1])
    with closing(MetricsLog(tmp_path, 0, TENSORBOARD, {})) as log:
        log.picture(3, "from memory", image)
        log.picture(3, "from a file", tmp_path / "sample.png")
    stored = values(tmp_path)
    assert len(stored) == 2
    for value in stored.values():
        encoded = np.frombuffer(value.image.encoded_image_string, np.uint8)
        np.testing.assert_array_equal(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], image)


class WandbRun:
    def __init__(self, step: int):
        self.step, self.logged, self.exit_code = step, [], None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class WandbStub(types.ModuleType):
    """Records how runs are started and what they log; has all steps that were logged before."""

    class Error(Exception):
        pass

    Image = staticmethod(lambda array: ("image", array.shape))

    def __init__(self):
        super().__init__("wandb")
        self.starts, self.runs = [], []

    def init(self, **arguments: Any) -> WandbRun:
        self.starts.append(arguments)
        self.runs.append(WandbRun(max((step + 1 for run in self.runs for step, _ in run.logged), default=0)))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch) -> WandbStub:
    stub = WandbStub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_weights_and_biases_gets_every_step_once_over_all_starts(tmp_path, wandb):
    config = {"model": {"name": "unet"}}
    with closing(MetricsLog(tmp_path, 0, WANDB, config)) as log:
        log.write(2, {"loss": 2.0})
        log.picture(4, "samples", np.zeros((5, 7, 3), np.uint8))
        log.write(4, {"loss": 4.0})
    with closing(MetricsLog(tmp_path, 2, WANDB, config)) as log:
        log.write(4, {"loss": 4.0})
        log.write(6, {"loss": 6.0})
    first, second = wandb.starts
    assert first == second
    assert first["project"] == "denoising"
    assert first["id"] == (tmp_path / "wandb_id").read_text()
    assert (first["resume"], first["name"], first["dir"]) == ("allow", tmp_path.name, str(tmp_path))
    assert first["config"] == config
    pictured = (4, {"samples": ("image", (5, 7, 3))})
    assert wandb.runs[0].logged == [(2, {"loss": 2.0}), pictured, (4, {"loss": 4.0})]
    assert wandb.runs[1].logged == [(6, {"loss": 6.0})]
    assert [run.exit_code for run in wandb.runs] == [0, 0]


def test_runs_in_different_folders_are_different_runs_there(tmp_path, wandb):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        MetricsLog(tmp_path / name, 0, WANDB, {}).close()
    assert wandb.starts[0]["id"] != wandb.starts[1]["id"]


def test_a_run_that_ends_in_an_error_is_shown_as_failed(tmp_path, wandb):
    with pytest.raises(ZeroDivisionError), closing(MetricsLog(tmp_path, 0, WANDB, {})):
        raise ZeroDivisionError
    assert wandb.runs[0].exit_code == 1


def test_a_refused_run_gives_a_sentence_with_the_reason(tmp_path, wandb):
    def refuse(**arguments: Any) -> None:
        raise wandb.Error("no API key\nconfigured")

    wandb.init = refuse
    with pytest.raises(UserError, match=r"cannot log this run \(no API key configured\); call `wandb login`"):
        MetricsLog(tmp_path, 0, WANDB, {})


@pytest.mark.parametrize(
    ("logging", "package", "found", "remedy"),
    [
        (TENSORBOARD, "tensorboardX", None, "pip install tensorboardX"),
        (WANDB, "wandb", None, r"pip install 'gamax\[wandb\]'"),
        # What Python makes of a folder of that name, such as runs leave behind.
        (WANDB, "wandb", types.ModuleType("wandb"), r"pip install 'gamax\[wandb\]'"),
    ],
    ids=["no tensorboardX", "no wandb", "only a folder wandb"],
)
def test_a_missing_package_is_found_when_it_is_asked_for(logging, package, found, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, package, found)
    check_logging(FILE_ONLY)
    with pytest.raises(UserError, match=remedy):
        check_logging(logging)


def test_the_wait_for_input_is_a_part_of_the_time_since_the_last_question(monkeypatch):
    # Two steps of 1 s waiting and 3 s of work, then one of 1 s and 1 s; a call of the clock takes no time.
    clock = iter([0.0, 0.0, 1.0, 4.0, 5.0, 8.0, 8.0, 9.0, 10.0])
    monkeypatch.setattr("gamax.training.watching.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    wait = InputWait()
    for _ in range(2):
        with wait:
            pass
    assert wait.fraction() == 2 / 8
    with wait:
        pass
    assert wait.fraction() == 1 / 2
    assert wait.total == 3


def profiled_steps(run_dir: Path) -> list[int]:
    (path,) = run_dir.glob("profile/**/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    found = (event for plane in planes for line in plane.lines for event in line.events if event.name == "train")
    return sorted(dict(event.stats)["step_num"] for event in found)


# The second run goes on from a checkpoint inside the window.
@pytest.mark.parametrize(("first_step", "expected"), [(1, [3, 4]), (4, [4])])
def test_the_profile_holds_the_steps_of_the_window(first_step, expected, tmp_path, capsys):
    profiler, step = Profiler(tmp_path, (3, 4)), jax.jit(lambda x: x @ x)
    for number in range(first_step, 7):
        profiler.before(number)
        profiler.after(number, step(jnp.ones((2, 2))))
    assert profiled_steps(tmp_path) == expected
    assert f"xprof --logdir '{tmp_path / 'profile'}'" in capsys.readouterr().out


def test_the_record_ends_when_the_work_of_the_last_step_is_done(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: order.append("started"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: order.append("stopped"))
    profiler = Profiler(tmp_path, (1, 2))
    for step in (1, 2):
        profiler.before(step)
        computed = types.SimpleNamespace(block_until_ready=lambda step=step: order.append(f"computed {step}"))
        profiler.after(step, {"loss": computed})
    assert order == ["started", "computed 2", "stopped"]


def test_without_a_window_nothing_is_profiled(tmp_path):
    profiler = Profiler(tmp_path, None)
    profiler.before(1)
    profiler.after(1, {})
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    gib = 2**30
    stats = [
        {"bytes_in_use": 3 * gib, "peak_bytes_in_use": 4 * gib},
        {"bytes_in_use": gib, "peak_bytes_in_use": 5 * gib},
    ]
    devices = [types.SimpleNamespace(memory_stats=lambda counted=counted: counted) for counted in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory_use() == {"memory_in_use_gib": 3, "memory_peak_gib": 5}


def test_on_cpu_memory_is_that_of_the_process():
    memory = memory_use()
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # JAX alone takes more than the lower bound.
    assert 0.05 < memory.pop("process_memory_peak_gib") < machine
    assert not memory


# A start that finds all steps made has no loss to show.
@pytest.mark.parametrize(("loss", "best"), [(-31.5, (400, 31.25)), (None, None)])
@pytest.mark.parametrize(
    ("memory", "peak"),
    [
        ({"memory_in_use_gib": 1.0, "memory_peak_gib": 2.0}, ("peak memory of a device", "2.00 GiB")),
        ({"process_memory_peak_gib": 3.0}, ("peak memory of the process", "3.00 GiB")),
    ],
)
def test_the_summary_says_what_the_run_was(memory, peak, loss, best):
    rows = summary(
        steps=1000,
        samples=8000,
        epochs=20.0,
        seconds=1800.0,
        input_wait=0.0125,
        skipped=2,
        memory=memory,
        loss=loss,
        metric="psnr",
        best=best,
        last=best and (1000, 31.0),
    )
    expected = {
        "steps": "1,000",
        "samples seen": "8,000",
        "epochs": "20.0",
        "time": "0:30:00",
        "images/s": "4.4",
        "input wait": "1.2%",
        "skipped updates": "2",
        peak[0]: peak[1],
    }
    expected |= {"last loss": "-31.5000"} if loss else {}
    evaluations = {"best psnr": "31.250 at step 400", "last psnr": "31.000 at step 1,000"} if best else {}
    assert {row["figure"]: row["value"] for row in rows} == {**expected, **evaluations}
