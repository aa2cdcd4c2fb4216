from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.io import loadmat, whosmat

from gamax.errors import UserError
from gamax.evaluation.submission import write_dnd_submission

NAMES = [f"{photograph:04d}_{crop:02d}" for photograph in range(1, 51) for crop in range(1, 21)]


def crop_of(name: str) -> np.ndarray:
    # Beyond [0, 1] on both sides, and its own.
    return np.linspace(-0.5, 1.5, 4 * 3 * 3, dtype=np.float32).reshape(4, 3, 3) + NAMES.index(name) / 10_000


def crops(names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, crop_of(name)) for name in names)


@pytest.mark.parametrize("order", ["as they are", "shuffled"])
def test_the_files_are_what_the_server_reads(order, tmp_path):
    names = NAMES if order == "as they are" else list(np.random.default_rng(0).permutation(NAMES))
    folder = tmp_path / "new" / "submission"
    files = write_dnd_submission(folder, crops(names))
    assert [path.name for path in files] == [f"{photograph:04d}.mat" for photograph in range(1, 51)]
    assert sorted(folder.iterdir()) == files
    for path in (files[0], files[29], files[-1]):
        kinds = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        assert kinds == {"Idenoised": ((1, 20), "cell"), "israw": ((1, 1), "logical"), "eval_version": ((1,), "char")}
        content = loadmat(path)
        assert content["israw"].item() == 0
        assert content["eval_version"].item() == "1.0"
        for index in range(20):
            cell = content["Idenoised"][0, index]
            assert cell.dtype == np.float32
            np.testing.assert_array_equal(cell, np.clip(crop_of(f"{path.stem}_{index + 1:02d}"), 0, 1))


def test_a_photograph_is_written_as_soon_as_it_is_complete(tmp_path):
    seen = []

    def watched() -> Iterator[tuple[str, np.ndarray]]:
        for name in NAMES:
            seen.append(len(list(tmp_path.iterdir())))
            yield name, crop_of(name)

    write_dnd_submission(tmp_path, watched())
    assert seen == [index // 20 for index in range(1000)]


def test_missing_crops_are_named(tmp_path):
    with pytest.raises(UserError, match=r"2 of the 1000 crops of DND are missing \(0003_07, 0050_20\): do not send"):
        write_dnd_submission(tmp_path, crops([name for name in NAMES if name not in ("0003_07", "0050_20")]))
    assert not (tmp_path / "0003.mat").exists()
    with pytest.raises(UserError, match=r"1000 of the 1000 .* \(0001_01, .*, 0001_20 and on\)"):
        write_dnd_submission(tmp_path, [])


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("0001_01", crop_of("0001_01"), "'0001_01' comes twice"),
        ("0051_01", crop_of("0001_01"), "no crop of DND; they are 0001_01 to 0050_20"),
        ("photo", crop_of("0001_01"), "'photo' comes twice or is no crop"),
        ("0001_02", np.zeros((4, 3), np.float32), r"must be floats \[H, W, 3\], not float32 of shape \[4, 3\]"),
        ("0001_02", np.zeros((4, 3, 1), np.float32), "must be floats"),
        ("0001_02", np.zeros((4, 3, 3), np.uint8), "must be floats .*, not uint8"),
        ("0001_02", np.full((4, 3, 3), np.nan), "values that are no numbers"),
    ],
)
def test_other_crops_are_refused(name, image, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_dnd_submission(tmp_path, [("0001_01", crop_of("0001_01")), (name, image)])
    assert not list(tmp_path.iterdir())
