"""BSDS500: the classical photographs for training and choosing denoisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles, clean
from gamax.data.images import check_unique_stems, list_images


class BSDS500(ImageSetBuilder):
    """BSDS500: 500 colour JPEG photographs of 481x321 or 321x481 pixels, split as the field of denoising does.

    `train` is the union of its folders `train` and `test` (200 each), which papers call BSD400; `validation` is its
    folder `val` (100). A flat folder `BSD400` is read as well. Do not take `Train400` of DnCNN for it: those are small
    gray cuts.

    Overlaps: cbsd68 and bsd68 are 68 of the 100 images in `val`, so what is chosen on `validation` is chosen on them,
    and one must not train on it. The clean pictures of rain100h and rain100l are 75 images of the folder `train` and 25
    of `val`; rain800 uses many others. Do not train a deraining network on this set.
    """

    name = "bsds500"
    TASK = "any synthetic degradation"
    CITATION = """@article{arbelaez2011contour,
  title={Contour Detection and Hierarchical Image Segmentation},
  author={Arbelaez, Pablo and Maire, Michael and Fowlkes, Charless and Malik, Jitendra},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume={33},
  number={5},
  pages={898--916},
  year={2011}
}"""
    LICENSE = "commonly described as for non-commercial research and education (unconfirmed)"
    HOMEPAGE = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download BSR_bsds500.tgz from the homepage and extract it, so that there are "
        "BSR/BSDS500/data/images/{train,val,test}/NUMBER.jpg"
    )
    COUNTS = {"train": 400, "validation": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        inside = ("images", "data/images", "BSDS500", "BSDS500/data/images", "BSR/BSDS500/data/images")
        for root in (source, *(source / name for name in inside)):
            splits = {"train": _images(root, ("train", "test")), "validation": _images(root, ("val",))}
            if any(splits.values()):
                return {split: examples for split, examples in splits.items() if examples}
        return {"train": clean_images(source, ("BSD400", "BSDS400"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}


def _images(root: Path, folders: Sequence[str]) -> list[ExampleFiles]:
    paths = [path for name in folders if (root / name).is_dir() for path in list_images(root / name)]
    if paths:
        check_unique_stems(paths)
    return [clean(path) for path in paths]
