"""CosmosPredict: Cosmos-Predict2 and 2.5 (diffusers) as a VideoBackbone; models of all sizes differ by `pretrained` alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from mimicvideo.execution import Execution, compile_method, lasting, sent
from mimicvideo.video import adapter as adapters
from mimicvideo.video import pretrained as weights
from mimicvideo.video import wan
from mimicvideo.video.adaptation import Adaptation, Frozen, Full, fuse, injected_config
from mimicvideo.video.backbone import VideoBackbone, VideoCondition
from mimicvideo.video.checkpointing import Checkpointing, diffusers_runner
from mimicvideo.video.fast_transformer import FastTransformer
from mimicvideo.video.inputs import check_clip_size, check_condition, check_levels, check_pixels
from mimicvideo.video.options import check_backbone_options, check_execution
from mimicvideo.video.padding_mask import provide_resize
from mimicvideo.video.prompts import PromptEncoder
from mimicvideo.video.reason_prompts import prompt_encoder, reduce_once

provide_resize()
# Values in the VAE's widest activation: in one pass over several clips (a CPU's caches are small), and of a clip that may pass whole.
_CHUNK_VALUES = {"cpu": 5_000_000, "cuda": 2**29}
_WHOLE_CLIP_VALUES = 2**29


class CosmosPredict(VideoBackbone):
    """The network's velocity is eps - x_0 at tau in [0, 1] (not times 1000), which both Predict2 and Predict2.5 were trained for.

    Clean frames enter with their mask channel at 1 and the time `conditional_sigma / (1 + conditional_sigma)`, the others
    with tau: a frame-wise timestep. No frame rate is passed: the released weights know none (diffusers issue 14768).
    Predict2.5 differs in its noise (`noise.ShiftedLogitNormal`), its grids (`noise.inference_taus`) and, before its post-training
    and at 14B, `conditional_sigma: null`.

    Args:
        pretrained: "cosmos-tiny", a folder with transformer, vae, text_encoder and tokenizer, or a hub id.
        adaptation: What trains: `Lora`, `Full` or `Frozen`.
        adapter: Folder of a trained adapter, stage 1's or PEFT's, to continue from, or to fuse into a frozen backbone.
        initial: "random" starts the transformer from random weights (ablations); VAE and T5 stay pretrained.
        revision: Of a hub id.
        dtype: Of frozen weights and of matrix products. Weights that train are fp32 either way; noise levels, latents at
            this class's border and the loss are fp32. "float32" is also right under Lightning's bf16-mixed precision.
        prompt_tokens: Length of the text embeddings.
        prompt_cache: Folder for text embeddings.
        conditional_sigma: Noise level told to the network on clean frames (official code: 1e-4; nothing is added). None tells it
            the level of the other frames, as Predict2.5's rectified-flow training did.
        gradient_checkpointing: Recompute blocks in the backward pass: all of each (true), all but its attentions (`selective`), or
            every n-th block.
        compile: `torch.compile` the transformer's blocks: slow at first, then about three times as fast on a GPU (tiny model).
        execution: Run the same function faster; see `mimicvideo.execution.Execution`. None is diffusers' own forward pass.

    Raises:
        ValueError: If an argument is out of range, before anything is read, or the model's parts do not fit each other.
        FileNotFoundError: If there is no such model.
    """

    def __init__(
        self,
        pretrained: str,
        adaptation: Adaptation,
        adapter: str | None = None,
        initial: Literal["pretrained", "random"] = "pretrained",
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        prompt_tokens: int = 512,
        prompt_cache: str | None = None,
        conditional_sigma: float | None = 1e-4,
        gradient_checkpointing: Checkpointing = False,
        compile: bool = False,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        check_backbone_options(dtype, initial, prompt_tokens, conditional_sigma, gradient_checkpointing, compile, execution)
        self.folder = weights.resolve(pretrained, revision)
        self.adaptation, self.initial, self.dtype = adaptation, initial, getattr(torch, dtype)
        self.conditional_tau = None if conditional_sigma is None else conditional_sigma / (1 + conditional_sigma)

        self.vae = self._load_vae().requires_grad_(False)
        wan.speed_up_images(self.vae)
        self.transformer = self._load_transformer()
        self.prompts = self._load_prompts(prompt_tokens, prompt_cache)
        self._check_parts()
        self.hidden_dim = self.transformer.config["num_attention_heads"] * self.transformer.config["attention_head_dim"]
        self.num_blocks = len(self.transformer.transformer_blocks)
        self._fused: dict[str, Any] | None = None  # what was fused into the weights, to be saved with a policy

        adaptation.apply(self.transformer, self.prompts)
        reduce_once(self.transformer, self.prompts)
        # The parameters that no pretrained file holds, under diffusers' names and whoever freezes them later.
        self.own_names = {
            name.replace(".base_layer.", ".")
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or (initial == "random" and name.startswith("transformer."))
        }
        self.checkpointing: Checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing(diffusers_runner(self.transformer.transformer_blocks, gradient_checkpointing))
        if compile:
            for block in self.transformer.transformer_blocks:  # their forward only: hooks, which may leave early, stay outside
                compile_method(block, "forward")
        self._statistics: dict[torch.device, Tensor] = {}
        self.execute(execution)
        if adapter is not None:
            self._take_in(adapters.read_for(self, Path(adapter).expanduser()), f"adapter {adapter}")

    def execute(self, execution: Execution | None) -> None:
        """Runs the transformer so from now on; None is diffusers' own forward pass.

        Raises:
            ValueError: If the transformer has parts that a faster execution does not cover, or the adaptation cannot train with it.
        """
        if execution is not None:
            check_execution(self.adaptation, vars(execution))
        self._fast = None if execution is None else FastTransformer(self.transformer, execution, self.checkpointing)
        self._encode = partial(wan.encode_moments, self.vae) if execution is None else wan.FastEncoder(self.vae, execution)

    def _load_vae(self) -> AutoencoderKLWan:
        return weights.load_module(AutoencoderKLWan, self.folder / "vae", self.dtype)

    def _load_prompts(self, prompt_tokens: int, cache: str | None) -> PromptEncoder:
        return prompt_encoder(self.folder, prompt_tokens, self.dtype, cache)

    def _load_transformer(self) -> CosmosTransformer3DModel:
        folder = self.folder / "transformer"
        if self.initial == "random":
            config: Any = weights.read_json(folder / "config.json")
            random: Any = CosmosTransformer3DModel.from_config(config)
            nn.Module.to(random, self.dtype)
            return random
        return weights.load_module(CosmosTransformer3DModel, folder, self.dtype)

    def _check_parts(self) -> None:
        config, z_channels = self.transformer.config, self.vae.config["z_dim"]
        taken, given = config["in_channels"], config["out_channels"]
        if (taken, given) != (z_channels + 1, z_channels):
            raise ValueError(
                f"{self.folder}: the transformer takes {taken} channels and gives {given}; a video-to-world model for this VAE "
                f"takes {z_channels} + 1 mask and gives {z_channels}. Is it a text-to-image checkpoint?"
            )
        text_width = config["crossattn_proj_in_channels"] if config["use_crossattn_projection"] else config["text_embed_dim"]
        if text_width != self.prompts.prompt_dim:
            raise ValueError(
                f"{self.folder}: the transformer reads text of width {text_width}, but the text encoder gives {self.prompts.prompt_dim}"
            )

    # -- identity ------------------------------------------------------------------------------------------------------

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the base weights and the networks' configuration, before any adaptation."""
        parts = [weights.component_hash(self.folder / "transformer", with_weights=self.initial == "pretrained")]
        parts += [weights.component_hash(self.folder / "vae"), self.prompts.weights_hash]
        return weights.text_hash(self.initial, *parts)

    @cached_property
    def vae_hash(self) -> str:
        """SHA-256 over the VAE and its dtype: latents in bf16 differ from those in fp32."""
        return weights.text_hash(weights.component_hash(self.folder / "vae"), str(self.dtype))

    @property
    def device(self) -> torch.device:
        return self.transformer.proj_out.weight.device

    # -- latents and text ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_video(
        self, video: UInt8[Tensor, "batch frames height width 3"]
    ) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        check_pixels(video)
        frames, height, width = video.shape[1:4]
        check_clip_size(frames, height, width, self.transformer.config["patch_size"][1])
        chunk, whole = self._chunk(frames * height * width)
        vae: Any = self.vae
        encode = self._encode if whole else lambda pixels: vae.encode(pixels).latent_dist.parameters
        latents = []
        for part in video.split(chunk):
            pixels = part.to(self.device).movedim(-1, 1).float() / 127.5 - 1
            with torch.autocast(self.device.type, enabled=False):  # cached latents must equal those made on the way
                latents.append(encode(pixels.to(vae.dtype)).float().chunk(2, dim=1)[0])
        mean, std = self._latent_statistics()
        return (torch.cat(latents) - mean) / std

    @torch.no_grad()
    def decode_video(
        self, latents: Float[Tensor, "batch z_channels z_frames z_height z_width"]
    ) -> UInt8[Tensor, "batch frames height width 3"]:
        if latents.ndim != 5 or latents.shape[1] != self.vae.config["z_dim"]:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, expected (batch, {self.vae.config['z_dim']}, z_frames, z_height, z_width)"
            )
        z_frames, z_height, z_width = latents.shape[2:]
        frames = 1 + wan.FRAMES_PER_LATENT * (z_frames - 1)
        chunk, whole = self._chunk(frames * z_height * z_width * wan.PIXELS_PER_LATENT**2)
        decode = wan.decode_pixels if whole else lambda vae, part: vae.decode(part).sample
        mean, std = self._latent_statistics()
        videos = []
        for part in latents.split(chunk):
            part = part.to(self.device).float() * std + mean
            with torch.autocast(self.device.type, enabled=False):
                pixels = decode(self.vae, part.to(self.vae.dtype)).float()
            videos.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1))
        return torch.cat(videos)

    def _chunk(self, pixels: int) -> tuple[int, bool]:
        """How many clips go through the VAE at once, and whether clip by clip in one pass or, if too large, frame by frame."""
        width = max(self.vae.config["base_dim"], self.vae.config["decoder_base_dim"] or 0)
        room = _CHUNK_VALUES.get(self.device.type, 2**24) // (pixels * width)
        return max(room, 1), pixels * width <= _WHOLE_CLIP_VALUES and wan.supported(self.vae)

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Of all latent channels; kept, since sending them to a GPU would wait for what it computes."""
        if self.device not in self._statistics:
            config = self.vae.config
            with lasting():
                values = torch.tensor([config["latents_mean"], config["latents_std"]], device=self.device)
            self._statistics = {self.device: values[:, :, None, None, None]}
        mean, std = self._statistics[self.device]
        return mean, std

    def encode_prompt(self, prompts: list[str]) -> Float[Tensor, "batch prompt_tokens prompt_dim"]:
        return self.prompts(prompts, self.device)

    def no_prompt(self) -> Float[Tensor, "prompt_tokens prompt_dim"]:
        return self.prompts.no_prompt(self.device)

    # -- the network ---------------------------------------------------------------------------------------------------

    def velocity(
        self,
        noisy: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        tau: Float[Tensor, " batch"],
        condition: VideoCondition,
    ) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        inputs = self._inputs(noisy, tau, condition)
        with self._precision():
            velocity = self.transformer(**inputs).sample if self._fast is None else self._fast.velocity(inputs)
            return velocity.to(noisy.dtype)

    def hidden_states(
        self,
        noisy: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        tau: Float[Tensor, " batch"],
        condition: VideoCondition,
        blocks: Sequence[int],
    ) -> dict[int, Float[Tensor, "batch tokens hidden_dim"]]:
        """As the base class says; the states have the network's own dtype (bf16 if it computes in bf16)."""
        self._check_blocks(blocks)
        inputs = self._inputs(noisy, tau, condition)
        if self._fast is not None:
            with self._precision():
                states = self._fast.states(inputs, blocks)
        else:
            with self._capture(blocks) as states, self._precision(), suppress(_DeepestBlockReached):
                self.transformer(**inputs)
        return {block: states[block] for block in blocks}

    def _check_blocks(self, blocks: Sequence[int]) -> None:
        if not blocks:
            raise ValueError("blocks is empty: name at least one block")
        for block in blocks:
            if not 0 <= block < self.num_blocks:
                raise ValueError(f"block {block} does not exist: this model has blocks 0 ... {self.num_blocks - 1} (0-based)")

    @contextmanager
    def _capture(self, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Records the outputs of `blocks` and raises _DeepestBlockReached after the deepest: later ones never run."""
        states: dict[int, Tensor] = {}

        def record(block: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
            states[block] = output
            if block == max(blocks):
                raise _DeepestBlockReached

        modules = self.transformer.transformer_blocks
        handles = [modules[block].register_forward_hook(partial(record, block)) for block in set(blocks)]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    def _inputs(self, noisy: Tensor, tau: Tensor, condition: VideoCondition) -> dict[str, Any]:
        """The transformer's arguments: clean frames in place, their mask, and a timestep per frame."""
        batch, _, z_frames, z_height, z_width = noisy.shape
        patch = self.transformer.config["patch_size"][1]
        if z_height % patch or z_width % patch:
            raise ValueError(f"latents are {z_height} x {z_width}; height and width must be multiples of {patch}")
        check_levels(tau, batch)
        check_condition(condition, noisy)
        device, precise = self.device, torch.promote_types(torch.float32, self.transformer.proj_out.weight.dtype)
        noisy, observed = noisy.to(device, precise), condition.observed.to(device, precise)
        kept = condition.frame_mask(z_frames).to(device, precise)[:, None, :, None, None]
        clean = torch.nn.functional.pad(observed, (0, 0, 0, 0, 0, z_frames - observed.shape[2]))
        levels = sent(tau, device).to(precise)[:, None, None, None, None].expand(-1, 1, z_frames, 1, 1)
        if self.conditional_tau is not None:
            levels = kept * self.conditional_tau + (1 - kept) * levels
        return {
            "hidden_states": torch.where(kept > 0, clean, noisy),
            "timestep": levels,
            "encoder_hidden_states": condition.prompt.to(device, precise),
            "condition_mask": kept.expand(batch, 1, z_frames, z_height, z_width),
            "padding_mask": noisy.new_zeros(1, 1, z_height, z_width),  # batch 1: the model repeats it
            "fps": None,
        }

    def _precision(self) -> AbstractContextManager:
        """bf16 products with fp32 weights where they train; a float32 model leaves the precision to the trainer."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.dtype == torch.bfloat16 else nullcontext()

    def shard(self, mesh: DeviceMesh) -> None:
        for module in (*self.transformer.transformer_blocks, self.transformer, self.prompts.model):
            if module is not None:
                fully_shard(module, mesh=mesh, reshard_after_forward=True)

    # -- what was trained ----------------------------------------------------------------------------------------------

    def adapter_state(self) -> dict[str, Any]:
        """Everything that tells this backbone from its pretrained weights, as `{"config": ..., "tensors": ...}` on the CPU.

        LoRA tensors have PEFT's names; whole tensors are named `transformer.<diffusers name>` or `text_encoder.<name>`.
        """
        return self._fused or adapters.collect(self)

    def load_adapter_state(self, state: Mapping[str, Any]) -> None:
        """Takes an adapter in: to train on with the same adaptation, or fused if this backbone is `Frozen`.

        Raises:
            ValueError: If base weights, rank, keys or shapes do not fit. Everything is checked before anything is loaded.
        """
        self._take_in(state, "the adapter")

    def _take_in(self, state: Mapping[str, Any], where: str) -> None:
        if self._fused is not None and not adapters.is_empty(self._fused):
            if adapters.same(self._fused, state):
                return
            raise ValueError("another adapter is fused into this backbone: build it without `adapter` and load this one instead")
        adapters.load(self, state, where)
        if isinstance(self.adaptation, Frozen):
            self._fused = dict(state)
            self.fuse_adapter()

    def fuse_adapter(self) -> None:
        """Merges LoRA into the weights (in fp32, rounded once) and freezes the transformer: faster, same outputs."""
        if self._fused is None:
            self._fused = adapters.collect(self)
        if injected_config(self.transformer) is not None:
            fuse(self.transformer)
        nn.Module.to(self.transformer, self.dtype)  # diffusers' own `to` warns about layers that this model lacks
        self.transformer.requires_grad_(False)

    def save_trained(self, run_dir: Path) -> Path:
        """`<run_dir>/backbone` after `Full`, which `pretrained` takes; `<run_dir>/adapter` otherwise, which `adapter` takes."""
        if isinstance(self.adaptation, Full):
            self.save_pretrained(run_dir / "backbone")
            return run_dir / "backbone"
        self.save_adapter(run_dir / "adapter")
        return run_dir / "adapter"

    def save_adapter(self, folder: str | Path) -> None:
        """Writes `adapter_state()` as a PEFT-compatible folder; see `adapter.py` for its files."""
        adapters.write_adapter(self.adapter_state(), Path(folder))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the whole model, adapter fused, as diffusers and transformers folders that `pretrained` takes.

        Args:
            folder: Is created, or its model overwritten.
            dtype: Of the transformer's file; the model's own by default.
        """
        adapters.write_trio(self, Path(folder), dtype)


class _DeepestBlockReached(Exception):
    """Leaves the transformer after the last block that is needed."""
