import os
import signal

import pytest

from gamax.errors import (
    INTERRUPTED_EXIT_CODE,
    RESTART_EXIT_CODE,
    UserError,
    exit_on_user_error,
    nearest,
    stop_on_sigterm,
)

FIELDS = ["optimizer.learning_rate", "optimizer.beta2", "training.batch_size", "training.steps", "data.patch_size"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("batch_size", "training.batch_size"),
        ("data.batch_size", "training.batch_size"),
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("training.step", "training.steps"),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant(name, expected):
    assert nearest(name, FIELDS) == f"'{name}' (did you mean '{expected}'?)"


def test_a_name_like_no_other_lists_them_all():
    assert nearest("zzz", ["a", "b"]) == "'zzz' (valid: a, b)"


def test_of_equal_last_parts_the_group_decides():
    assert "logging.every" in nearest("loging.every", ["evaluation.every", "logging.every"])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("too small"), 2, "error: too small\n"),
        (KeyboardInterrupt(), INTERRUPTED_EXIT_CODE, "interrupted\n"),
    ],
)
def test_errors_of_the_user_are_one_line_and_an_exit_code(error, code, text, capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise error
    assert stopped.value.code == code
    assert capsys.readouterr().err == text


def test_errors_of_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        raise ZeroDivisionError


def test_sigterm_exits_with_the_code_for_another_start(capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error(), stop_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == RESTART_EXIT_CODE == 75
    assert capsys.readouterr().err.startswith("asked to stop before or after training")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
