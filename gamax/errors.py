"""Errors that the person at the keyboard can mend, and how a command reports them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """Input that the user can correct: one sentence that names the thing and the remedy."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns `name` and the nearest valid name, for error sentences: `'widht' (did you mean 'width'?)`."""
    valid = sorted(valid)
    # Dotted names differ most in their last part, so that part decides.
    matches = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"'{name}' (did you mean '{matches[0]}'?)" if matches else f"'{name}' (valid: {', '.join(valid)})"


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into its sentence on stderr and exit code 2, without a traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
