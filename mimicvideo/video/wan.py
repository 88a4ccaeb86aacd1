"""Whole-clip passes through diffusers' Wan VAE: the same function as its frame-by-frame ones, in far fewer kernels.

`AutoencoderKLWan.encode` feeds 1, 4, 4, ... frames through the encoder and carries the tails of every causal convolution
along; `decode` goes latent frame by latent frame. Padding the whole clip once with zeros in front gives the same numbers.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from jaxtyping import Float
from torch import Tensor

from mimicvideo.execution import CudaGraphs, Execution, Twin

PIXELS_PER_LATENT = 8  # along height and width
FRAMES_PER_LATENT = 4  # after the first frame, which has a latent frame of its own


def encode_moments(
    vae: AutoencoderKLWan, pixels: Float[Tensor, "batch 3 frames height width"]
) -> Float[Tensor, "batch two_z_channels z_frames z_height z_width"]:
    """Mean and log variance of the posterior, concatenated along the channels. `pixels` in [-1, 1], frames = 1 + 4n."""
    encoder: Any = vae.encoder
    x = encoder.conv_in(pixels)
    for layer in encoder.down_blocks:
        x = layer(x)
        if isinstance(layer, WanResample) and layer.mode == "downsample3d" and x.shape[2] > 1:
            # The first frame is a clip of its own; windows of three frames at stride two follow.
            x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    x = encoder.mid_block(x)
    return vae.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x))))


def decode_pixels(
    vae: AutoencoderKLWan, latents: Float[Tensor, "batch z_channels z_frames z_height z_width"]
) -> Float[Tensor, "batch 3 frames height width"]:
    """Reconstruction, not clamped; a VAE's samples lie in [-1, 1]. `latents` as the encoder gives them, not normalised."""
    decoder: Any = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        for layer in block.upsamplers or []:
            if layer.mode == "upsample3d" and x.shape[2] > 1:
                # Every latent frame but the first becomes two; the first is not seen by the others' convolution.
                rest = layer.time_conv(x[:, :, 1:])
                rest = rest.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
                x = torch.cat([x[:, :, :1], rest], dim=2)
            x = layer(x)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))


class FastEncoder:
    """`encode_moments` for one clip at a time, as a policy needs it: channels last, compiled, replayed as a CUDA graph.

    Channels last, cuDNN's convolutions copy nothing, and the compiler joins each norm, its SiLU and the padding that follows.

    Args:
        vae: It stays as it is.
        execution: Which of these.
    """

    def __init__(self, vae: AutoencoderKLWan, execution: Execution) -> None:
        self.vae = vae
        self.graphs = CudaGraphs() if execution.cuda_graphs else None
        self._twin = Twin([vae.encoder, vae.quant_conv], partial(_channels_last, vae))
        self._encode: Callable[..., Tensor] = encode_moments
        if execution.compile is not None:
            self._encode = torch.compile(encode_moments, mode=execution.compile, dynamic=False)

    def __call__(
        self, pixels: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch two_z_channels z_frames z_height z_width"]:
        """As `encode_moments`. Several clips at once go the plain way: what is saved counts for one alone, and shapes vary."""
        if len(pixels) > 1 or torch.is_grad_enabled():
            return encode_moments(self.vae, pixels)
        vae = self._twin()

        def encode(pixels: Tensor) -> Tensor:
            return self._encode(vae, pixels.contiguous(memory_format=torch.channels_last_3d))

        return encode(pixels) if self.graphs is None else self.graphs(self._twin.made, encode, pixels)


def _channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """A twin that can only encode, its three-dimensional kernels with the channels last in memory."""
    twin: Any = copy.copy(vae)
    twin._modules = {
        name: copy.deepcopy(part).requires_grad_(False) for name, part in (("encoder", vae.encoder), ("quant_conv", vae.quant_conv))
    }
    for weight in twin.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    return twin


class _CausalConv3d(WanCausalConv3d):
    """The same convolution; on a single frame without past, the weights that would meet only zeros are left out."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if x.shape[2] > 1 or cache_x is not None or self._padding[4] != self.kernel_size[0] - 1:
            return super().forward(x, cache_x)
        x = torch.nn.functional.pad(x, self._padding[:4])  # pyright: ignore[reportArgumentType]
        return torch.nn.functional.conv3d(x, self.weight[:, :, -1:], self.bias, self.stride)


def speed_up_images(vae: AutoencoderKLWan) -> None:
    """Makes single frames three times as fast; a policy that observes one frame encodes nothing else."""
    for module in vae.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = _CausalConv3d


def supported(vae: AutoencoderKLWan) -> bool:
    """Whether these passes cover the model: Wan 2.1's layout, which Predict2 and 2.5 use, without tiling."""
    config = vae.config
    return not (config["is_residual"] or config["patch_size"] or config["attn_scales"] or vae.use_tiling or vae.use_slicing)
