"""Figures in README and docs are those of the result files that they cite, and the tables are made from these files."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from gamax.evaluation.protocols import PROTOCOLS
from gamax.interop.weights import sha256
from gamax.pretrained import PRETRAINED

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = sorted((RESULTS / "restoration").glob("*.*.*.json"))

NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNIT = r"(?:dB|ms|s|GiB|MiB|GB|MB|min|%|seconds?|minutes?|hours?|h)"
FIGURE = re.compile(rf"(?<![\w.])({NUMBER})(?: (?:to|and|or) ({NUMBER}))?\s?{UNIT}(?!\w)")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for their module.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


make_results = script("make_results")


def blocks(text: str) -> list[str]:
    """Paragraphs, list items and rows of tables of a page, without code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?=\s*(?:[-*|]|\d+\.) ?)", "\n", text, flags=re.MULTILINE)
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


def cited_files(block: str, page: Path, results: Path) -> list[Path]:
    """The files in the folder of results, or in a folder of it, that a block links to."""
    files: list[Path] = []
    for link in re.findall(r"\]\(([^)#\s]+)", block):
        target = (page.parent / link).resolve()
        if target.is_relative_to(results) and target.exists():
            files += sorted(target.glob("*.json")) if target.is_dir() else [target]
    return [file for file in files if file.suffix in (".md", ".json", ".jsonl")]


@lru_cache
def numbers_of(file: Path) -> frozenset[Decimal]:
    text = file.read_text()
    if file.suffix == ".json":
        # The figures of the file itself: among those of single images nearly every number would be found.
        text = " ".join(str(value) for value in json.loads(text).values() if isinstance(value, int | float))
    return frozenset(Decimal(number.replace(",", "")) for number in re.findall(NUMBER, text))


def is_stated(figure: str, numbers: set[Decimal]) -> bool:
    """Whether one of the numbers is the figure, or the figure is one of them rounded to its digits."""
    wanted = Decimal(figure.replace(",", ""))
    digits = Decimal(1).scaleb(wanted.as_tuple().exponent)
    return any(
        number.quantize(digits, rounding) == wanted
        for number in numbers
        if abs(number - wanted) <= digits
        for rounding in (ROUND_HALF_UP, ROUND_HALF_EVEN)
    )


def offenders(page: Path, results: Path) -> list[str]:
    """Figures with a unit that no cited result file holds."""
    found = []
    for block in blocks(page.read_text()):
        files = cited_files(block, page, results)
        if not files:
            continue
        numbers: set[Decimal] = set().union(*(numbers_of(file) for file in files))
        # Numbers in names and addresses of links are no figures.
        prose = re.sub(r"\]\([^)]*\)|`[^`]*`", "]", block)
        for match in FIGURE.finditer(prose):
            missing = [figure for figure in match.groups() if figure and not is_stated(figure, numbers)]
            if missing:
                names = ", ".join(file.name for file in files[:3])
                found.append(f"{page.name}: '{match[0]}' is not in {names}: ...{block.strip()[:80]}...")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_in_prose_are_in_the_files_that_they_cite(page):
    found = offenders(page, RESULTS)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("It gains 1.63 GiB and 1,234 ms ([there](results/a.md)).", []),
        ("It takes 1.6 GiB, 12 to 13 s, 71 % ([there](results/a.md)).", []),
        ("It takes 1.7 GiB ([there](results/a.md)).", ["1.7 GiB"]),
        ("It takes 12 to 14 s ([there](results/a.md)).", ["12 to 14 s"]),
        ("It takes 12.50 s ([there](results/a.md)).", ["12.50 s"]),
        ("- fine, 71 % ([there](results/a.md))\n- not cited: 99 s\n- wrong: 72 % [there](results/a.md)", ["72 %"]),
        ("| 99 s | elsewhere |\n| 98 s | [there](results/a.md) |", ["98 s"]),
        ("```\n99 s [there](results/a.md)\n```\nThe option `99 s` is 5 samples ([there](results/a.md)).", []),
        ("It takes 99 s ([elsewhere](other.md)).", []),
    ],
)
def test_a_figure_that_is_not_in_the_cited_file_is_found(tmp_path, sentence, wrong):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a.md").write_text("1.63 GiB, 1234 ms, | 12.4 | 13.0 |, 70.6 %\n")
    page = tmp_path / "page.md"
    page.write_text(sentence)
    found = offenders(page, (tmp_path / "results").resolve())
    assert [re.findall("'(.*?)'", line)[0] for line in found] == wrong


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/index.md"], ids=lambda page: page.name)
def test_the_front_pages_state_no_figure_without_its_source(page):
    made = re.compile(f"{make_results.START}.*{make_results.END}", re.DOTALL)
    without = [block for block in blocks(made.sub("", page.read_text())) if not cited_files(block, page, RESULTS)]
    assert [match[0] for block in without for match in FIGURE.finditer(re.sub(r"`[^`]*`", "", block))] == []


def test_the_plot_shows_the_results():
    text = Image.open(ROOT / "docs/images/results_denoise.png").text
    assert text["Description"] == make_results.plotted(make_results.read_results(RESULTS / "restoration"))


def test_the_pages_are_what_the_script_makes_of_the_result_files():
    made = make_results.pages()
    assert RESULTS / "restoration.md" in made
    assert (RESULTS / "equal_budget.md" in made) == (RESULTS / "equal_budget.json").exists()
    different = [path.name for path, text in made.items() if path.read_text() != text]
    assert not different, f"run python docs/make_results.py, which changes {', '.join(different)}"


def test_a_block_is_replaced_between_its_comments():
    page = f"before\n{make_results.START}\nold\n{make_results.END}\nafter\n"
    block = make_results.summary_block("there.md")
    made = make_results.with_block(page, block)
    assert made == f"before\n{block}\nafter\n"
    assert "old" not in made
    assert make_results.with_block("no comments", block) == "no comments"


def test_there_are_results_of_every_task():
    names = {tuple(path.name.split(".")[:3]) for path in FILES}
    for task in make_results.TASKS:
        for method in ("input", *task.weights):
            assert {(method, p, name) for p in task.protocols for name in task.sets} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_result_file_says_what_it_is(path):
    text = path.read_text()
    assert not re.search(r'"(?:[^"]* )?/(?:work|tmp|home|root|mnt|Users)\b', text), "a folder of a machine"
    record = json.loads(text)
    method, protocol, name = path.name.removesuffix(".json").split(".")
    assert (record["method"], record["protocol"], record["data"]) == (method, protocol, name)
    assert record["protocol_details"]["name"] in PROTOCOLS
    assert record["inference"]
    assert record["environment"]["command"]
    assert {"python", "gamax", "jax", "numpy"} <= record["versions"].keys()
    assert len(record["per_image"]) == record["images"] > 0
    assert len({row["name"] for row in record["per_image"]}) == record["images"]
    for metric in ("psnr", "ssim", "psnr_input"):
        mean = sum(row[metric] for row in record["per_image"]) / record["images"]
        assert record[metric] == pytest.approx(mean, abs=1e-9)
    if method in make_results.METHODS:
        packages = {"input": 0, "wavelet": 2, "bm3d": 2}.get(method, 1)
        others = {"scipy", "scikit-image", "PyWavelets", "bm3d", "bm4d", "opencv-python-headless"}
        assert len(others & record["versions"].keys()) == packages
        return
    assert record["weights"] == method
    assert record["weights_sha256"] == sha256(PRETRAINED[method].path)


def test_the_times_are_those_of_these_weights():
    timed = json.loads((RESULTS / "restoration/seconds.json").read_text())["methods"]
    assert {name: timed[name]["weights_sha256"] for name in PRETRAINED} == {
        name: sha256(weights.path) for name, weights in PRETRAINED.items()
    }


def test_methods_in_one_table_have_restored_the_same_images():
    images: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for path in FILES:
        record = json.loads(path.read_text())
        names = tuple(row["name"] for row in record["per_image"])
        images.setdefault((record["protocol"], record["data"]), set()).add(names)
    assert {key: len(found) for key, found in images.items()} == dict.fromkeys(images, 1)


def test_published_figures_have_sources_and_are_not_called_ours():
    rows = json.loads((RESULTS / "published.json").read_text())["rows"]
    assert len(rows) > 30
    for row in rows:
        assert row["source"]
        assert isinstance(row["confirmed"], bool)
        assert 20 < row["psnr"] < 45
        assert row["set"] in make_results.SETS
    page = (RESULTS / "restoration.md").read_text()
    ours, _, theirs = page.partition("## Published numbers")
    for source in {row["source"] for row in rows}:
        assert source in theirs
        assert source not in ours
