"""The commands of `gamax lab` that the documentation shows are understood; what they do is tested in tests/lab."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import tyro

from gamax.cli_lab import Lab

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = sorted(
    {
        line
        for page in PAGES
        for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for line in block.splitlines()
        if re.match(r"(\.venv/bin/)?gamax lab ", line)
    }
)


def test_there_are_commands_of_every_study():
    shown = {shlex.split(line)[2] for line in COMMANDS}
    assert {"memorise", "ablation", "receptive-field", "swap", "landscape"} <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documentation_is_understood(command):
    words = shlex.split(command, comments=True)
    asked = tyro.cli(Lab, args=words[2:], config=(tyro.conf.OmitArgPrefixes,))
    # The two that `explain` asks for have no flags.
    expected = sum(word.startswith("-") for word in words) + 2 * (words[2] == "explain")
    default = type(asked.verb)
    given = [field.name for field in dataclasses.fields(default) if getattr(asked.verb, field.name) != field.default]
    assert len(given) == expected
