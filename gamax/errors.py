"""Errors that the person at the keyboard can mend, and how a command reports them."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Collection, Iterator
from difflib import get_close_matches

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
RESTART_EXIT_CODE = 75
"""Everything was saved when the system asked to stop; the same command goes on (EX_TEMPFAIL)."""


class UserError(ValueError):
    """Input that the user can correct: one sentence that names the thing and the remedy."""


class StoppedError(Exception):
    """Work that was asked to stop and has saved where it was."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: Exception) -> str:
    """The first line of an error's message, behind its type unless it is a `UserError`; JAX and flax add many more."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def nearest(name: str, valid: Collection[str]) -> str:
    """Returns `name` and the nearest valid name, for error sentences: `'widht' (did you mean 'width'?)`.

    For dotted names the last part counts most: `batch_size` and `data.batch_size` find `training.batch_size`. Initials
    count too: `lr` finds `learning_rate`.
    """
    by_last = {candidate.rpartition(".")[2]: candidate for candidate in sorted(valid, reverse=True)}
    last = name.rpartition(".")[2]
    initials = {"".join(word[:1] for word in part.split("_")): part for part in by_last if "_" in part}
    found = [last] if last in by_last else [initials[last]] if last in initials else []
    found = found or get_close_matches(last, by_last, n=1, cutoff=0.6)
    if found:
        # Where several fields share their last part, the one in the named group.
        same = [candidate for candidate in valid if candidate.rpartition(".")[2] == found[0]]
        return f"'{name}' (did you mean '{get_close_matches(name, same, n=1, cutoff=0)[0]}'?)"
    return f"'{name}' (valid: {', '.join(sorted(valid))})"


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into a `StoppedError`; work that has something to save replaces this while it is at it."""

    def stop(number: int, frame: object) -> None:
        raise StoppedError(
            "asked to stop before or after training, when nothing is to be saved; the same command goes on",
            RESTART_EXIT_CODE,
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into its sentence on stderr and exit code 2, and Ctrl-C into exit code 130.

    Work that saved itself when it was asked to stop exits with the code of its `StoppedError`.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT_CODE)
