"""The folder of one run: what was asked for, what happened, what came out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gamax import hosts
from gamax.config import Experiment, load, to_dict
from gamax.environment import environment, versions
from gamax.errors import UserError
from gamax.files import check_writable, lock, write_json

CHANGEABLE = {
    *("prepared_dir", "loader_threads", "skip_corrupt"),
    *("checkpoint_every", "checkpoints_kept", "checkpoints_kept_every", "max_skipped_steps"),
    *("mesh", "gradient_accumulation"),
}
"""Fields of data and training that a run may be resumed with other values of.

They change no number, but for `skip_corrupt`, which replaces samples that stopped the run, and for the last two, which
change the order of sums, as other devices do.
"""


def check_run(run_dir: Path, experiment: Experiment) -> None:
    """Raises `UserError` if the run folder cannot be written to or belongs to another experiment; leaves no trace."""
    config_path = run_dir / "config.json"
    if config_path.exists():
        # Fields that are newer than the run have their defaults.
        _check_same(to_dict(load(config_path)), to_dict(experiment), run_dir)
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

    Keeps other runs out until the block ends; raises `UserError` if one is in. Of the processes of one run, the first
    does so for all.
    """
    with lock(run_dir, wait=False) if hosts.is_first() else contextlib.nullcontext():
        if hosts.is_first():
            # Where a run was started is not what it is.
            config = {name: group for name, group in to_dict(experiment).items() if name != "distributed"}
            write_json(run_dir / "config.json", config)
            path = run_dir / "environment.json"
            starts = json.loads(path.read_text()) if path.exists() else []
            write_json(path, [*starts, {"versions": versions(), **environment()}])
        hosts.wait_for_all("run folder")
        yield


def saved_step(run_dir: Path) -> int:
    """The step of the latest checkpoint in the run folder, 0 without one."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)
