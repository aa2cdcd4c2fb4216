"""REDS: motion blur and JPEG compression of frames of a fast camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, first_folder, list_folders, pair_folders, pair_paths
from gamax.data.examples import ExampleFiles
from gamax.data.images import SUFFIXES, list_images
from gamax.errors import UserError


class REDS(ImageSetBuilder):
    """REDS, the track with JPEG artefacts: 1280x720 frames, blurred, then compressed, of 270 clips of 100 frames.

    train: 240 clips. validation: the 300 frames of the 30 validation clips whose number ends in 9 (000_00000009 to
    029_00000099), which the tables of HINet, MAXIM and NAFNet call REDS-val-300. Either all validation frames are
    there, and these are taken, or only these, as images in `blur_300` and `sharp_300`: the LMDB files of NAFNet must be
    turned into images first. Figures of the challenge itself are means over all 3,000. Examples are named CLIP_FRAME.
    """

    name = "reds"
    TASK = "motion deblurring with JPEG artefacts"
    CITATION = """@inproceedings{nah2019ntire,
  title={NTIRE 2019 Challenge on Video Deblurring and Super-Resolution: Dataset and Study},
  author={Nah, Seungjun and Baik, Sungyong and Hong, Seokil and Moon, Gyeongsik and Son, Sanghyun and Timofte, Radu and
    Lee, Kyoung Mu},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition Workshops},
  year={2019}
}"""
    LICENSE = "CC BY 4.0"
    HOMEPAGE = "https://seungjunnah.github.io/Datasets/reds"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download train_blur_jpeg, train_sharp, val_blur_jpeg and val_sharp from the homepage and extract them, so "
        "that there are REDS/train/{train_blur_jpeg,train_sharp}/CLIP/FRAME.* and "
        "REDS/val/{val_blur_jpeg,val_sharp}/CLIP/FRAME.*"
    )
    COUNTS = {"train": 24000, "validation": 300}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs of all clips that are there."""
        layouts = {
            name: (f"{split}/{name}", name)
            for split, name in (("train", "train_blur_jpeg"), ("val", "val_blur_jpeg"), ("val", "blur_300"))
        }
        markers = [path for paths in layouts.values() for path in paths]
        root = find_root(source, markers, ("REDS",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        train, validation, chosen = (first_folder(root, paths) for paths in layouts.values())
        splits: dict[str, Sequence[ExampleFiles]] = {}
        if train:
            splits["train"] = _pair_clips(train, train.with_name("train_sharp"))
        if chosen:
            splits["validation"] = pair_folders(chosen, chosen.with_name("sharp_300"))
        elif validation:
            splits["validation"] = _pair_clips(validation, validation.with_name("val_sharp"), ending="9")
        return splits


def _pair_clips(blurred: Path, sharp: Path, ending: str = "") -> list[ExampleFiles]:
    if not sharp.is_dir():
        raise UserError(f"no folder '{sharp}', the partner of '{blurred}'")
    # The preparation script of NAFNet moves the frames out of the folders of their clips, to CLIP_FRAME.
    if any(path.suffix.lower() in SUFFIXES for path in blurred.iterdir()):
        return _pair_frames(blurred, sharp, ending, "")
    clips = sorted({clip.name for folder in (blurred, sharp) for clip in list_folders(folder)})
    return [files for clip in clips for files in _pair_frames(blurred / clip, sharp / clip, ending, f"{clip}_")]


def _pair_frames(blurred: Path, sharp: Path, ending: str, prefix: str) -> list[ExampleFiles]:
    inputs, targets = (
        [path for path in list_images(folder) if path.stem.endswith(ending)] for folder in (blurred, sharp)
    )
    if not inputs or not targets:
        raise UserError(f"no frame in '{sharp if inputs else blurred}' has a number that ends in {ending}")
    return pair_paths(inputs, targets, prefix=prefix)
