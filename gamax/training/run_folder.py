"""The folder of one run: what was asked for, what happened, what came out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gamax.config import Experiment, to_dict
from gamax.environment import environment, versions
from gamax.errors import UserError
from gamax.files import check_writable, lock, replace_atomically, write_json

CHANGEABLE = {
    *("prepared_dir", "loader_threads", "skip_corrupt"),
    *("checkpoint_every", "checkpoints_kept", "max_skipped_steps"),
}
"""Fields of data and training that a run may be resumed with other values of.

They change no number, but for `skip_corrupt`, which replaces samples that stopped the run.
"""


def check_run(run_dir: Path, experiment: Experiment) -> None:
    """Raises `UserError` if the run folder cannot be written to or belongs to another experiment; leaves no trace."""
    config_path = run_dir / "config.json"
    if config_path.exists():
        _check_same(json.loads(config_path.read_text()), to_dict(experiment), run_dir)
    elif run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"'{run_dir}' is a file; choose another folder with --logging.run-dir")
    elif run_dir.exists() and any(not path.name.startswith(".") for path in run_dir.iterdir()):
        raise UserError(f"'{run_dir}' is not empty and no run of gamax; choose another with --logging.run-dir")
    check_writable(run_dir)


def _check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], run_dir: Path) -> None:
    # What is logged and evaluated may change between the parts of a run; what is computed may not.
    for group in ("model", "data", "optimizer", "training"):
        for name, value in wanted[group].items():
            before = stored.get(group, {}).get(name)
            if before != value and name not in CHANGEABLE:
                raise UserError(
                    f"'{run_dir}' holds a run with {group}.{name} {before!r}, not {value!r}; "
                    "choose another folder with --logging.run-dir, or delete that one"
                )


@contextlib.contextmanager
def open_run(run_dir: Path, experiment: Experiment) -> Iterator[None]:
    """Makes the run folder, writes what was asked for and adds this start to `environment.json`.

    Keeps other processes out until the block ends; raises `UserError` if one is in.
    """
    with lock(run_dir, wait=False):
        write_json(run_dir / "config.json", to_dict(experiment))
        path = run_dir / "environment.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        write_json(path, [*starts, {"versions": versions(), **environment()}])
        yield


class MetricsLog:
    """`metrics.jsonl` and TensorBoard: one record a logged step, none of them twice after a resumption."""

    def __init__(self, run_dir: Path, first_step: int, tensorboard: bool) -> None:
        path = run_dir / "metrics.jsonl"
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # The line that was being written when the run was killed.
            if record["step"] <= first_step:
                kept.append(line + "\n")
        replace_atomically(path, "".join(kept).encode())
        self._file = path.open("a")
        self._writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
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
