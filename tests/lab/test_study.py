from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gamax.cli_lab_studies import (
    LabAblation,
    LabLandscape,
    LabMemorise,
    LabReceptiveField,
    LabSwap,
    _options,
    command_line,
)
from gamax.errors import UserError
from gamax.files import lock
from gamax.lab import study as lab
from gamax.lab.study import Report, run_trials, spread, with_spread, write_report


def trials(*seeds: int) -> list[dict[str, object]]:
    return [{"name": "a", "seed": seed, "shape": (1, 2)} for seed in seeds]


def test_results_come_with_the_settings_in_the_order_asked_for(tmp_path):
    rows = run_trials(trials(2, 1), lambda trial, update: {"psnr": 10.0 * trial["seed"]}, tmp_path)
    assert rows == [
        {"name": "a", "seed": 2, "shape": [1, 2], "psnr": 20.0},
        {"name": "a", "seed": 1, "shape": [1, 2], "psnr": 10.0},
    ]


def test_a_trial_runs_once_unless_its_settings_or_the_code_change(tmp_path, monkeypatch):
    ran = []

    def run(trial, update):
        ran.append(trial["seed"])
        return {}

    for wanted in ((0,), (0, 1), (1, 0)):
        run_trials(trials(*wanted), run, tmp_path)
    assert ran == [0, 1]
    monkeypatch.setattr(lab, "source_sha256", lambda: "other code")
    run_trials(trials(0), run, tmp_path)
    monkeypatch.setattr(lab, "device", lambda: "another device")
    run_trials(trials(0), run, tmp_path)
    assert ran == [0, 1, 0, 0]


PROGRAM = """
import sys, time
from pathlib import Path
from gamax.lab.study import run_trials
def run(trial, update):
    print("at", trial["seed"], flush=True)
    time.sleep(60 if trial["seed"] == 2 and sys.argv[2] == "slow" else 0)
    return {"value": trial["seed"] ** 2}
rows = run_trials([{"seed": seed} for seed in range(4)], run, Path(sys.argv[1]))
print("values", [row["value"] for row in rows])
"""


def test_a_killed_study_goes_on_with_the_trial_it_was_at(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    started = subprocess.Popen([*command, "slow"], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert any(line == "at 2\n" for line in started.stdout)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    again = subprocess.run([*command, "fast"], capture_output=True, text=True, check=True).stdout
    assert "at 0\n" not in again
    assert "at 1\n" not in again
    assert again.index("at 2\n") < again.index("at 3\n")
    assert "values [0, 1, 4, 9]" in again


def test_one_process_at_a_time(tmp_path):
    with lock(tmp_path, wait=False), pytest.raises(UserError, match="another process is at work"):
        run_trials(trials(0), lambda trial, update: {}, tmp_path)


def test_a_damaged_file_and_a_file_for_a_folder_are_named(tmp_path):
    (tmp_path / "trials.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"trials\.jsonl' is not a file of trials .* remove it"):
        run_trials(trials(0), lambda trial, update: {}, tmp_path)
    for damage in ("null", '{"trial": {}}'):
        (tmp_path / "trials.jsonl").write_text(damage)
        with pytest.raises(UserError, match="is not a file of trials"):
            run_trials(trials(0), lambda trial, update: {}, tmp_path)
    with pytest.raises(UserError, match="--output must be a folder"):
        run_trials(trials(0), lambda trial, update: {}, tmp_path / "trials.jsonl")


def test_the_spread_is_that_of_a_sample():
    figures = spread([1.0, 2.0, 4.0])
    assert figures == {"mean": pytest.approx(7 / 3), "std": pytest.approx(1.5275252), "low": 1, "high": 4, "count": 3}
    assert with_spread(figures) == "2.33 ± 1.53"
    assert with_spread(spread([2.0])) == "2.00"


def test_a_report_holds_its_tables_notes_pictures_and_the_command(tmp_path: Path, capsys):
    report = Report(
        name="ablation",
        settings={"steps": 3},
        reproduce="gamax lab ablation --steps 3",
        tables={"quality": [{"variant": "gama", "PSNR": "30.00"}, {"variant": "none", "note": "worse"}]},
        notes=["with 1 seed nothing can be said"],
        figures={"plot.png": Figure((2, 2))},
        record={"rows": [{"psnr": 30.0}]},
    )
    paths = write_report(report, tmp_path)
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert written["reproduce"] == report.reproduce
    assert written["rows"] == [{"psnr": 30.0}]
    assert {"versions", "device", "environment", "settings", "notes"} <= written.keys()
    text = (tmp_path / "ablation.md").read_text()
    assert "| variant | PSNR | note |\n| --- | --- | --- |\n| gama | 30.00 |  |\n| none |  | worse |" in text
    assert "`gamax lab ablation --steps 3`" in text
    assert "![plot.png](plot.png)" in text
    assert all(path.stat().st_size for path in paths)
    printed = capsys.readouterr().out
    assert "nothing can be said" in printed
    assert "wrote" in printed


def test_a_block_of_the_users_is_known_by_its_file(tmp_path, monkeypatch):
    ran = []

    def run(trial, update):
        ran.append(trial["name"])
        return {}

    source = "import flax.linen as nn\n\nclass Block(nn.Module):\n    def __call__(self, x):\n        return x\n"
    (tmp_path / "own_study_blocks.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    wanted = [
        {"name": "a", "mixer": "own_study_blocks:Block"},
        {"name": "b", "overrides": {"mixer": "own_study_blocks:Block"}},
    ]
    run_trials(wanted, run, tmp_path / "runs")
    run_trials(wanted, run, tmp_path / "runs")
    (tmp_path / "own_study_blocks.py").write_text(source + "# edited")
    run_trials(wanted, run, tmp_path / "runs")
    assert ran == ["a", "b"] * 2


@pytest.mark.parametrize(
    "verb", [LabMemorise(), LabAblation(), LabReceptiveField(), LabSwap("unet", "sca"), LabLandscape()]
)
def test_the_defaults_of_a_verb_can_be_run(verb):
    options = _options(verb)
    assert options.keys() == {field.name for field in dataclasses.fields(verb)} - {"output"}


def test_options_that_are_empty_or_repeat_are_named():
    with pytest.raises(UserError, match="--seeds needs at least one value"):
        _options(LabAblation(seeds=()))
    with pytest.raises(UserError, match="--seeds must not repeat a value"):
        _options(LabSwap("unet", "sca", seeds=(0, 0)))
    with pytest.raises(UserError, match="--overrides: expected KEY=VALUE"):
        _options(LabAblation(overrides=("width",)))


def test_the_command_line_says_everything_and_is_understood_again(monkeypatch):
    import shlex

    import tyro

    asked = LabSwap("nafnet_sidd_w32", "gama(kernel_size=5)", overrides=("width=8",), seeds=(3, 4))
    line = shlex.split(command_line("swap", asked))
    assert line[:3] == ["gamax", "lab", "swap"]
    assert tyro.cli(LabSwap, args=line[3:]) == asked
    line = shlex.split(command_line("ablation", LabAblation()))
    assert tyro.cli(LabAblation, args=line[3:]) == LabAblation()
