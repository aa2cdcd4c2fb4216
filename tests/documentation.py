"""The pages of the documentation, the code in them, and how its commands are run or parsed."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tyro

from gamax import config
from gamax.cli import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    # The model cards, which the site shows, too.
    *sorted((ROOT / "gamax/pretrained").glob("*.md")),
]
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*$", re.DOTALL | re.MULTILINE
)
# What stands for a configuration of the reader's own; no degradations, so that it goes with any option.
_ANY_CONFIGURATION = "configs/paired.py"
_OWN_CONFIGURATIONS = ("CONFIG", "configs/mine.py")
_PROGRAMS = ("gamax", "train.py", "eval.py")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text[: match.start()].count("\n") + 1, match["language"], match["code"])
        for match in _FENCE.finditer(text)
    ]


def without_blocks(page: Path) -> str:
    """The text of a page around its blocks."""
    return _FENCE.sub("", page.read_text())


def run_command(command: str, folder: Path, prepared_dir: Path) -> subprocess.CompletedProcess[str]:
    """Runs `.venv/bin/gamax ...` or `.venv/bin/python PROGRAM.py ...` in `folder`, with the Python of the tests."""
    program, *arguments = shlex.split(command)
    start = {".venv/bin/gamax": ["-m", "gamax.cli"], ".venv/bin/python": []}[program]
    scripts = [str(ROOT / item) if item.endswith(".py") else item for item in arguments]
    environment = {**os.environ, "TFDS_DATA_DIR": str(prepared_dir)}
    # One device and fast programs, as a newcomer has.
    del environment["XLA_FLAGS"]
    return subprocess.run(
        [sys.executable, *start, *scripts],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def programs(shell: str) -> list[list[str]]:
    """The calls of gamax's programs in a piece of shell, each as words that begin with the program.

    Commands in quotes, as those that are sent to other machines, are looked into; variables are taken for 0.
    """
    lexer = shlex.shlex(shell.replace("\\\n", " ").replace("\n", "\n; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    found = []
    for words in commands:
        names = [Path(word).name for word in words]
        start = next((index for index, name in enumerate(names) if name in _PROGRAMS), None)
        nested = [word for word in words if " " in word and any(program in word for program in _PROGRAMS)]
        if start is not None and (start == 0 or names[start] != "gamax" or _starts_command(words[start - 1])):
            found.append([names[start], *(re.sub(r"\$\w+", "0", word) for word in words[start + 1 :])])
        elif nested:
            found += [call for word in nested for call in programs(word)]
    return found


@cache
def _eval_program() -> types.ModuleType:
    """`eval.py` as a module that is registered, in which tyro looks for the types of its fields."""
    spec = importlib.util.spec_from_file_location("gamax_eval_program", ROOT / "eval.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _starts_command(word: str) -> bool:
    """Whether the word behind this one may be a program: after `srun`, or a variable that is set for it."""
    return word in ("srun", "exec", "do", "then", "until", "while") or "=" in word


def parse_call(program: str, arguments: list[str]) -> object:
    """What the program makes of its arguments, by its own parser; nothing is run. Leaves with `SystemExit` if wrong."""
    if program == "gamax":
        return tyro.extras.subcommand_cli_from_dict(VERBS, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    if program == "eval.py":
        return tyro.cli(_eval_program().Arguments, args=arguments)
    path, *flags = arguments
    return config.parse([str(ROOT / (_ANY_CONFIGURATION if path in _OWN_CONFIGURATIONS else path)), *flags], "train.py")
