"""Five photographs that are on every machine gamax is installed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.examples import ExampleFiles, clean
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

    name = "sample_photographs"
    TASK = "any synthetic degradation"
    LICENSE = "CC0 and public domain, but motorcycle_left: for research, as the Middlebury benchmark"
    HOMEPAGE = "https://scikit-image.org"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "nothing to download: the images come with scikit-image"
    COUNTS = {"train": len(_TRAIN), "test": len(_TEST)}

    @classmethod
    def default_source(cls) -> Path:
        """The folder with the images of the installed scikit-image; `UserError` when it is not there."""
        spec = find_spec("skimage")
        if spec is None or spec.origin is None:
            raise UserError("sample_photographs needs the package scikit-image; install it, or use data.source")
        return Path(spec.origin).parent / "data"

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the five photographs."""
        missing = [name for name in (*_TRAIN, *_TEST) if not (source / name).is_file()]
        if missing:
            raise UserError(f"this scikit-image lacks {', '.join(missing)}; install it as a wheel, or use data.source")
        return {
            "train": [clean(source / name) for name in _TRAIN],
            "test": [clean(source / name) for name in _TEST],
        }
