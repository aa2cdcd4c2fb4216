"""Writing so that a kill at any moment leaves either the old file or the new one, and never two writers."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gamax.console import say
from gamax.errors import UserError


def replace_atomically(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    replace_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def check_writable(folder: Path) -> None:
    """Raises `UserError` if `folder`, which need not exist, could not be made and written to; leaves no trace."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder '{folder}' ({error.strerror}); choose another") from error


@contextlib.contextmanager
def lock(folder: Path, wait: bool) -> Iterator[None]:
    """Lets one process of this machine at a time into `folder`; the system lifts the lock of a process that dies.

    Raises:
        UserError: if another process is there and `wait` is false.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(
                    f"another process is at work in '{folder}'; wait for it or choose another folder"
                ) from error
            say(f"waiting for another process that is at work in '{folder}'")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
