"""What long work shows while it runs, and the tables it ends with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Wide enough for tables where the output is a file, which has no width of its own.
console = Console(width=None if Console().is_terminal else 120)

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is printed where the output is a file, not a terminal."""


@contextmanager
def progress_bar(
    description: str, total: int, unit: str, done: int = 0, units_per_step: float = 1
) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and time to go; yields `update(done, note="")`; `done` may be a fraction of a step.

    The rate counts `units_per_step` for every step that is done. Where the output is not a terminal, a line is printed
    now and then instead.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[note]}"),
        TimeRemainingColumn(compact=True),
    )
    first, started, reported = done, time.monotonic(), -1.0
    last_line = started
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=done, rate="", note="")

        def update(done: float, note: str = "") -> None:
            nonlocal last_line, reported
            now = time.monotonic()
            per_second = (done - first) / max(now - started, 1e-9)
            rate = f"{per_second * units_per_step:.3g} {unit}/s"
            progress.update(task, completed=done, rate=rate, note=_printable(note))
            if not console.is_terminal and (
                now - last_line > SECONDS_BETWEEN_LINES or (done == total and done > reported)
            ):
                last_line, reported = now, done
                to_go = f"{(total - done) / per_second:.0f} s to go" if per_second else ""
                say(f"{description} {int(done)}/{total} ({done / total:.0%})  {rate}  {note}  {to_go}".rstrip())

        yield update


def say(text: str) -> None:
    """Prints one line of text as it is, at once; what the output cannot encode is escaped."""
    console.print(_printable(text), markup=False, highlight=False, soft_wrap=True)
    console.file.flush()


def _printable(text: str) -> str:
    # A file's name may be any bytes, and the output may know few letters.
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Prints rows under the named columns; the first column is text, the others are aligned to the right."""
    say(title)
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(_printable(row.get(column, "")) for column in columns))
    console.print(table)
