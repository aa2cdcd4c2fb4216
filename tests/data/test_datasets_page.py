from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gamax.cli import main
from gamax.data.builders import BUILDERS
from gamax.data.datasets_page import datasets_page
from gamax.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "datasets.md"


def section(name: str) -> str:
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return found


def test_the_page_says_what_the_code_says():
    assert datasets_page(ROOT / "configs") == PAGE.read_text(), (
        "write the page again: gamax data list --output docs/datasets.md"
    )


def test_every_dataset_has_a_section():
    assert re.findall(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE) == list(BUILDERS)


def test_commands_fit_what_a_dataset_has():
    assert "data check" not in section("sample_photographs")
    assert "--data.source" not in section("sample_photographs")
    # The recipe with the fewest steps; test images of its own; the protocol of its field.
    assert "python train.py configs/gama_ir_s_gopro.py --data.source DIR\n" in section("gopro")
    assert "python eval.py RUN --protocol gopro --data DIR\n" in section("gopro")
    # No test images; no recipe; no training images.
    assert "--data.source DIR --evaluation.data TEST\n" in section("rain13k")
    assert "python train.py configs/paired.py --data.dataset reds --data.source DIR\n" in section("reds")
    assert "train.py" not in section("dnd")
    assert "gamax data check DIR\n" in section("clean_folder")


def test_patterns_of_file_names_are_not_emphasis():
    assert r"source/\*.png" in section("dpdd_dual")
    assert "`input/NAME.*`" in section("paired_folder")


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["gamax", "data", "list", "--output", str(tmp_path / "new/datasets.md")])
    main()
    assert (tmp_path / "new/datasets.md").read_bytes() == PAGE.read_bytes()
    assert "wrote" in capsys.readouterr().out


def test_the_command_refuses_a_folder_and_a_place_without_recipes(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="run this in a checkout"):
        datasets_page(tmp_path / "configs")
    monkeypatch.setattr(sys, "argv", ["gamax", "data", "list", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "must be a file, not the folder" in capsys.readouterr().err
