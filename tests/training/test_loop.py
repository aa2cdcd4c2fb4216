"""The loop over stages that divide the devices differently, cut off in the middle by SIGTERM."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from gamax.blocks import Conv
from gamax.config import DataConfig, EvaluationConfig, Experiment, LoggingConfig, Stage, TrainingConfig
from gamax.data.datasets import PreparedDataset
from gamax.errors import RESTART_EXIT_CODE, StoppedError, UserError
from gamax.training import loop
from gamax.training.checkpoints import Checkpoints
from gamax.training.program import stage_meshes, step_programs
from gamax.training.state import abstract_state


class Network(Conv):
    """As little as a network can be."""

    input_channels: ClassVar[int] = 3


MODEL = Network(3, 3)
EXPERIMENT = Experiment(
    data=DataConfig(dataset="paired_folder", patch_size=16, augment=True),
    training=TrainingConfig(
        steps=6,
        batch_size=8,
        progressive=(Stage(2, patch_size=64, batch_size=4), Stage(4, patch_size=128, batch_size=2)),
        loss="l1",
        ema_decay=0.9,
        checkpoint_every=100,
    ),
    evaluation=EvaluationConfig(every=3),
    logging=LoggingConfig(every=1, tensorboard=False),
)


def dataset(fingerprint: str = "random") -> PreparedDataset:
    rng = np.random.default_rng(0)
    examples = [
        {"name": str(index), **{name: rng.integers(0, 256, (128, 130, 3), np.uint8) for name in ("input", "target")}}
        for index in range(5)
    ]
    return PreparedDataset(Path("nowhere"), {"train": examples}, fingerprint, {"train": 5}, {"train": None})


def train(
    run_dir: Path, images: PreparedDataset, evaluate: Any = lambda: None, save_best: Any = lambda params: None
) -> loop.Trained:
    state = abstract_state(MODEL, EXPERIMENT)
    meshes = stage_meshes(MODEL, EXPERIMENT, state, 2**34)
    assert [tuple(mesh.shape.values()) for mesh in meshes.values()] == [(8, 1, 1), (4, 1, 2), (2, 1, 4)]
    crops = dict.fromkeys(("input", "target"), (3, np.uint8))

    def score(params: Any) -> Any:
        evaluate()
        return SimpleNamespace(mean=lambda metric: 30.0, means=lambda: {"psnr": 30.0}, worst=[])

    run_dir.mkdir(exist_ok=True)
    with Checkpoints(run_dir / "checkpoints", kept=1, kept_every=None) as checkpoints:
        program_of = step_programs(MODEL, EXPERIMENT, meshes, state, crops, 2**34)
        return loop.train(EXPERIMENT, MODEL, images, meshes, program_of, run_dir, checkpoints, score, save_best)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """There are no images to draw."""
    monkeypatch.setattr(loop, "save_comparison", lambda path, rows: None)
    monkeypatch.setattr(loop.MetricsLog, "picture", lambda *arguments: None)


def test_a_disk_that_does_not_take_the_best_weights_does_not_end_training(tmp_path, capsys):
    def save_best(params: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert train(tmp_path / "run", dataset(), save_best=save_best).best == (3, 30.0)
    said = "the best weights could not be written (No space left on device); training goes on"
    assert said in capsys.readouterr().out


def test_stages_on_other_meshes_are_resumed_to_the_bit(tmp_path):
    whole = train(tmp_path / "whole", dataset())
    with pytest.raises(StoppedError, match="saved after step 3 of 6; the same command goes on") as stopped:
        train(tmp_path / "cut", dataset(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.value.exit_code == RESTART_EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(UserError, match="the training images have changed since the checkpoint"):
        train(tmp_path / "cut", dataset("others"))
    rest = train(tmp_path / "cut", dataset())
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)
    assert (rest.loss, rest.best) == (whole.loss, whole.best) == (whole.loss, (3, 30.0))
    logs = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert [record["samples"] for record in logs[0]] == [8, 16, 20, 24, 26, 28]
    for name in ("step", "samples", "loss", "gradient_norm", "update_norm", "learning_rate"):
        assert [record[name] for record in logs[0]] == [record[name] for record in logs[1]]
