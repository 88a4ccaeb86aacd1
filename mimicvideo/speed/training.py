"""The rows with gradients: a LoRA step of stage 1, and the decoder's training with and without reuse of a backbone pass."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mimicvideo.action.policy import ActionPolicy
from mimicvideo.execution import Execution
from mimicvideo.noise import LogNormalSigma
from mimicvideo.speed import flops
from mimicvideo.speed.measure import Effort, difference, free, measure, synchronize, timed
from mimicvideo.speed.models import PROMPT, Bench
from mimicvideo.speed.record import Row, Save, Variant
from mimicvideo.video.adaptation import Frozen, Lora
from mimicvideo.video.checkpointing import Checkpointing
from mimicvideo.video.finetune import VideoFinetune

CLIP_NORM = 10.0  # of gradients, as in the paper's configurations
DRAWS = 16  # (tau_a, noise) draws a pass, with reuse
BATCH = 4  # samples of a decoder step


def lora_step(bench: Bench, effort: Effort, save: Save) -> Row:
    """Forward, backward, clipping and AdamW on one sample of cached latents, the paper's LoRA and full AdaLN."""
    size = bench.size
    row = Row(
        "lora_step",
        f"stage-1 step, {size.clip().tokens} tokens, {size.transformer['num_layers']} blocks",
        goal_ms=700,
        accept_ms=820,
        save=save,
    )
    adaptation = Lora(rank=size.lora_rank, alpha=size.lora_alpha)
    backbone = bench.backbone(adaptation, gradient_checkpointing=True)
    finetune = VideoFinetune(backbone, LogNormalSigma())
    trained = [weight for weight in backbone.parameters() if weight.requires_grad]
    generator = torch.Generator(bench.device).manual_seed(0)
    with torch.no_grad():  # away from LoRA's start, where half of its gradients are zero
        for weight in trained:
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator, device=bench.device))
    start = [weight.detach().cpu().clone() for weight in trained]
    latents, prompt = bench.latents(), backbone.encode_prompt([PROMPT])
    work = flops.lora_step(size.transformer, size.clip(), size.lora_rank)

    def loss(seed: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        return 100 * finetune.velocity_errors(latents, prompt, finetune.noise.sample(1, draws), draws).mean()

    settings: list[tuple[str, Execution | None, Checkpointing]] = [("diffusers, eager, full checkpointing", None, True)]
    merged = bench.execution(merge_lora=True)
    settings += [("ours, LoRA merged", merged, False), ("ours", bench.execution(), False)]
    if bench.fp8:  # which keeps more, so that without every 8th block's it needs 80 GB too
        settings += [("ours, every 8th block, FP8 products under the LoRA", bench.execution(fp8="row", fp8_training=True), 8)]
    settings += [
        ("ours, selective, LoRA merged", merged, "selective"),
        ("ours, selective", bench.execution(), "selective"),
        ("ours, every 2nd block", bench.execution(), 2),
        ("ours, full checkpointing", bench.execution(), True),
    ]
    reference: list[Tensor] = []
    for name, execution, checkpointing in [settings[0], *effort.chosen(settings[1:])]:
        free(bench.device)
        with torch.no_grad():
            for weight, value in zip(trained, start, strict=True):
                weight.copy_(value)
        if execution is not None:
            backbone.checkpointing = checkpointing
        backbone.execute(execution)
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

        def step(seed: int = 0, optimizer: torch.optim.Optimizer = optimizer) -> None:
            loss(seed).backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()

        try:
            first = timed(lambda: loss(1).backward(), bench.device)
            gradients = [weight.grad.detach().cpu() for weight in trained if weight.grad is not None]
            agreement = difference(flat(gradients), flat(reference)) if reference else None
            reference = reference or gradients
            optimizer.zero_grad()
            calls = effort.reference_calls if execution is None else min(effort.calls, 50)
            timing = replace(measure(step, bench.device, calls, effort.warm_up, effort.seconds / 4, queued=True), first_ms=first)
        except torch.OutOfMemoryError as error:
            row.notes[name] = f"out of memory: {error}"
            optimizer.zero_grad()
            continue
        row.add(Variant(name, timing, work, agreement), profiled=None if execution is None else step)
    row.notes["agreement"] = "of all gradients at the same weights, as one vector"
    return row


def decoder_training(bench: Bench, effort: Effort, save: Save) -> Row:
    """Steps of stage 2 on cached latents: the plain way, exactly the same faster, and with many draws a backbone pass."""
    size, shape = bench.size, (bench.size.action_dim, bench.size.horizon)
    row = Row("decoder_training", f"stage-2 step, {BATCH} samples of cached latents, backbone in the loop", save=save)
    row.notes["goals"] = {"exact, samples_per_s over plain": 2.0, "reuse, draws_per_s over plain": 10.0}
    backbone = bench.backbone(Frozen())
    generator = torch.Generator().manual_seed(0)
    batch: Any = {
        "latents": bench.latents(BATCH),
        "observation": {
            "proprio": torch.randn(BATCH, 1, shape[0], generator=generator).to(bench.device),
            "prompt": [PROMPT] * BATCH,
        },
        "actions": torch.randn(BATCH, shape[1], shape[0], generator=generator).to(bench.device),
    }
    clip, options = size.clip(), size.decoder
    video = flops.video_blocks(size.transformer, clip, size.block + 1)
    settings: list[tuple[str, Execution | None, int]] = [("diffusers, eager", None, 1), ("ours, exact", bench.execution(), 1)]
    settings += [(f"ours, {DRAWS} draws a pass", bench.execution(), DRAWS)]
    plain: dict[str, float] = {}
    reference: Tensor | None = None
    for name, execution, draws in [settings[0], *effort.chosen(settings[1:])]:
        free(bench.device)
        backbone.execute(execution)
        policy = bench.policy(backbone, draws=draws).train()
        if execution is not None and bench.compile:
            policy.decoder.compile_blocks()
        step = Step(policy, batch, bench)
        started = time.perf_counter()
        loss = step.loss(7).detach()
        synchronize(bench.device)
        forward = 1000 * (time.perf_counter() - started)  # what it compiled is part of the first step's time
        calls = min(effort.calls, 50 if execution else effort.reference_calls)
        timing = measure(step, bench.device, calls, effort.warm_up, effort.seconds / 4, queued=True)
        timing = replace(timing, first_ms=timing.first_ms + forward)
        rates = {"samples_per_s": 1000 * BATCH / timing.p50_ms, "draws_per_s": 1000 * BATCH * draws / timing.p50_ms}
        plain = plain or rates
        over = {f"{rate}_over_plain": value / plain[rate] for rate, value in rates.items()}
        work = flops.decoder_training(policy.decoder.shape, options["width"], options["depth"], options["adaln_dim"], clip.tokens, draws)
        agreement = difference(loss, reference) if reference is not None and draws == 1 else None
        reference = loss if reference is None else reference
        extra = {key: round(value, 3) for key, value in {**rates, **over}.items()}
        row.add(Variant(name, timing, (video + work) * BATCH, agreement, extra), profiled=None if execution is None else step)
    row.notes["agreement"] = "of the losses of one batch with the same draws"
    free(bench.device)
    clip_video = bench.video(size.observed + size.future)
    encode = measure(lambda: backbone.encode_video(clip_video), bench.device, 5, 1, 30.0)
    row.notes["vae_encode_of_a_clip_ms"] = round(encode.p50_ms, 2)
    return row


class Step:
    """A training step of a policy's decoder on one batch, in Lightning's bf16-mixed precision where the bench computes in bf16."""

    def __init__(self, policy: ActionPolicy, batch: Any, bench: Bench) -> None:
        self.policy, self.batch, self.bench, self.seed = policy, batch, bench, 0
        self.optimizer = torch.optim.AdamW(policy.decoder.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)

    def loss(self, seed: int) -> Tensor:
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.bench.dtype == "bfloat16"):
            return self.policy._flow_loss(self.batch, torch.Generator().manual_seed(seed))

    def __call__(self) -> None:
        self.seed += 1
        self.loss(self.seed).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.decoder.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def learning_curve(bench: Bench, seconds: float, draws: int, clips: int = 32, points: int = 6) -> list[dict[str, float]]:
    """Validation loss against seconds of training with `draws` draws a pass, on a task that random weights can solve.

    Actions are a fixed random map of the mean of the observed latents, hence to be read from the hidden states of any weights.
    Validation, whose time does not count, is the flow loss of held-out clips with fixed noise.

    Args:
        bench: Where.
        seconds: Of training.
        draws: For each pass of the backbone.
        clips: In the training set; an eighth as many are held out.
        points: Validations, evenly spaced in time.
    """
    size, generator = bench.size, torch.Generator().manual_seed(3)
    readout = torch.randn(size.latent_shape[0], size.horizon * size.action_dim, generator=generator) / size.latent_shape[0] ** 0.5

    def batch_of(seeds: range) -> Any:
        means = torch.randn(len(seeds), size.latent_shape[0], generator=torch.Generator().manual_seed(seeds.start))
        latents = torch.cat([bench.latents(seed=seed) for seed in seeds]) + means[:, :, None, None, None].to(bench.device)
        actions = (means @ readout).tanh().unflatten(1, (size.horizon, size.action_dim))
        proprio = torch.zeros(len(seeds), 1, size.action_dim, device=bench.device)
        return {
            "latents": latents,
            "observation": {"proprio": proprio, "prompt": [PROMPT] * len(seeds)},
            "actions": actions.to(bench.device),
        }

    training = [batch_of(range(first, first + BATCH)) for first in range(1000, 1000 + clips, BATCH)]
    held_out = [batch_of(range(first, first + BATCH)) for first in range(9000, 9000 + max(clips // 8, BATCH), BATCH)]
    policy = bench.policy(bench.backbone(Frozen(), bench.execution()), draws=draws)
    step = Step(policy, training[0], bench)
    step.loss(0).backward()  # compiles
    step.optimizer.zero_grad()
    spent, steps, curve = 0.0, 0, []
    for point in range(points + 1):
        policy.eval()
        policy.draws = DRAWS  # the same validation for all
        with torch.no_grad():
            losses = []
            for position, batch in enumerate(held_out):
                step.batch = batch
                losses.append(step.loss(10_000 + position))
        curve.append({"seconds": round(spent, 3), "steps": steps, "validation_loss": round(torch.stack(losses).mean().item(), 5)})
        policy.train()
        policy.draws = draws
        until = (point + 1) * seconds / points
        while point < points and spent < until:
            step.batch = training[steps % len(training)]
            synchronize(bench.device)
            started = time.perf_counter()
            step()
            synchronize(bench.device)
            spent, steps = spent + time.perf_counter() - started, steps + 1
    return curve
