from __future__ import annotations

import re
from pathlib import Path

import pytest

from gamax.benchmark import models_page
from gamax.lab.receptive_field import receptive_field
from gamax.models import VARIANTS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def field_on_the_page(name: str) -> int | None:
    (cell,) = re.findall(rf"^\| `{name}` \|(?:[^|]*\|){{4}} ([^|]*) \|", PAGE, flags=re.MULTILINE)
    return None if cell == "image" else int(cell.removesuffix(" px"))


def test_lines_of_the_page_say_what_the_code_says(monkeypatch):
    quick = ("gama_ir_tiny", "nafnet_gopro_w32", "restormer", "unet", "dmphn_1_2_4")
    monkeypatch.setattr(models_page, "VARIANTS", {name: VARIANTS[name] for name in quick})
    fields = {models_page.narrow_model(name): field_on_the_page(name) for name in quick}
    monkeypatch.setattr(models_page, "receptive_field", fields.__getitem__)
    lines = models_page.models_page().splitlines()
    assert sum(line.startswith("| `") for line in lines) == len(quick)
    assert set(lines) <= set(PAGE.splitlines()), "write the page again: gamax models --output docs/models.md"


@pytest.mark.slow
def test_the_page_says_what_the_code_says(monkeypatch):
    # Measuring how far all networks see takes minutes; that part is taken from the page, and tested below.
    fields = {name: field_on_the_page(name) for name in VARIANTS}
    narrow = {models_page.narrow_model(name): field for name, field in fields.items()}
    monkeypatch.setattr(models_page, "receptive_field", narrow.__getitem__)
    assert models_page.models_page() == PAGE, "write the page again: gamax models --output docs/models.md"


@pytest.mark.parametrize("name", ["unet", "plainnet_gopro_w32", "dmphn_1_2_4", "gama_ir_s"])
def test_receptive_fields_on_the_page_are_right(name):
    model = models_page.narrow_model(name)
    assert receptive_field(model) == field_on_the_page(name)
