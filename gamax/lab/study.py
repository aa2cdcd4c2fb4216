"""What the studies of `gamax lab` share: trials that are kept as they finish, and the report at the end."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from gamax.benchmark.case import device_name
from gamax.benchmark.comparison import source_of_block, source_sha256
from gamax.console import print_table, progress_bar, say
from gamax.environment import environment, flags, versions
from gamax.errors import UserError
from gamax.files import check_writable, lock, replace_atomically, write_json

TRIALS = "trials.jsonl"

Trial = Mapping[str, Any]
"""All that a trial's result depends on, besides the code, its versions and the device; ready for JSON."""


def run_trials(
    trials: Sequence[Trial],
    run: Callable[[Trial, Callable[[float, str], object]], dict[str, Any]],
    folder: Path,
    unit: str = "trainings",
) -> list[dict[str, Any]]:
    """Runs trials one after the other and appends each result to `trials.jsonl` in `folder` as soon as it is there.

    A trial is not run again that is there already, made by the same code and versions on the same device, under the
    same variables of the environment: a study that was interrupted goes on with the trial that it was at.

    Args:
        trials: what to run.
        run: of a trial and `update(part, note)`, which it may call with the part of it that is done; returns what is
            ready for JSON.
        folder: made if it is not there.
        unit: what a trial is, in the plural, for the progress.

    Returns:
        For each trial its settings and the result, in one dictionary.

    Raises:
        UserError: if another process is at work in the folder, or `trials.jsonl` is damaged.

    """
    if folder.is_file():
        raise UserError(f"--output must be a folder, not the file '{folder}'")
    check_writable(folder)
    with lock(folder, wait=False):
        path = folder / TRIALS
        earlier = _read(path)
        made_by = {
            **{"source_sha256": source_sha256(), "versions": versions()},
            **{"device": device(), "flags": flags()},
        }
        rows = []
        with progress_bar(unit, len(trials), unit) as update:
            for done, trial in enumerate(trials):
                settings = json.loads(json.dumps({**trial, **_sources(trial)}))
                found = next(
                    (row for row in earlier if row["trial"] == settings and made_by.items() <= row.items()), None
                )
                if found is None:
                    name = trial.get("name", "")
                    result = run(trial, lambda part, note, at=done, name=name: update(at + part, f"{name} {note}"))
                    found = {"trial": settings, "result": result, "finished": datetime.now(UTC).isoformat(), **made_by}
                    earlier.append(json.loads(json.dumps(found)))
                    replace_atomically(path, "".join(json.dumps(row) + "\n" for row in earlier).encode())
                rows.append({**settings, **json.loads(json.dumps(found["result"]))})
                update(done + 1)
    return rows


def _sources(trial: Trial) -> dict[str, str]:
    """The fingerprint of a block of the user's, whose code `source_sha256` does not know."""
    mixer = trial.get("mixer", trial.get("overrides", {}).get("mixer"))
    source = source_of_block(mixer)
    return {} if source is None else {"block_sha256": source}


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if not all(isinstance(row, dict) and {"trial", "result"} <= row.keys() for row in rows):
            raise ValueError("a line holds no trial")
        return rows
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a file of trials ({error}); remove it, or choose another --output") from error


def device() -> str:
    """The name of what computes."""
    first = jax.devices()[0]
    return device_name(None if first.platform == "cpu" else first.device_kind)


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """`mean`, sample standard deviation `std` (0 of one value), `low`, `high` and `count` of values over seeds."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "low": min(values),
        "high": max(values),
        "count": len(values),
    }


def with_spread(figures: Mapping[str, float | int], digits: int = 2) -> str:
    """`spread` in a table: `27.31 ± 0.12`, or one value alone."""
    text = f"{figures['mean']:.{digits}f}"
    return f"{text} ± {figures['std']:.{digits}f}" if figures["count"] > 1 else text


@dataclass(frozen=True)
class Report:
    """What a study has found, ready to be printed and written."""

    name: str
    """Of the verb of `gamax lab`, and of the files."""
    settings: Mapping[str, Any]
    """What the study was asked for."""
    reproduce: str
    """The command that makes the same again."""
    tables: Mapping[str, Sequence[Mapping[str, str]]]
    """Rows of text by the title of each table."""
    notes: Sequence[str]
    """Sentences below the tables: how it was measured, and what was found."""
    figures: Mapping[str, Figure]
    """Plots by the names of their PNG files."""
    record: Mapping[str, Any]
    """All figures, ready for JSON."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """Encoded pictures by the names of their files."""


def write_report(report: Report, folder: Path) -> list[Path]:
    """Prints the tables and notes, and writes `NAME.json`, `NAME.md` and the pictures; returns the files.

    The JSON file holds the settings, the command that makes the same again, all figures, versions and the device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "study": report.name,
        "reproduce": report.reproduce,
        "settings": report.settings,
        **report.record,
        "notes": list(report.notes),
        "versions": versions(),
        "device": device(),
        "environment": environment(),
    }
    pictures = {**{name: _png(figure) for name, figure in report.figures.items()}, **report.pictures}
    for name, data in pictures.items():
        replace_atomically(folder / name, data)
    replace_atomically(folder / f"{report.name}.md", _markdown(report, list(pictures)).encode())
    write_json(folder / f"{report.name}.json", content)
    for title, rows in report.tables.items():
        print_table(title, _columns(rows), [dict(row) for row in rows])
    for note in report.notes:
        say(note)
    paths = [folder / name for name in (f"{report.name}.json", f"{report.name}.md", *pictures)]
    for path in paths:
        say(f"wrote {path}")
    return paths


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _markdown(report: Report, pictures: Sequence[str]) -> str:
    made = versions()
    lines = [
        f"# {report.name}",
        "",
        f"Made by `{report.reproduce}` on {device()}, gamax {made['gamax']}, JAX {made['jax']}.",
    ]
    for title, rows in report.tables.items():
        columns = _columns(rows)
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(row.get(column, '') for column in columns)} |" for row in rows]
    lines += ["", *(f"- {note}" for note in report.notes)]
    for name in pictures:
        lines += ["", f"![{name}]({name})"]
    return "\n".join(lines) + "\n"


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
