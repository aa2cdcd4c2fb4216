"""PolyU: real noise of five cameras, as JPEG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, pair_words
from gamax.data.examples import ExampleFiles

_REPOSITORY = "PolyU-Real-World-Noisy-Images-Dataset"


class PolyU(ImageSetBuilder):
    """The 100 cropped pairs of PolyU, 512x512, of 40 scenes: one noisy shot, and the mean of many shots of the scene.

    All 100 are the test set of the usual tables; the authors define no training part. Both sides are JPEG and the noise
    is mild: the mean PSNR of the inputs is 35.97 dB. Some scenes are misaligned by a pixel or two. Names are irregular
    in places and kept as published, without the ending `_real`.
    """

    name = "polyu"
    TASK = "real denoising"
    CITATION = """@article{xu2018real,
  title={Real-world Noisy Image Denoising: A New Benchmark},
  author={Xu, Jun and Li, Hui and Liang, Zhetong and Zhang, David and Zhang, Lei},
  journal={arXiv preprint arXiv:1804.02603},
  year={2018}
}"""
    LICENSE = "own licence of The Hong Kong Polytechnic University: like BSD, but non-commercial only"
    HOMEPAGE = f"https://github.com/csjunxu/{_REPOSITORY}"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the repository at the homepage, so that there are CroppedImages/NAME_real.JPG and NAME_mean.JPG"
    )
    COUNTS = {"test": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the cropped pairs."""
        if source.name != "CroppedImages":
            inside = (_REPOSITORY, f"{_REPOSITORY}-master")
            root = find_root(source, ("CroppedImages",), inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
            source = root / "CroppedImages"
        return {"test": pair_words(source, "_real", "_mean")}
