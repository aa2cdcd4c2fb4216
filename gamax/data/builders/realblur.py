"""RealBlur: motion blur of a hand-held camera, its sharp side taken at the same time through a beam splitter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root
from gamax.data.examples import ExampleFiles, pair
from gamax.errors import UserError


class _RealBlur(ImageSetBuilder):
    TASK = "motion deblurring"
    CITATION = """@inproceedings{rim2020real,
  title={Real-World Blur Dataset for Learning and Benchmarking Deblurring Algorithms},
  author={Rim, Jaesung and Lee, Haeyun and Won, Jucheol and Cho, Sunghyun},
  booktitle={European Conference on Computer Vision},
  year={2020}
}"""
    LICENSE = "CC BY 4.0"
    HOMEPAGE = "https://github.com/rimchang/RealBlur"
    COUNTS = {"train": 3758, "test": 980}
    LETTER: ClassVar[str] = ""

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs that the list files name; images that they do not name are left out."""
        lists = {split: f"RealBlur_{cls.LETTER}_{split}_list.txt" for split in ("train", "test")}
        root = find_root(source, tuple(lists.values()), ("RealBlur",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {split: _read_list(root / name) for split, name in lists.items() if (root / name).is_file()}


class RealBlurJ(_RealBlur):
    """RealBlur-J: 4,738 pairs of 232 dark scenes as the camera's own JPEG shows them, stored as PNG.

    Networks that were trained on GoPro are tested on its 980 test pairs. Others train on it as well: their figures are
    several dB higher and belong to another table. The two sides are not aligned to the pixel and differ in brightness:
    published figures align the prediction first, so plain PSNR is lower. Examples are named SCENE_NUMBER.
    """

    name = "realblur_j"
    LETTER = "J"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download RealBlur from the homepage and extract it, so that there are RealBlur_J_train_list.txt, "
        "RealBlur_J_test_list.txt and RealBlur-J_ECC_IMCORR_centroid_itensity_ref/SCENE/{blur,gt}/*.png"
    )


class RealBlurR(_RealBlur):
    """RealBlur-R: the scenes of RealBlur-J, developed from the raw data without the camera's processing.

    The images are dark, the sharp sides denoised. What is said of RealBlur-J holds here as well. The two sets show the
    same scenes: a network that was trained on one has seen the other. Examples are named SCENE_NUMBER.
    """

    name = "realblur_r"
    LETTER = "R"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download RealBlur from the homepage and extract it, so that there are RealBlur_R_train_list.txt, "
        "RealBlur_R_test_list.txt and RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref/SCENE/{blur,gt}/*.png"
    )


def _find(root: Path, word: str) -> Path:
    path = root / word
    scene = path.parent.parent
    # Where the list says scene244, the released folder is called scene244_reflect (whether it does is unconfirmed).
    reflected = scene.with_name(f"{scene.name}_reflect")
    return path if scene.is_dir() or not reflected.is_dir() else reflected / path.relative_to(scene)


def _read_list(path: Path) -> list[ExampleFiles]:
    examples = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        by_folder = {file.parent.name: file for file in (_find(path.parent, word) for word in line.split())}
        if set(by_folder) != {"blur", "gt"}:
            raise UserError(f"line {number} of '{path}' does not name one image in gt/ and one in blur/")
        blurred, sharp = by_folder["blur"], by_folder["gt"]
        scene = blurred.parent.parent.name
        examples.append(pair(blurred, sharp, f"{scene}_{blurred.stem.removeprefix('blur_')}"))
    return examples
