"""GoPro: motion blur made by averaging the frames of a fast camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, list_folders, pair_folders
from gamax.data.examples import ExampleFiles


class GoPro(ImageSetBuilder):
    """GOPRO_Large: 3,214 pairs of 1280x720 frames, blurred by averaging 7 to 13 sharp frames of a 240 fps camera.

    22 sequences for training, 11 for testing. The inputs are the folders `blur` (averaged as stored), as in the usual
    tables, not `blur_gamma`. Examples are named SEQUENCE_FRAME.
    """

    name = "gopro"
    TASK = "motion deblurring"
    CITATION = """@inproceedings{nah2017deep,
  title={Deep Multi-scale Convolutional Neural Network for Dynamic Scene Deblurring},
  author={Nah, Seungjun and Kim, Tae Hyun and Lee, Kyoung Mu},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}"""
    LICENSE = "CC BY 4.0"
    HOMEPAGE = "https://seungjunnah.github.io/Datasets/gopro"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download GOPRO_Large.zip from the homepage and extract it, so that there are "
        "GOPRO_Large/{train,test}/SEQUENCE/{blur,sharp}/FRAME.png"
    )
    COUNTS = {"train": 2103, "test": 1111}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs of all sequences."""
        root = find_root(source, ("train", "test"), ("GOPRO_Large",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {
            split: [
                files
                for sequence in list_folders(root / split)
                for files in pair_folders(sequence / "blur", sequence / "sharp", prefix=f"{sequence.name}_")
            ]
            for split in ("train", "test")
            if (root / split).is_dir()
        }
