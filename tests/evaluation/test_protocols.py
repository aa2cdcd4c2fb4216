from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from gamax.data.images import to_float, to_integers
from gamax.errors import UserError
from gamax.evaluation.metrics import psnr
from gamax.evaluation.protocols import PROTOCOLS, find_protocol, protocol_input


@pytest.mark.parametrize(
    ("sigma", "first_pixel", "unclipped", "rounded"),
    [
        (15, (0.7704345, 0.6588328, 0.66149443), 24.625360, 24.905096),
        (25, (0.839613, 0.67452526, 0.6998763), 20.188385, 20.641955),
        (50, (1.0125593, 0.7137563, 0.795831), 14.167785, 15.283892),
    ],
)
def test_the_noise_is_that_of_the_field(sigma, first_pixel, unclipped, rounded):
    crop = data.astronaut()[:256, 128:384]
    noisy = protocol_input(find_protocol(f"gauss-color-{sigma}"), crop)
    assert noisy.dtype == np.float32
    # The figures are printed with all the digits of a float32.
    np.testing.assert_array_equal(noisy[0, 0], np.array(first_pixel, np.float32))
    assert round(psnr(noisy, crop / 255, 1), 6) == unclipped
    assert round(psnr(to_integers(noisy), crop, 255), 6) == rounded


def test_every_image_has_the_same_noise():
    protocol, image = PROTOCOLS["gauss-color-25"], np.full((4, 5, 3), 128, np.uint8)
    np.testing.assert_array_equal(protocol_input(protocol, image), protocol_input(protocol, image))


def test_16_bit_targets_get_the_noise_of_8_bit_ones():
    protocol, image = PROTOCOLS["gauss-color-50"], np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    # 257 = 65535 / 255: the same values in both depths, up to a rounding of float32.
    deep = protocol_input(protocol, image.astype(np.uint16) * 257)
    np.testing.assert_allclose(deep, protocol_input(protocol, image), atol=2e-7)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_either_makes_its_inputs_or_is_paired(name):
    protocol = find_protocol(name)
    assert protocol.name == name
    assert protocol.paired == (name == "paired-rgb") == (protocol.noise_sigma is None)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown protocol 'gauss-colour-25' \(did you mean 'gauss-color-25'\?\)"):
        find_protocol("gauss-colour-25")


def test_to_integers_clamps_and_rounds():
    values = np.array([[[-0.1, 0.0, 0.4 / 255, 0.6 / 255, 127.6 / 255, 254.4 / 255, 254.6 / 255, 1.0, 7.0]]])
    np.testing.assert_array_equal(to_integers(values), [[[0, 0, 0, 1, 128, 254, 255, 255, 255]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_one_and_8_bits_survive_the_way_there_and_back(dtype):
    values = np.linspace(0, np.iinfo(dtype).max, 256).round().astype(dtype).reshape(16, 16, 1)
    floats = to_float(values)
    assert (floats.dtype, floats.min(), floats.max()) == (np.float32, 0, 1)
    np.testing.assert_array_equal(to_integers(floats).ravel(), np.arange(256))
