"""Five photographs that are on every machine gamax is installed on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder, ImageSetConfig, image_set_config
from gamax.data.examples import ExampleFiles
from gamax.errors import UserError

_TRAIN = ("chelsea.png", "coffee.png", "motorcycle_left.png")
_TEST = ("astronaut.png", "rocket.jpg")


class SamplePhotographs(ImageSetBuilder):
    """Colour photographs from the scikit-image package, for a first run without a download.

    train:
    - chelsea: a cat, by Stefan van der Walt, CC0;
    - coffee: a cup of coffee, by Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0;
    - motorcycle_left: a motorcycle in a garage, from the Middlebury 2014 stereo benchmark by Nesic, Westling, Wang,
      Kitajima, Krathwohl and Scharstein, scaled down (the right image shows the same and is left out).

    test:
    - astronaut: Eileen Collins, NASA Great Images database, no known copyright restrictions;
    - rocket: launch of Falcon 9 with DSCOVR, by SpaceX, released into the public domain.

    The other colour images of the package are no photographs of the everyday kind (tissue, a retina, galaxies).
    """


def sample_photographs_config(cut_size: int = 512, cut_stride: int = 384, encoding: str = "png") -> ImageSetConfig:
    """The configuration of `SamplePhotographs`; `UserError` when the images are not where scikit-image keeps them."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UserError("sample_photographs needs the package scikit-image; install it, or use data.source")
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in (*_TRAIN, *_TEST) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"this scikit-image lacks {', '.join(missing)}; install it as a wheel, or use data.source")
    train, test = ([ExampleFiles(Path(name).stem, folder / name) for name in names] for names in (_TRAIN, _TEST))
    # Times of installation say nothing about the content, so the set is the same one in every environment.
    entries = [(name, (folder / name).stat().st_size) for name in (*_TRAIN, *_TEST)]
    return image_set_config("skimage", train, test, cut_size, cut_stride, encoding, entries)
