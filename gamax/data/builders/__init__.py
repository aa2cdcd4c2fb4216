"""The `tensorflow_datasets` builders, one dataset a file, and the table of them. They need no TensorFlow."""

from __future__ import annotations

from gamax.data.builders.bsd68 import BSD68
from gamax.data.builders.bsds500 import BSDS500
from gamax.data.builders.cbsd68 import CBSD68
from gamax.data.builders.clean_folder import CleanFolder
from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.dfwb import DFWB
from gamax.data.builders.div2k import DIV2K
from gamax.data.builders.dnd import DND
from gamax.data.builders.dpdd import DPDD, DPDDDual
from gamax.data.builders.flickr2k import Flickr2K
from gamax.data.builders.gopro import GoPro
from gamax.data.builders.hide import HIDE
from gamax.data.builders.kodak24 import Kodak24
from gamax.data.builders.mcmaster import McMaster
from gamax.data.builders.paired_folder import PairedFolder
from gamax.data.builders.polyu import PolyU
from gamax.data.builders.rain13k import Rain13K
from gamax.data.builders.rain100h import Rain100H
from gamax.data.builders.rain100l import Rain100L
from gamax.data.builders.rain800 import Rain800
from gamax.data.builders.realblur import RealBlurJ, RealBlurR
from gamax.data.builders.realdof import RealDOF
from gamax.data.builders.reds import REDS
from gamax.data.builders.reside import RESIDEIndoor, RESIDEOutdoor
from gamax.data.builders.sample_photographs import SamplePhotographs
from gamax.data.builders.set12 import Set12
from gamax.data.builders.sidd import SIDD, SIDDBenchmark
from gamax.data.builders.test100 import Test100
from gamax.data.builders.test1200 import Test1200
from gamax.data.builders.test2800 import Test2800
from gamax.data.builders.urban100 import Urban100
from gamax.data.builders.wed import WED
from gamax.errors import UserError, nearest

BUILDERS: dict[str, type[ImageSetBuilder]] = {
    builder.name: builder
    for builder in (
        SamplePhotographs,
        CleanFolder,
        PairedFolder,
        SIDD,
        SIDDBenchmark,
        DND,
        PolyU,
        GoPro,
        HIDE,
        RealBlurJ,
        RealBlurR,
        REDS,
        DPDD,
        DPDDDual,
        RealDOF,
        Rain13K,
        Test100,
        Rain100H,
        Rain100L,
        Test2800,
        Test1200,
        Rain800,
        RESIDEIndoor,
        RESIDEOutdoor,
        DIV2K,
        Flickr2K,
        WED,
        BSDS500,
        DFWB,
        CBSD68,
        Kodak24,
        McMaster,
        Urban100,
        Set12,
        BSD68,
    )
}
"""Every dataset by its name; `gamax data list` prints them."""


def find_builder(name: str) -> type[ImageSetBuilder]:
    """The builder of the dataset `name`; `UserError` with the nearest name when there is none."""
    if name not in BUILDERS:
        raise UserError(f"unknown dataset {nearest(name, list(BUILDERS))}; `gamax data list` prints all")
    return BUILDERS[name]
