"""Whole-clip passes through the Wan VAE against diffusers' own, at Wan 2.1's layout and others."""

import copy
import inspect

import pytest
import torch
from diffusers import AutoencoderKLWan

from mimicvideo.execution import Execution
from mimicvideo.video import wan


def small_vae(**options) -> AutoencoderKLWan:
    torch.manual_seed(0)
    defaults = {"base_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
    return AutoencoderKLWan(**(defaults | options)).eval()


@pytest.mark.parametrize("frames", [1, 5, 17])
@pytest.mark.parametrize("layout", [[False, True, True], [True, True, False], [True, False, True]])
def test_passes_equal_diffusers(frames: int, layout: list[bool]) -> None:
    vae = small_vae(temperal_downsample=layout)
    pixels = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    fast = copy.deepcopy(vae)
    wan.speed_up_images(fast)
    with torch.no_grad():
        moments = vae.encode(pixels).latent_dist.parameters
        latents = moments.chunk(2, dim=1)[0]
        decoded = vae.decode(latents).sample
        for model in (vae, fast):
            torch.testing.assert_close(wan.encode_moments(model, pixels), moments, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(wan.decode_pixels(model, latents).clamp(-1, 1), decoded, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.encode(pixels).latent_dist.parameters, moments, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.decode(latents).sample, decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clips", [1, 2])
def test_fast_encoder_is_the_plain_one(clips: int) -> None:
    vae = small_vae().double()
    pixels = torch.rand(clips, 3, 9, 16, 24, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        moments = wan.FastEncoder(vae, Execution(compile=None))(pixels)
        torch.testing.assert_close(moments, wan.encode_moments(vae, pixels), rtol=1e-10, atol=1e-10)


def test_a_deep_copy_of_the_fast_encoder_follows_its_own_weights() -> None:
    encoder = wan.FastEncoder(small_vae(), Execution(compile=None))
    twin = copy.deepcopy(encoder)
    twin.vae.double()
    pixels = torch.rand(1, 3, 9, 16, 24, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        for weight in twin.vae.parameters():
            weight.mul_(1.05)
        torch.testing.assert_close(twin(pixels), wan.encode_moments(twin.vae, pixels), rtol=1e-10, atol=1e-10)
        expected = wan.encode_moments(encoder.vae, pixels.float())
        torch.testing.assert_close(encoder(pixels.float()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_the_compiled_encoder_is_the_plain_one_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "encode_moments", inspect.unwrap(wan.encode_moments))  # checks of annotations cannot be compiled
    vae = small_vae().cuda()
    encoder = wan.FastEncoder(vae, Execution())
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        for frames in (5, 1, 5):
            for _ in range(2):
                pixels = torch.rand(1, 3, frames, 32, 48, device="cuda") * 2 - 1
                torch.testing.assert_close(encoder(pixels), wan.encode_moments(vae, pixels), rtol=1e-3, atol=1e-4)
    assert encoder.graphs is not None and len(encoder.graphs) == 2


def test_gradients_equal_diffusers() -> None:
    pixels = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    gradients = []
    for whole in (False, True):
        vae = small_vae()
        latents = (wan.encode_moments(vae, pixels) if whole else vae.encode(pixels).latent_dist.parameters).chunk(2, dim=1)[0]
        output = wan.decode_pixels(vae, latents).clamp(-1, 1) if whole else vae.decode(latents).sample
        (output - pixels).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in vae.named_parameters()})
    assert len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert gradients[1][name] is None
        else:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_latents_are_causal() -> None:
    """The first latents of a clip are those of its first frames alone: a policy may encode only what it has observed."""
    vae, pixels = small_vae(), torch.rand(1, 3, 9, 16, 16)
    with torch.no_grad():
        whole, observed = wan.encode_moments(vae, pixels), wan.encode_moments(vae, pixels[:, :, :5])
    torch.testing.assert_close(whole[:, :, :2], observed, rtol=1e-4, atol=1e-5)


def test_other_layouts_are_left_to_diffusers() -> None:
    assert wan.supported(small_vae())
    tiled = small_vae()
    tiled.enable_tiling()
    assert not wan.supported(tiled)
    assert not wan.supported(small_vae(is_residual=True))
