"""A finished run, made once by the real program, and the programs themselves as functions."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

TINY = [
    *("--model.overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1"),
    *("--data.patch-size", "16", "--training.batch-size", "8"),
    *("--training.steps", "6", "--training.checkpoint-every", "3", "--logging.every", "2"),
]


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def train() -> Callable[[list[str]], None]:
    return runpy.run_path(str(ROOT / "train.py"))["main"]


@pytest.fixture(scope="session")
def tiny_workspace(tmp_path_factory, prepared_dir, train) -> Path:
    """A folder in which the quick start, made tiny, has just run: `runs/quickstart` and a photograph to restore."""
    workspace = tmp_path_factory.mktemp("workspace")
    run_dir = ["--logging.run-dir", str(workspace / "runs" / "quickstart")]
    train([str(ROOT / "configs/quickstart.py"), *TINY, *run_dir, "--data.prepared-dir", str(prepared_dir)])
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    cv2.imwrite(str(workspace / "photo.png"), photo)
    cv2.imwrite(str(workspace / "photo.jpg"), photo)
    (workspace / "photographs").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(workspace / "photographs" / f"{name}.png"), photo)
    return workspace


@pytest.fixture
def gamax(monkeypatch) -> Callable[..., None]:
    """The `gamax` command, run in this process; leaves with `SystemExit` as the program would."""
    from gamax.cli import main

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["gamax", *map(str, arguments)])
        main()

    return run
