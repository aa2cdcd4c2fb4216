"""RealDOF: defocus blur, its sharp side taken at the same time through a beam splitter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, pair_in_order
from gamax.data.examples import ExampleFiles
from gamax.data.images import list_images


class RealDOF(ImageSetBuilder):
    """RealDOF: 50 pairs of about 2320x1536 for testing, of two cameras that share a lens.

    Single-image models trained on DPDD are tested on it. The two sides are not aligned to the pixel everywhere, and
    some tables are of images that were scaled down first: say which. Whether blurred and sharp images have equal names
    is unconfirmed: if not, they are paired in natural order. Examples are named as the blurred images.
    """

    name = "realdof"
    TASK = "defocus deblurring"
    CITATION = """@inproceedings{lee2021iterative,
  title={Iterative Filter Adaptive Network for Single Image Defocus Deblurring},
  author={Lee, Junyong and Son, Hyeongseok and Rim, Jaesung and Cho, Sunghyun and Lee, Seungyong},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2021}
}"""
    LICENSE = "none stated for the images"
    HOMEPAGE = "https://github.com/codeslake/IFAN"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the RealDOF test set from the homepage and extract it, so that there are "
        "RealDOF/{source,target}/*.png"
    )
    COUNTS = {"test": 50}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        root = find_root(source, ("source",), ("RealDOF",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {"test": pair_in_order(list_images(root / "source"), list_images(root / "target"))}
