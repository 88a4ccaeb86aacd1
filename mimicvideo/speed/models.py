"""What is measured: models of the true size, or tiny ones for tests of the measurement, with random weights made on the device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mimicvideo.action.acting import Acting
from mimicvideo.action.dit import DiTDecoder
from mimicvideo.action.future import NoiseFuture
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.execution import Execution
from mimicvideo.noise import LogNormalSigma, Uniform
from mimicvideo.speed.flops import Clip
from mimicvideo.video import flash4, fp8, fp8_attention
from mimicvideo.video.adaptation import Adaptation
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.checkpointing import Checkpointing
from mimicvideo.video.extras import passes
from mimicvideo.video.inputs import latent_frames
from mimicvideo.video.random_weights import RandomCosmos
from mimicvideo.video.sizes import ARCHITECTURES

_TINY = {**ARCHITECTURES["predict2-2b-480p-10fps"], "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4}


@dataclass(frozen=True)
class Size:
    """One setting of all rows.

    Attributes:
        transformer: Configuration of the video transformer.
        vae: Configuration of the VAE where it differs from Wan 2.1's.
        decoder: Options of `DiTDecoder`.
        height, width: Pixels.
        observed, future: Frames of a clip.
        block: Whose output the decoder reads.
        prompt_tokens: Length of the text.
        lora_rank: Of stage 1.
        action_dim, horizon: Of a chunk; there are as many numbers of proprioception.
        square: Side of the matrices whose product gives the ceiling.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    decoder: Mapping[str, Any]
    height: int
    width: int
    observed: int
    future: int
    block: int
    prompt_tokens: int
    lora_rank: int
    action_dim: int
    horizon: int
    square: int
    lora_alpha: float = field(default=32.0)

    @property
    def z_observed(self) -> int:
        return latent_frames(self.observed)

    @property
    def z_frames(self) -> int:
        return latent_frames(self.observed + self.future)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return self.transformer["out_channels"], self.z_frames, self.height // 8, self.width // 8

    def clip(self, z_frames: int | None = None) -> Clip:
        """Of a whole clip, or of its first latent frames."""
        return Clip(z_frames or self.z_frames, self.height * self.width // 256, self.prompt_tokens)


SIZES: dict[str, Size] = {
    # Predict2-2B and the paper's decoder for LIBERO: 61 frames of 480 x 640, which are 19,200 tokens.
    "2b": Size(
        transformer=ARCHITECTURES["predict2-2b-480p-10fps"],
        vae={},
        decoder={"width": 1024, "depth": 24, "heads": 8, "adaln_dim": 128},
        height=480,
        width=640,
        observed=5,
        future=56,
        block=19,
        prompt_tokens=512,
        lora_rank=256,
        action_dim=10,
        horizon=60,
        square=8192,
    ),
    # Says nothing about speed: it exercises every line of the measurement.
    "tiny": Size(
        transformer={**_TINY, "adaln_lora_dim": 8, "text_embed_dim": 32, "mlp_ratio": 2.0},
        vae={"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        decoder={"width": 32, "depth": 2, "heads": 2, "adaln_dim": 8},
        height=32,
        width=48,
        observed=5,
        future=8,
        block=2,
        prompt_tokens=8,
        lora_rank=4,
        action_dim=3,
        horizon=6,
        square=256,
    ),
}
PROMPT = "put the wine bottle on the rack"


@dataclass(frozen=True)
class Bench:
    """Where and at what size to measure.

    Attributes:
        size: Of everything.
        device: Where.
        dtype: In which the networks compute.
        compile: Whether anything is compiled; without it the measurement can be tested quickly, and says nothing.
    """

    size: Size
    device: torch.device
    dtype: Literal["float32", "bfloat16"]
    compile: bool = True

    def execution(self, **options: Any) -> Execution:
        """Ours, compiled or not as this bench says, with the fastest attention that there is."""
        return Execution(compile="default" if self.compile else None, **{"attention": self.attention, **options})

    @property
    def attention(self) -> Literal["torch", "flash4"]:
        """FlashAttention-4 where it is installed, has kernels for the GPU, and numbers have 16 bits."""
        return "flash4" if self.dtype == "bfloat16" and passes(flash4.check, self.device) else "torch"

    @property
    def fp8(self) -> bool:
        """Whether the device multiplies FP8 matrices."""
        return passes(fp8.check_hardware, self.device)

    @property
    def fp8_attention(self) -> bool:
        """Whether it has attention in FP8, and what that needs is installed."""
        return passes(fp8_attention.check, self.device)

    def acting(self, **options: Any) -> Acting:
        """The same for the decoder."""
        return Acting(dtype=self.dtype, compile=self.compile, **options)

    def backbone(
        self, adaptation: Adaptation, execution: Execution | None = None, gradient_checkpointing: Checkpointing = False
    ) -> RandomCosmos:
        return RandomCosmos(
            self.size.transformer,
            adaptation,
            self.size.vae,
            str(self.device),
            dtype=self.dtype,
            prompt_tokens=self.size.prompt_tokens,
            gradient_checkpointing=gradient_checkpointing,
            execution=execution,
        ).to(self.device)

    def policy(self, backbone: RandomCosmos, acting: Acting | None = None, **options: Any) -> ActionPolicy:
        """A policy with a random decoder whose modulations are no identity, in units that need no statistics."""
        size = self.size
        torch.manual_seed(0)
        policy = ActionPolicy(
            backbone,
            lambda shape: DiTDecoder(shape, **size.decoder),
            NoiseFuture(),
            action_dim=size.action_dim,
            proprio_dim=size.action_dim,
            horizon=size.horizon,
            video_noise=LogNormalSigma(),
            action_noise=Uniform(),
            block=size.block,
            normalization={"actions": "identity", "proprio": "identity", "per_step": False},
            acting=acting,
            **options,
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in policy.decoder.named_parameters():
                if name.endswith("up.weight"):
                    weight.normal_(0, 0.02, generator=generator)
        for normalizer in (policy.action_normalizer, policy.proprio_normalizer):
            normalizer.fit({})
        policy.adopt_contract(self._contract())
        return policy.to(self.device).eval()

    def _contract(self) -> dict[str, Any]:
        size = self.size
        names = [f"x{index}" for index in range(size.action_dim)]
        camera = {"name": "front", "height": size.height, "width": size.width, "view": {}}
        sizes = {"observed": size.observed, "future": size.future, "frame_interval_steps": 4, "horizon": size.horizon}
        return {"robot": "random", "control_hz": 20.0, "cameras": [camera], **sizes, "proprio": names, "actions": names}

    def video(self, frames: int, batch: int = 1, seed: int = 0) -> Tensor:
        """Random bytes on the CPU, as a camera or a data loader gives them."""
        shape = batch, frames, self.size.height, self.size.width, 3
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

    def latents(self, batch: int = 1, seed: int = 0) -> Tensor:
        """Random latents of whole clips, on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.size.latent_shape, generator=generator).to(self.device)

    def condition(self, backbone: RandomCosmos, latents: Tensor) -> VideoCondition:
        return VideoCondition(backbone.encode_prompt([PROMPT] * len(latents)), latents[:, :, : self.size.z_observed])
