"""The README's examples run as written, after a quick start made tiny."""

import re

import pytest
from documentation import ROOT, run_command

README = (ROOT / "README.md").read_text()
# The code of the page on export runs in tests/interop/test_export.py, which makes the files that it reads.
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "export.md")]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if not line.startswith("python3 -m venv")]


def test_the_readme_has_its_examples():
    assert len(blocks("python")) == 3
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("code", [block for page in PAGES for block in blocks("python", page)])
def test_python_example(code, tiny_workspace, monkeypatch, capsys):
    monkeypatch.chdir(tiny_workspace)
    namespace: dict[str, object] = {}
    exec(compile(code, "example", "exec"), namespace)
    if "gamax.psnr" in code:
        printed = re.fullmatch(r"(20\.\d\d) -> (\d+\.\d\d) dB\n", capsys.readouterr().out)
        assert printed
        if "denoise-gaussian" in code:
            assert float(printed[2]) > float(printed[1]) + 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tiny_workspace, prepared_dir):
    finished = run_command(command, tiny_workspace, prepared_dir)
    assert finished.returncode == 0, finished.stderr
