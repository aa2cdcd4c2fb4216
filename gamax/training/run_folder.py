"""The folder of one run: what was asked for, what happened, what came out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from gamax.config import Experiment, to_dict
from gamax.errors import UserError

PACKAGES = ("gamax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is at any moment either the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def environment() -> dict[str, Any]:
    """Everything about the machine and the source that a figure may depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "versions": versions(),
        "command": sys.argv,
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "gamax_commit": commit.stdout.strip() or None,
        "flags": {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ},
    }


def check_run(run_dir: Path, experiment: Experiment) -> None:
    """Raises `UserError` if the run folder cannot be written to or belongs to another experiment; leaves no trace."""
    config_path = run_dir / "config.json"
    if config_path.exists():
        _check_same(json.loads(config_path.read_text()), to_dict(experiment), run_dir)
    elif run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"'{run_dir}' exists and is not a run of gamax; choose another with --logging.run-dir")
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder '{run_dir}' ({error.strerror}); choose another with --logging.run-dir"
        ) from error


def open_run(run_dir: Path, experiment: Experiment) -> None:
    """Makes the run folder and writes what was asked for, and of which machine."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "config.json", to_dict(experiment))
    write_json(run_dir / "environment.json", environment())


def _check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], run_dir: Path) -> None:
    # What is logged and evaluated may change between the parts of a run; what is computed may not.
    for group in ("model", "data", "optimizer", "training"):
        for name, value in wanted[group].items():
            before = stored.get(group, {}).get(name)
            if before != value:
                raise UserError(
                    f"'{run_dir}' holds a run with {group}.{name} {before!r}, not {value!r}; "
                    "choose another folder with --logging.run-dir, or delete that one"
                )


class MetricsLog:
    """`metrics.jsonl` and TensorBoard: one record a logged step, none of them twice after a resumption."""

    def __init__(self, run_dir: Path, first_step: int, tensorboard: bool) -> None:
        path = run_dir / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # The line that was being written when the run was killed.
                if record["step"] <= first_step:
                    kept.append(line + "\n")
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, **values: float) -> None:
        """Appends one record; a value that is not finite becomes null in the file."""
        record = {name: value if abs(value) < float("inf") else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()
