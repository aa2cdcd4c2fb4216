from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.data import astronaut

from gamax.data.jpeg import jpeg
from gamax.errors import UserError

QUALITIES = (5, 20, 50, 75, 95)


def opencv(image: np.ndarray, quality: int, subsample: bool) -> np.ndarray:
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if subsample else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, file = cv2.imencode(".jpg", image[..., ::-1] if image.ndim == 3 else image, flags)
    decoded = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
    return decoded[..., ::-1] if image.ndim == 3 else decoded


@pytest.mark.parametrize("subsample", [True, False])
@pytest.mark.parametrize(("height", "width"), [(96, 112), (61, 83), (33, 49)])
def test_it_does_what_opencv_does(height, width, subsample):
    # The crop has an eye, hair and a flat background.
    image = astronaut()[60 : 60 + height, 170 : 170 + width]
    images = jnp.broadcast_to(jnp.asarray(image, jnp.float32) / 255, (len(QUALITIES), *image.shape))
    coded = np.asarray(jax.jit(jpeg, static_argnums=2)(images, jnp.array(QUALITIES), subsample)) * 255
    assert coded.dtype == np.float32
    np.testing.assert_allclose(coded, np.round(coded), atol=1e-3)
    for result, quality in zip(coded, QUALITIES, strict=True):
        expected = opencv(image, quality, subsample).astype(float)
        error, loss = ((result - expected) ** 2).mean(), ((image - expected) ** 2).mean()
        # 48 dB or more from the real codec, whose integer transform takes some halves the other way.
        assert np.abs(result - expected).mean() < 0.6
        assert error < 1
        assert error < (0.03 if quality < 90 else 0.15) * loss


def test_grey_images_are_coded_as_such():
    image = astronaut()[60:110, 170:230, 1]
    coded = jpeg(jnp.asarray(image, jnp.float32)[None, ..., None] / 255, jnp.array([30]))
    expected = opencv(image, 30, False)
    assert np.abs(np.asarray(coded[0, ..., 0]) * 255 - expected).mean() < 0.35


def test_the_loss_falls_with_the_quality_and_subsampling_costs_colour():
    image = jnp.asarray(astronaut()[None, :64, 160:224], jnp.float32) / 255
    qualities = jnp.array([1, 10, 30, 60, 90, 100])
    for subsample in (True, False):
        coded = jpeg(jnp.broadcast_to(image, (6, 64, 64, 3)), qualities, subsample)
        losses = np.asarray(((coded - image) ** 2).mean(axis=(1, 2, 3)))
        assert (np.diff(losses) < 0).all()
    # Colour that changes with every pixel, at constant luma, is gone with 4:2:0 and stays with 4:4:4.
    shades = np.array([[0.6, 0.4, 0.5], [0.4, 0.502, 0.5]], np.float32)
    stripes = jnp.asarray(shades[np.arange(32) % 2])[None, None] * jnp.ones((1, 32, 1, 1))
    contrast = [float(jnp.ptp(jpeg(stripes, jnp.array([95]), subsample)[0, 8, 8:24, 0])) for subsample in (True, False)]
    assert contrast[0] < 0.03
    assert abs(contrast[1] - 0.2) < 0.03


def test_values_outside_the_range_are_clipped_as_a_file_must():
    images = jnp.array([-0.5, 1.5])[:, None, None, None] * jnp.ones((2, 16, 16, 3))
    coded = jpeg(images, jnp.array([90, 90]))
    np.testing.assert_allclose(coded[0], 0, atol=1e-6)
    np.testing.assert_allclose(coded[1], 1, atol=1e-6)


def test_other_channel_counts_are_refused():
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        jpeg(jnp.zeros((1, 8, 8, 4)), jnp.array([50]))
