"""What has been restored into a folder, so that the same command goes on after an interruption.

`restored.jsonl` holds a line for every file: what it was made from, and the digest of its content. The line is written
before the file gets its name. So a file whose line is there is finished, and one without is not ours or another's, no
matter when a process was killed: a line cut short, or one for a file that never came, matches nothing.
"""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from typing import Any

from gamax.interop.weights import sha256

LOG_NAME = "restored.jsonl"


def describe_source(
    source: Path, weights_sha256: str, settings: dict[str, Any], right: Path | None = None
) -> dict[str, Any]:
    """What a restored image is made from, ready for JSON; `right` is the right view of a dual-pixel camera."""
    views = _describe_file("source", source)
    if right is not None:
        views |= _describe_file("right", right)
    return {**views, "weights_sha256": weights_sha256, "settings": settings}


def _describe_file(role: str, path: Path) -> dict[str, Any]:
    status = path.stat()
    return {role: str(path.resolve()), f"{role}_bytes": status.st_size, f"{role}_modified_ns": status.st_mtime_ns}


def log_line(made_from: dict[str, Any], target: Path, digest: str) -> str:
    """The line for a file of that SHA-256."""
    return json.dumps({"target": target.name, "sha256": digest, **made_from}, sort_keys=True)


def read_log(folder: Path) -> set[str]:
    """All lines; none where nothing was restored yet."""
    path = folder / LOG_NAME
    return set(path.read_text().splitlines()) if path.exists() else set()


def is_finished(log: set[str], made_from: dict[str, Any], target: Path) -> bool:
    """Whether the file at `target` is what would be written again."""
    return target.is_file() and log_line(made_from, target, sha256(target)) in log


def open_log(folder: Path) -> FileIO:
    """Opens the log for appending: each `write` is one system call, so lines of several threads do not mix."""
    file = (folder / LOG_NAME).open("ab", buffering=0)
    # Ends a line that a kill has cut short.
    file.write(b"\n" if file.tell() else b"")
    return file
