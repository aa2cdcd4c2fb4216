from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import data
from skimage.metrics import structural_similarity

from gamax.errors import UserError
from gamax.evaluation.alignment import Aligned, align, masked_psnr, masked_ssim

HOMOGRAPHY = np.array([[1.01, 0.01, 3.0], [-0.008, 0.99, -2.0], [1e-5, 2e-5, 1.0]])


@pytest.fixture(scope="module")
def sharp() -> np.ndarray:
    return data.astronaut()[:256, 128:384].astype(np.float32) / 255


def test_a_known_motion_and_gain_are_undone(sharp):
    moved = cv2.warpPerspective(sharp, HOMOGRAPHY, (256, 256), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    aligned = align(np.float32(0.7) * moved, sharp)
    inside = aligned.mask[..., 0] > 0
    # What the motion has pushed out of the picture is not known: a few rows and columns.
    assert 0.95 < inside.mean() < 1
    # Two interpolations of a sharp photograph remain; before, it has 12 dB, and 16 at the right brightness.
    assert masked_psnr(aligned) > 36
    assert masked_ssim(aligned) > 0.985
    plain = 10 * np.log10(1 / np.mean((0.7 * moved - sharp) ** 2))
    assert plain < 13
    np.testing.assert_array_equal(aligned.target[~inside], 0)
    np.testing.assert_array_equal(aligned.restored[~inside], 0)
    np.testing.assert_array_equal(aligned.target[inside], sharp[inside])


def test_an_equal_image_stays_where_it_is(sharp):
    aligned = align(sharp, sharp)
    assert aligned.mask.mean() > 0.99
    assert masked_psnr(aligned) > 60


def test_brightness_alone_is_matched_exactly(sharp):
    # The best factor is the one that undoes it, whatever the motion that ECC then finds.
    np.testing.assert_allclose(align(0.5 * sharp, sharp).restored, align(sharp, sharp).restored, atol=1e-5)


def test_images_without_anything_in_common_are_refused():
    flat = np.full((32, 32, 3), 0.5, np.float32)
    with pytest.raises(UserError, match="too little in common"):
        align(flat, flat)
    with pytest.raises(UserError, match="too little in common"):
        align(np.zeros_like(flat), flat)


def test_masked_psnr_by_hand():
    restored, target, mask = (np.zeros((2, 2, 3), np.float32) for _ in range(3))
    mask[0] = 1
    restored[0], target[0] = 0.5, 0.25
    # Six of twelve values count: the mean of their squared error is 1/16.
    assert masked_psnr(Aligned(restored, target, mask)) == pytest.approx(10 * np.log10(16))
    assert masked_psnr(Aligned(target, target, mask)) == np.inf


def test_masked_ssim_weighs_every_channel_by_its_mask(sharp):
    rng = np.random.default_rng(0)
    target = sharp[:40, :50]
    restored = np.clip(target + rng.normal(0, 0.1, target.shape), 0, 1).astype(np.float32)
    mask = np.ones_like(target)
    mask[:, :20] = 0
    restored, target = restored * mask, target * mask
    _, similarity = structural_similarity(
        *(image.astype(np.float64) for image in (restored, target)),
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    expected = np.mean([similarity[5:-5, 20:-5, channel].mean() for channel in range(3)])
    assert masked_ssim(Aligned(restored, target, mask)) == pytest.approx(expected, abs=1e-12)
