"""The rows without gradients: hidden states, observation to action chunk, and the real-time mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mimicvideo.action.acting import Acting
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.execution import Execution
from mimicvideo.speed import flops
from mimicvideo.speed.measure import Effort, difference, free, measure
from mimicvideo.speed.models import PROMPT, Bench
from mimicvideo.speed.record import Row, Save, Variant
from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.random_weights import RandomCosmos, plain_attention

TAU = 80 / 81  # the paper's level when acting
PACED, PAUSE = "half a second apart", 0.5  # as a robot asks, while it carries out the chunk before


def hidden_states(bench: Bench, effort: Effort, save: Save) -> Row:
    """States after the paper's block, one sample, a noise level for each frame, text cached as when acting."""
    ways = effort.chosen(ours_and_fp8(bench))
    backbone = bench.backbone(Frozen())
    latents = bench.latents()
    condition, tau = bench.condition(backbone, latents), torch.full((1,), TAU, device=bench.device)
    block, clip, config = bench.size.block, bench.size.clip(), bench.size.transformer
    inputs = plain_inputs(backbone, latents, tau, condition)
    work = flops.video_blocks(config, clip, block + 1, text=False)
    row = Row("hidden_states", f"hidden states after block {block}, {clip.tokens} tokens", goal_ms=150, accept_ms=165, save=save)

    def plain() -> Tensor:
        return diffusers_states(backbone, inputs, block)

    def ours() -> Tensor:
        return backbone.hidden_states(latents, tau, condition, [block])[block]

    with torch.no_grad():
        reference = plain()
        row.add(Variant("diffusers, eager", measure(plain, bench.device, effort.reference_calls, 1, effort.seconds), work=work))
        references = {"diffusers, blocks compiled": "native"}
        if bench.device.type == "cuda":
            references["diffusers, blocks compiled, cuDNN's attention"] = "_native_cudnn"
        for name, kernels in references.items() if bench.compile else ():
            free(bench.device)
            with compiled_blocks(backbone), plain_attention(kernels):
                timing = measure(plain, bench.device, effort.reference_calls, 1, effort.seconds)
                row.add(Variant(name, timing, work=work, agreement=difference(plain(), reference)))
        for name, execution in ways:
            free(bench.device)
            backbone.execute(execution)
            add_ours(row, name, ours, bench, effort, work, reference)
    return row


def chunk(bench: Bench, effort: Effort, save: Save) -> Row:
    """Observation to action chunk: VAE encode of the observed frames, one pass of the video model, all integration steps."""
    ways = effort.chosen(ours_and_fp8(bench))
    backbone = bench.backbone(Frozen())
    policy, observation = bench.policy(backbone), observation_of(bench)
    row = Row(
        "chunk", f"observation to chunk of {bench.size.horizon} actions, {policy.num_steps} steps", goal_ms=175, accept_ms=190, save=save
    )
    work = chunk_work(bench, policy, bench.size.z_frames)

    def act() -> Tensor:
        return policy.predict_actions(observation, generator=torch.Generator().manual_seed(0))

    policy.act_as(Acting(dtype=bench.dtype, cuda_graphs=False))
    reference = act()
    row.add(Variant("diffusers, eager", measure(act, bench.device, effort.reference_calls, 1, effort.seconds), work=work))
    policy.act_as(bench.acting())
    for name, execution in ways:
        free(bench.device, compiled=False)  # the decoder stays as it is
        backbone.execute(execution)
        add_ours(row, name, act, bench, effort, work, reference)
        row.notes.setdefault("parts_ms", {})[name] = parts(bench, policy, observation, effort)
    return row


def realtime(bench: Bench, effort: Effort, save: Save) -> Row:
    """Chunks that are not exact: the video model is shown less of the future, and may multiply in FP8 too."""
    backbone = bench.backbone(Frozen())
    policy, observation = bench.policy(backbone), observation_of(bench)
    row = Row("realtime", f"observation to chunk of {bench.size.horizon} actions, reduced", goal_ms=41, accept_ms=41, save=save)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *bench.size.latent_shape, generator=generator).to(bench.device)
    action_noise = torch.randn(1, bench.size.horizon, bench.size.action_dim, generator=generator).to(bench.device)
    observed, whole = bench.size.z_observed, bench.size.z_frames

    def chunk_from_given_noise(acting: Acting) -> Tensor:
        video = acting.shrunk(observation["video"].to(bench.device))
        condition = policy._condition(observation["prompt"], backbone.encode_video(video))
        z_frames, z_height, z_width = acting.z_frames(observed, whole), video.shape[2] // 8, video.shape[3] // 8
        return policy.act(condition, noise[:, :, :z_frames, :z_height, :z_width], None, observation["proprio"], action_noise)

    def act() -> Tensor:
        return policy.predict_actions(observation, generator=torch.Generator().manual_seed(0))

    if not bench.fp8:
        row.notes["skipped"] = f"FP8: {bench.device.type} has no such products"
    half = bench.acting(future_latents=0, scale=0.5)
    by_row = bench.execution(fp8="row")
    settings: list[tuple[str, Acting, Execution]] = [("exact, whole clip", bench.acting(), bench.execution())]
    settings += [("0 future latents, half size", half, bench.execution())]
    settings += [("0 future latents, half size, FP8", half, by_row)] * bench.fp8
    settings += [("0 future latents, half size, 5 steps", replace(half, num_steps=5), bench.execution())]
    settings += [("0 future latents", bench.acting(future_latents=0), bench.execution())]
    settings += [("0 future latents, FP8", bench.acting(future_latents=0), by_row)] * bench.fp8
    settings += [("2 future latents", bench.acting(future_latents=2), bench.execution())] * (observed + 2 < whole)
    exact: Tensor | None = None
    for name, acting, execution in [settings[0], *effort.chosen(settings[1:])]:
        free(bench.device, compiled=False)
        backbone.execute(execution)
        policy.act_as(acting)
        calls = effort.calls if exact is not None else effort.reference_calls
        timing = measure(act, bench.device, calls, effort.warm_up, effort.seconds / 4)
        actions = chunk_from_given_noise(acting)
        exact = actions if exact is None else exact
        work = chunk_work(shrunk_bench(bench, acting), policy, acting.z_frames(observed, whole), acting.num_steps)
        row.add(Variant(name, timing, work=work, agreement=difference(actions, exact)), profiled=act)
    row.notes["agreement"] = "of actions with those of the exact variant, same noise; random weights say little about trained ones"
    return row


# -- shared --------------------------------------------------------------------------------------------------------------


def ours_and_fp8(bench: Bench) -> list[tuple[str, Execution]]:
    """The exact way, attention and products in FP8 where the GPU has them, and torch's own attention where it is the slower."""
    ways = [("ours", bench.execution())]
    ways += [("ours, FP8 attention", bench.execution(attention="fp8"))] * bench.fp8_attention
    ways += [("ours, FP8 products and attention", bench.execution(fp8="row", attention="fp8"))] * bench.fp8_attention
    ways += [("ours, FP8 products", bench.execution(fp8="row"))] * bench.fp8
    ways += [("ours, torch's attention", bench.execution(attention="torch"))] * (bench.attention != "torch")
    return ways


def add_ours(
    row: Row, name: str, function: Callable[[], Tensor], bench: Bench, effort: Effort, work: flops.Work, reference: Tensor
) -> None:
    """Measures one of our ways, call after call and then with pauses."""
    timing = measure(function, bench.device, effort.calls, effort.warm_up, effort.seconds)
    agreement = difference(function(), reference)
    row.add(Variant(name, timing, work=work, agreement=agreement), profiled=function)
    timing = measure(function, bench.device, min(effort.calls, 20), pause=PAUSE)
    row.add(Variant(f"{name}, {PACED}", timing, work=work, agreement=agreement))


def observation_of(bench: Bench) -> Any:
    """One robot's observation, on the CPU."""
    return {"video": bench.video(bench.size.observed), "proprio": torch.zeros(1, 1, bench.size.action_dim), "prompt": [PROMPT]}


def plain_inputs(backbone: RandomCosmos, latents: Tensor, tau: Tensor, condition: Any) -> dict[str, Any]:
    """The forward pass's arguments in the weights' dtype, as a user of diffusers would give them."""
    inputs = backbone._inputs(latents, tau, condition)
    return {name: value.to(backbone.dtype) if isinstance(value, Tensor) else value for name, value in inputs.items()}


class _Reached(Exception):
    """Leaves the transformer after the block that is wanted."""


def diffusers_states(backbone: RandomCosmos, inputs: dict[str, Any], block: int) -> Tensor:
    """diffusers' own forward pass up to a block: no autocast, nothing of ours but the early stop."""
    found: list[Tensor] = []

    def leave(_module: Any, _args: Any, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    handle = backbone.transformer.transformer_blocks[block].register_forward_hook(leave)
    try:
        backbone.transformer(**inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


@contextmanager
def compiled_blocks(backbone: RandomCosmos) -> Iterator[None]:
    """diffusers' blocks compiled one by one, which compiles once for all of them."""
    blocks = list(backbone.transformer.transformer_blocks)
    for block in blocks:
        block.forward = torch.compile(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def shrunk_bench(bench: Bench, acting: Acting) -> Bench:
    """The same with pictures of the size in which the video model sees them."""
    height, width = acting.shrunk_size(bench.size.height, bench.size.width)
    return replace(bench, size=replace(bench.size, height=height, width=width))


def chunk_work(bench: Bench, policy: ActionPolicy, z_frames: int, num_steps: int | None = None) -> flops.Work:
    """Of the video model and the decoder; the VAE's convolutions are counted by torch, at the first call."""
    size, clip = bench.size, bench.size.clip(z_frames)
    shape, options = policy.decoder.shape, size.decoder
    work = flops.video_blocks(size.transformer, clip, size.block + 1, text=False)
    work = work + flops.decoder_context(shape, options["width"], options["depth"], clip.tokens)
    step = flops.decoder_step(shape, options["width"], options["depth"], options["adaln_dim"], clip.tokens)
    # A step's time is its reading; its few operations run meanwhile.
    return work + flops.Work(moved=step.moved) * (num_steps or policy.num_steps) + vae_work(bench, policy.backbone)


def vae_work(bench: Bench, backbone: Any) -> flops.Work:
    """Convolutions and products of encoding the observed frames, counted by torch on shapes alone."""
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    from mimicvideo.video import wan

    vae = copy.deepcopy(backbone.vae).to("meta")
    pixels = torch.empty(1, 3, bench.size.observed, bench.size.height, bench.size.width, device="meta", dtype=backbone.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        wan.encode_moments(vae, pixels)
    return flops.Work(products=float(counter.get_total_flops()))


def parts(bench: Bench, policy: ActionPolicy, observation: Any, effort: Effort) -> dict[str, float]:
    """Medians of a chunk's parts, each waited for: their sum is more than the whole, whose parts overlap with the CPU's work."""
    backbone, video = policy.backbone, observation["video"].to(bench.device)
    observed = backbone.encode_video(video)
    condition = policy._condition(observation["prompt"], observed)
    noise = torch.randn(1, *bench.size.latent_shape).to(bench.device)
    hidden, tau = policy._future_states(condition, noise, None)
    proprio = observation["proprio"].to(bench.device)
    action_noise = torch.randn(1, bench.size.horizon, bench.size.action_dim).to(bench.device)
    sampler = policy._sampler
    assert sampler is not None
    functions: dict[str, Callable[[], Any]] = {
        "vae_encode": lambda: backbone.encode_video(video),
        "hidden_states": lambda: policy._future_states(condition, noise, None),
        "context_and_steps": lambda: sampler(hidden, tau, proprio, action_noise),
    }
    calls = min(effort.calls, 20)
    return {name: round(measure(function, bench.device, calls, 2, 20.0).p50_ms, 4) for name, function in functions.items()}
