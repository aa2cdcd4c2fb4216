from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.benchmark.cost import model_multiply_adds
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.interop.torch_weights import export_tensors
from gamax.models import abstract_params, count_parameters
from gamax.models.unet import UNet


def test_it_has_the_published_size_and_cost():
    params = abstract_params(UNet())
    assert count_parameters(params) == 9_503_779
    assert model_multiply_adds(UNet(), params, 256, 256) / 1e9 == pytest.approx(13.88, abs=0.006)


def test_it_equals_a_twin_in_pytorch(random_params, torch):
    nn, width = torch.nn, 2

    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            convs = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
            self.block = nn.Sequential(convs[0], nn.LeakyReLU(0.01), convs[1], nn.LeakyReLU(0.01))
            self.conv11 = nn.Conv2d(inputs, outputs, 1)

        def forward(self, x):
            return self.block(x) + self.conv11(x)

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [3, *(width << level for level in range(5))]
            for level in range(1, 6):
                setattr(self, f"ConvBlock{level}", Block(widths[level - 1], widths[level]))
            for level in range(1, 5):
                setattr(self, f"pool{level}", nn.Conv2d(widths[level], widths[level], 4, stride=2, padding=1))
                setattr(self, f"upv{10 - level}", nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2))
                setattr(self, f"ConvBlock{10 - level}", Block(widths[level + 1], widths[level]))
            self.conv10 = nn.Conv2d(width, 3, 3, padding=1)

        def forward(self, images):
            x, skips = images, []
            for level in range(1, 5):
                skips.append(getattr(self, f"ConvBlock{level}")(x))
                x = getattr(self, f"pool{level}")(skips[-1])
            x = self.ConvBlock5(x)
            for level in range(6, 10):
                x = torch.cat([getattr(self, f"upv{level}")(x), skips.pop()], 1)
                x = getattr(self, f"ConvBlock{level}")(x)
            return images + self.conv10(x)

    model = UNet(width)
    params = random_params(model, (1, 16, 16, 3))
    tensors = export_tensors(params, key_map(model))
    assert len(tensors) == 72
    twin = Twin()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=True)
    images = np.random.default_rng(0).random((2, 48, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = twin(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    result = jax.jit(model.apply)({"params": params}, jnp.asarray(images))
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())

    # Sides that 16 does not divide are padded by reflection and cropped.
    result = jax.jit(model.apply)({"params": params}, jnp.asarray(images[:, :40, :27]))
    padded = np.pad(images[:, :40, :27], ((0, 0), (0, 8), (0, 5), (0, 0)), mode="reflect")
    with torch.no_grad():
        expected = twin(torch.from_numpy(padded.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(result, expected[:, :40, :27], atol=1e-5 * abs(expected).max())


def test_what_cannot_be_built_is_named():
    with pytest.raises(UserError, match="UNet needs a width of at least 1, not 0"):
        UNet(0)
