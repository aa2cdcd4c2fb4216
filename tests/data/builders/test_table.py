from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gamax.data.builders import BUILDERS, core, find_builder
from gamax.data.builders.clean_folder import CleanFolder
from gamax.errors import UserError

OWN = {"clean_folder", "paired_folder", "sample_photographs"}
FOLDER = Path(core.__file__).parent


@pytest.mark.parametrize("name", BUILDERS)
def test_every_dataset_says_what_it_is(name):
    builder = BUILDERS[name]
    assert builder.name == name
    assert builder.__doc__
    assert builder.TASK
    assert builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert not builder.MANUAL_DOWNLOAD_INSTRUCTIONS.endswith(".")
    assert builder.CHANNELS in (1, 3)
    if name not in OWN:
        assert builder.LICENSE
        assert builder.HOMEPAGE.startswith("http")
        assert re.match(r"@\w+\{", builder.CITATION)
        assert builder.CITATION.count("{") == builder.CITATION.count("}")
        assert builder.COUNTS
        assert all(count > 0 for count in builder.COUNTS.values())


def test_every_builder_is_in_the_table_and_in_a_test():
    classes = {
        name
        for path in FOLDER.glob("*.py")
        for name in re.findall(r"^class ([A-Z]\w+)\((?:ImageSetBuilder|_\w+)\)", path.read_text(), re.MULTILINE)
    }
    assert classes == {builder.__name__ for builder in BUILDERS.values()}
    tests = "".join(path.read_text() for path in Path(__file__).parent.parent.rglob("test_*.py"))
    for name, builder in BUILDERS.items():
        assert re.search(rf'\b{builder.__name__}\b|"{name}"', tests), name


@pytest.mark.parametrize("name", BUILDERS)
def test_an_empty_folder_says_what_to_download(name, tmp_path):
    builder = BUILDERS[name]
    with pytest.raises(UserError) as caught:
        builder.examples(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    if name not in OWN:
        assert "download" in message


def test_a_wrong_name_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown dataset 'gopo' \(did you mean 'gopro'\?\); `gamax data list` prints"):
        find_builder("gopo")


def test_the_builders_stay_out_of_the_registry_of_tfds_and_need_no_tensorflow():
    code = (
        "import sys, tensorflow_datasets as tfds; before = set(tfds.list_builders(with_community_datasets=False));"
        "import gamax.data.builders;"
        "assert set(tfds.list_builders(with_community_datasets=False)) == before;"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_stops_at_the_first_damaged_image(tmp_path, save, monkeypatch):
    (tmp_path / "0.png").write_text("no image")
    for i in range(1, 200):
        save(tmp_path / f"{i}.png", (8, 8))
    reads = []
    from gamax.data import examples

    read_images = examples.read_images
    monkeypatch.setattr(
        examples,
        "read_images",
        lambda files, channels: (time.sleep(0.005), reads.append(files), read_images(files, channels))[2],
    )
    with pytest.raises(UserError, match=r"0.png' is not an image"):
        core.read_facts(core.image_set_config(CleanFolder, tmp_path), 3)
    count = len(reads)
    time.sleep(0.1)
    assert len(reads) == count < 100
