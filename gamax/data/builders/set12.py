"""Set12: the classical gray test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class Set12(ImageSetBuilder):
    """Set12: 12 gray images, seven of 256x256 and five of 512x512 pixels, to which noise is added for testing.

    Cameraman, house, peppers, starfish, butterfly, airplane, parrot, Lena, Barbara, boat, man and couple, as they come
    with DnCNN. With so few images, differences of a few hundredths of a decibel say little.
    """

    name = "set12"
    TASK = "Gaussian denoising"
    CITATION = """@article{zhang2017beyond,
  title={Beyond a {Gaussian} Denoiser: Residual Learning of Deep {CNN} for Image Denoising},
  author={Zhang, Kai and Zuo, Wangmeng and Chen, Yunjin and Meng, Deyu and Zhang, Lei},
  journal={IEEE Transactions on Image Processing},
  volume={26},
  number={7},
  pages={3142--3155},
  year={2017}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/cszn/DnCNN"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "download testsets/Set12 from the homepage, so that there are Set12/01.png to 12.png"
    COUNTS = {"test": 12}
    CHANNELS = 1

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {"test": clean_images(source, ("Set12",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
