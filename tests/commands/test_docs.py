"""Every block of code in the documentation is run, or parsed where a test has not what it needs; every link leads on.

- `python` blocks run: those of `docs/*.md` in test_readme.py, those of the page on export in
  tests/interop/test_export.py, all others here.
- Commands on `RUN_PAGES` run as written in the tiny workspace (those that the README has, too, run in test_readme.py),
  unless capitals such as DIR stand for something in them.
- All other commands, in `bash` or unlabelled blocks, go through the parsers of the programs that they call. Of other
  programs the shell checks the syntax.
- `yaml`, `json` and `toml` blocks go through their parsers; `text` is output.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from documentation import PAGES, ROOT, Block, blocks, parse_call, programs, run_command, without_blocks

from gamax.config import Experiment

DOCS = ROOT / "docs"
RUN_PAGES = [DOCS / "index.md", DOCS / "quickstart.md"]
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language in ("", "bash")]
PROGRAM = r"(\.venv/bin/)?(gamax|python (train|eval)\.py)\b"
# Programs that are not ours; what comes behind them is checked as far as it is.
OTHERS = r"(python docs/|python3 -m venv|(\.venv/bin/)?pip|pip|cd|gcloud|srun|until|code=|exit|if|done|\[|\w+=\S+ )"
HERE = [
    block
    for block in BLOCKS
    if block.language == "python" and (block.page.parent != DOCS and block.page.name != "README.md")
]


def lines(block: Block) -> list[str]:
    """The commands of a block, without comments and with lines that are continued put together."""
    joined = block.code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]


RUN = {line for block in COMMANDS if block.page in RUN_PAGES for line in lines(block) if "python3 -m venv" not in line}
IN_THE_README = {line for block in COMMANDS if block.page.name == "README.md" for line in lines(block)}


def test_every_block_belongs_to_a_class():
    languages = {"", "bash", "python", "text", "yaml", "json", "toml"}
    assert {str(block): block.language for block in BLOCKS if block.language not in languages} == {}
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), f"{page} has a fence that is not closed"
    # Commands are not hidden as output, and an unlabelled block has nothing but commands.
    for block in BLOCKS:
        if block.language == "text":
            assert not re.search(rf"^\s*{PROGRAM}", block.code, flags=re.MULTILINE), block
        if block.language in ("", "bash"):
            assert all(re.match(f"{PROGRAM}|{OTHERS}", line) for line in lines(block)), f"label the block at {block}"


def test_python_outside_of_the_usual_pages_runs(tiny_workspace, monkeypatch):
    monkeypatch.chdir(tiny_workspace)
    for block in HERE:
        exec(compile(block.code, str(block), "exec"), {})


@pytest.mark.parametrize(
    "command", sorted(line for line in RUN - IN_THE_README if not re.search(r"\b[A-Z]{2,}\b", line))
)
def test_command_runs(command, tiny_workspace, prepared_dir):
    finished = run_command(command, tiny_workspace, prepared_dir)
    assert finished.returncode == 0, finished.stderr


def test_first_pages_show_what_runs():
    for page in RUN_PAGES:
        assert RUN & {line for block in blocks(page) for line in lines(block)}


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_are_understood(block, capsys):
    subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
    calls = programs(block.code)
    for script in re.findall(r"python (docs/\S+)", block.code):
        assert (ROOT / script).is_file()
    named = [line for line in lines(block) if re.search(r"\b(gamax [a-z]|train\.py|eval\.py)", line)]
    assert len(calls) >= len(named), f"of {named} only {calls} were found"
    for program, *arguments in calls:
        try:
            parse_call(program, arguments)
        except SystemExit:
            pytest.fail(f"{block}: {program} {' '.join(arguments)}\n{capsys.readouterr().err}")


def test_the_check_of_commands_finds_mistakes():
    assert programs("cd x && srun .venv/bin/python train.py a.py --b $N; gamax models") == [
        ["train.py", "a.py", "--b", "0"],
        ["gamax", "models"],
    ]
    assert programs('ssh HOST --command "cd y && python eval.py RUN"') == [["eval.py", "RUN"]]
    for wrong in ("gamax restore --weigths x", "python eval.py RUN --data DIR", "gamax nonsense"):
        ((program, *arguments),) = programs(wrong)
        with pytest.raises(SystemExit):
            parse_call(program, arguments)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("yaml", "json", "toml")], ids=str)
def test_data_is_well_formed(block):
    read = {"yaml": lambda text: list(yaml.safe_load_all(text)), "json": json.loads, "toml": tomllib.loads}
    for text in strings(read[block.language](block.code)):
        for program, *arguments in programs(text) if "train.py" in text else []:
            parse_call(program, arguments)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in strings(item)] if isinstance(value, list) else [str(value)]


def test_the_install_commands_name_extras_that_exist():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = {name for page in PAGES for name in re.findall(r"(?:gamax|[`'\s]\.)\[([a-z]+)\]", page.read_text())}
    assert {"cuda", "tpu", "dev"} <= named <= extras


def test_the_readme_names_the_wheel_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"gamax-([\d.]+)-py3", (ROOT / "README.md").read_text()) == [version]


def slugs(page: Path) -> set[str]:
    """The anchors of a page, as MkDocs makes them of headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+?)\s*$", without_blocks(page), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
        count = found.count(slug)
        found.append(f"{slug}_{count}" if count else slug)
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"[a-z]+:", target):
            assert re.fullmatch(r"https?://[\w.-]+\.[a-z]+(/[^\s<>\"]*)?", target), target
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in slugs(path), f"{page.name} links to {target}, where no heading is called so"


def test_the_navigation_has_every_page():
    listed = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def reference() -> list[str]:
    return re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in DOCS.glob("api/*.md")), flags=re.MULTILINE)


@pytest.mark.parametrize("name", reference())
def test_the_reference_is_of_modules_whose_names_are_described(name):
    module = importlib.import_module(name)
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
    names = getattr(module, "__all__", None) or [key for key in own if not key.startswith("_")]
    described = [getattr(module, key) for key in names]
    callables = [value for value in described if inspect.isclass(value) or inspect.isfunction(value)]
    assert callables
    assert [value for value in callables if not value.__doc__] == []


def test_fields_named_in_the_guide_to_migrating_exist():
    table = re.findall(r"^\| `?[^|]*\|([^|]*)\|", (DOCS / "migrating.md").read_text(), flags=re.MULTILINE)
    named = {field for cell in table for field in re.findall(r"`([a-z]+)\.([a-z0-9_]+)`", cell)} - {("train", "py")}
    assert len(named) > 25
    for group, field in named:
        assert hasattr(getattr(Experiment(), group), field), f"{group}.{field}"


def templates() -> set[str]:
    """The sentences in the code, with an ellipsis for every value."""
    found = set()
    for path in [*(ROOT / "gamax").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_sentences_of_the_troubleshooting_page_are_those_of_the_code():
    shown = [block.code.strip() for block in BLOCKS if block.page.name == "troubleshooting.md"]
    assert len(shown) > 20
    code = templates()
    assert [sentence for sentence in shown if sentence not in code and not _begins_one(sentence, code)] == []


def _begins_one(sentence: str, code: set[str]) -> bool:
    """Whether it is the beginning of one that is too long for the page."""
    return sentence.endswith(", …") and any(known.startswith(sentence.removesuffix("…")) for known in code)
