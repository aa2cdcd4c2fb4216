"""Groups of rows that are measured together, one group after the other, so that an interrupted run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gamax.benchmark.case import Case
from gamax.benchmark.latency import measure
from gamax.benchmark.roofline import measure_roofline
from gamax.blocks.mixers import find_mixer, import_path
from gamax.console import progress_bar, say
from gamax.environment import flags
from gamax.errors import UserError
from gamax.files import replace_atomically

ROWS = "rows.jsonl"


def measure_groups(groups: Sequence[Sequence[Case]], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Measures each group as `latency.measure` does and appends its rows to `rows.jsonl` in `folder`.

    A group is not measured again whose rows are there already, made by the same code and versions, under the same
    variables of the environment, on the same device, in as many rounds. A case that cannot be measured gives a row with
    `failure`; it is tried again the next time. The limits of the device are measured first, once for each precision.

    Args:
        groups: cases that take turns; those of a group must have one precision.
        rounds: how often they do.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ROWS
    earlier = read_rows([path]) if path.exists() else []
    rooflines = {}
    for precision in dict.fromkeys(group[0].precision for group in groups):
        say(f"measuring how fast this device multiplies and moves, {precision}")
        rooflines[precision] = measure_roofline(precision)
    source = source_sha256()
    rows, done = [], 0
    with progress_bar("measuring", sum(map(len, groups)), "rows") as update:
        for group in groups:
            roofline = rooflines[group[0].precision]
            found = find_rows(earlier, group, source, roofline["device"], rounds)
            if found is None:
                found = measure(
                    group,
                    rounds,
                    roofline=roofline,
                    keep_failures=True,
                    progress=lambda part, note, done=done: update(done + part, note),
                )
                found = [{**row, "source_sha256": source, **_block(row)} for row in found]
                earlier += found
                replace_atomically(path, "".join(json.dumps(row) + "\n" for row in earlier).encode())
            else:
                say(f"{group[0].model} {group[0].height}x{group[0].width}: measured already, in '{path}'")
            rows += found
            done += len(group)
            update(done)
    return rows


def read_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of files of JSON lines.

    Raises:
        UserError: if a file cannot be read, or a line is no row.

    """
    rows = []
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise UserError(f"cannot read the rows '{path}' ({error.strerror})") from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of '{path}' is not a row of the benchmark ({error})") from error
            if not {"model", "backend", "started"} <= set(row):
                raise UserError(f"line {number} of '{path}' is not a row of `gamax bench infer` or `compare`")
            rows.append(row)
    return rows


def find_rows(
    rows: Sequence[Mapping[str, Any]], cases: Sequence[Case], source: str, device: str, rounds: int | None = None
) -> list[dict[str, Any]] | None:
    """The latest rows of exactly these cases that were measured together and would come out the same; None for none.

    Args:
        rows: measured earlier.
        cases: that are to be measured together.
        source: fingerprint of the code, of `source_sha256`.
        device: as rows name it.
        rounds: in which they took turns; any number if None.
    """
    wanted = [json.loads(json.dumps(dataclasses.asdict(case))) for case in cases]
    # Of what is asked for now: rows of a file do not decide what is imported.
    wanted = [{**case, "block_sha256": None, **_block(case)} for case in wanted]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["started"], []).append(row)
    for group in reversed(groups.values()):
        same = [
            row
            for row in group
            if "failure" not in row and rounds in (None, row.get("rounds")) and _made_like_now(row, source, device)
        ]
        found = [[row for row in same if all(row.get(key) == value for key, value in case.items())] for case in wanted]
        if all(found):
            return [dict(matching[-1]) for matching in found]
    return None


def _made_like_now(row: Mapping[str, Any], source: str, device: str) -> bool:
    return (
        (row.get("source_sha256"), row["device"], row["environment"]["flags"]) == (source, device, flags())
        # Python's own version and those of drivers are no packages.
        and all(_installed(name) in (None, found) for name, found in row["versions"].items())
    )


def _block(case: Mapping[str, Any]) -> dict[str, str]:
    source = source_of_block(case["overrides"].get("mixer"))
    return {} if source is None else {"block_sha256": source}


def source_sha256() -> str:
    """A fingerprint of the installed code of gamax."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_of_block(mixer: object) -> str | None:
    """SHA-256 of the file that a mixer's text imports its block from, which `source_sha256` may not know; or None.

    What that file imports in its turn is not seen.
    """
    module, _ = import_path(mixer)
    if module is None:
        return None
    find_mixer(str(mixer))
    path = getattr(sys.modules[module], "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
