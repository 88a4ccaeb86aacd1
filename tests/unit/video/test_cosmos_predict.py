"""CosmosPredict against diffusers called by hand, and its promises about frames, levels, blocks and gradients."""

import copy

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from mimicvideo.noise import karras_taus
from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.inputs import check_pixels
from mimicvideo.video.pretrained import write_manifest


def bytes_video(batch: int = 2, frames: int = 9, height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, frames, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- latents ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_latents_are_normalised_posterior_modes(frozen, frames: int) -> None:
    video = bytes_video(frames=frames)
    with torch.no_grad():
        mode = frozen.vae.encode(video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (frozen.vae.config.latents_mean, frozen.vae.config.latents_std))
    latents = frozen.encode_video(video)
    torch.testing.assert_close(latents, (mode - mean) / std, rtol=1e-4, atol=1e-5)
    assert latents.shape == (2, 16, 1 + (frames - 1) // 4, 4, 6)
    assert latents.dtype == torch.float32


def test_latents_do_not_depend_on_chunks_autocast_or_statistics_of_zero(build, monkeypatch) -> None:
    backbone = build()
    backbone.vae.register_to_config(latents_mean=[0.5] * 16, latents_std=[2.0] * 16)
    video = bytes_video(batch=3)
    whole = backbone.encode_video(video)
    monkeypatch.setattr("mimicvideo.video.cosmos_predict._CHUNK_VALUES", {"cpu": 9 * 32 * 48 * 3})  # one clip at a time
    torch.testing.assert_close(backbone.encode_video(video), whole, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("mimicvideo.video.cosmos_predict._WHOLE_CLIP_VALUES", 1)  # frame by frame, as diffusers does
    torch.testing.assert_close(backbone.encode_video(video), whole, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone.encode_video(video), whole, rtol=1e-4, atol=1e-5)


def test_decoding_is_diffusers_decoding(frozen) -> None:
    latents = frozen.encode_video(bytes_video())
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (frozen.vae.config.latents_mean, frozen.vae.config.latents_std))
    with torch.no_grad():
        pixels = frozen.vae.decode(latents * std + mean).sample
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    decoded = frozen.decode_video(latents)
    assert decoded.shape == (2, 9, 32, 48, 3)
    assert (decoded.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8, 32, 32), "8 frames.*nearest are 5 and 9"),
        ((2, 32, 32), "2 frames.*nearest are 1 and 5"),
        ((5, 40, 32), "height 40 .* 16 pixels.*32 and 48"),
        ((5, 32, 8), "width 8 .* 16 pixels"),
    ],
)
def test_clips_of_impossible_size_are_refused(frozen, size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frozen.encode_video(bytes_video(1, *size))


# ---- the network --------------------------------------------------------------------------------------------------------------


def test_velocity_is_diffusers_output(frozen, inputs) -> None:
    sample = inputs(frozen)
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[:, :, :1] = 1
    timestep = torch.tensor([[1e-4 / (1 + 1e-4), tau, tau] for tau in sample.tau]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        expected = frozen.transformer(
            hidden_states=mask * sample.clean + (1 - mask) * sample.noisy,
            timestep=timestep,
            encoder_hidden_states=sample.condition.prompt,
            condition_mask=mask,
            padding_mask=torch.zeros(1, 1, 32, 48),
            fps=None,
        ).sample
        torch.testing.assert_close(frozen.velocity(*sample.all()), expected, rtol=1e-5, atol=1e-6)


def test_number_of_clean_frames_may_differ_by_sample(frozen, inputs) -> None:
    both = inputs(frozen, z_observed=2, num_observed=[1, 2])
    with torch.no_grad():
        together = frozen.velocity(*both.all())
        for index, count in enumerate([1, 2]):
            alone = frozen.velocity(*inputs(frozen, z_observed=count).all())
            torch.testing.assert_close(together[index], alone[index], rtol=1e-5, atol=1e-6)


def test_noisy_values_on_clean_frames_are_ignored(frozen, inputs) -> None:
    sample = inputs(frozen)
    spoiled = sample.noisy.clone()
    spoiled[:, :, 0] = float("nan")
    with torch.no_grad():
        assert torch.equal(frozen.velocity(spoiled, sample.tau, sample.condition), frozen.velocity(*sample.all()))


def test_frame_rate_is_not_passed(frozen, inputs) -> None:
    """diffusers would stretch the temporal positions by 24 / fps, which the released weights do not know."""
    seen = []
    handle = frozen.transformer.rope.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["fps"]), with_kwargs=True)
    with torch.no_grad():
        frozen.velocity(*inputs(frozen).all())
    handle.remove()
    assert seen == [None]


def test_hidden_states_equal_a_full_pass_and_later_blocks_never_run(frozen, inputs) -> None:
    sample = inputs(frozen)
    blocks, calls, full = frozen.transformer.transformer_blocks, [], {}
    handles = [
        block.register_forward_hook(lambda m, a, out, k=k: (calls.append(k), full.update({k: out}))[0]) for k, block in enumerate(blocks)
    ]
    try:
        with torch.no_grad():
            frozen.velocity(*sample.all())
            assert calls == [0, 1, 2, 3]
            expected = dict(full)
            for wanted in ([0], [2], [2, 0], [3, 1, 3]):
                calls.clear()
                states = frozen.hidden_states(*sample.all(), wanted)
                assert calls == list(range(max(wanted) + 1))
                assert set(states) == set(wanted)
                for block, state in states.items():
                    assert torch.equal(state, expected[block])
                    assert state.shape == (2, 3 * 2 * 3, frozen.hidden_dim)
            calls.clear()
            frozen.velocity(*sample.all())  # nothing of the early stop stays behind
            assert calls == [0, 1, 2, 3]
    finally:
        for handle in handles:
            handle.remove()


def test_compiled_blocks_leave_early_too(build, frozen, inputs, monkeypatch) -> None:
    """What is compiled is a block's forward; hooks on the block, which may raise, stay outside."""
    ran = []

    def fake_compile(forward):
        return lambda block, *args, **kwargs: (ran.append(block), forward(block, *args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", fake_compile)
    compiled = build(compile=True)
    with torch.no_grad():
        states = compiled.hidden_states(*inputs(frozen).all(), [1])
        assert torch.equal(states[1], frozen.hidden_states(*inputs(frozen).all(), [1])[1])
        assert ran == list(compiled.transformer.transformer_blocks[:2])
        twin = copy.deepcopy(compiled)
        twin.hidden_states(*inputs(frozen).all(), [1])
        assert ran[2:] == list(twin.transformer.transformer_blocks[:2])


def test_a_models_error_is_not_taken_for_the_early_stop(frozen, inputs, monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(frozen.transformer.transformer_blocks[1], "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        frozen.hidden_states(*inputs(frozen).all(), [2])
    assert not any(block._forward_hooks for block in frozen.transformer.transformer_blocks)


@pytest.mark.parametrize("blocks", [[4], [-1], [0, 9]])
def test_missing_blocks_are_refused_with_the_valid_range(frozen, inputs, blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"blocks 0 \.\.\. 3"):
        frozen.hidden_states(*inputs(frozen).all(), blocks)
    with pytest.raises(ValueError, match="at least one block"):
        frozen.hidden_states(*inputs(frozen).all(), [])


@pytest.mark.parametrize("tau", [-0.01, 1.01, float("nan"), float("inf")])
def test_levels_outside_the_unit_interval_are_refused(frozen, inputs, tau: float) -> None:
    sample = inputs(frozen)
    levels = torch.tensor([0.5, tau])
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\]"):
        frozen.velocity(sample.noisy, levels, sample.condition)
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\]"):
        frozen.hidden_states(sample.noisy, levels, sample.condition, [0])


def test_conditions_that_do_not_fit_are_refused(frozen, inputs) -> None:
    sample = inputs(frozen)
    with pytest.raises(ValueError, match="num_observed must lie in 1 ... 1"):
        frozen.velocity(sample.noisy, sample.tau, VideoCondition(sample.condition.prompt, sample.clean[:, :, :1], torch.tensor([1, 2])))
    with pytest.raises(ValueError, match="observed latents"):
        frozen.velocity(sample.noisy, sample.tau, VideoCondition(sample.condition.prompt, sample.clean[:, :, :1, :2]))
    with pytest.raises((ValueError, TypeError), match="one noise level per sample|tau"):  # a TypeError where shapes are checked
        frozen.velocity(sample.noisy, sample.tau[:1], sample.condition)


@pytest.mark.parametrize("steps", [1, 5])
def test_denoising_keeps_observed_frames_clean(frozen, inputs, steps: int) -> None:
    sample = inputs(frozen, z_observed=2, num_observed=[1, 2])
    taus = karras_taus(35)[: steps + 1]
    end = frozen.denoise(sample.noise, taus, sample.condition, "ab2")
    assert torch.equal(end[0, :, :1], sample.clean[0, :, :1])
    assert torch.equal(end[1, :, :2], sample.clean[1, :, :2])
    assert not torch.equal(end[0, :, 1:], sample.noise[0, :, 1:])
    if steps == 1:  # one Euler step by hand
        with torch.no_grad():
            velocity = frozen.velocity(sample.noise, taus[:1].float().expand(2), sample.condition)
        expected = sample.noise + (taus[1] - taus[0]).float() * velocity
        torch.testing.assert_close(end[0, :, 1:], expected[0, :, 1:], rtol=1e-5, atol=1e-5)


def test_several_levels_and_blocks_of_one_call_are_those_of_separate_calls(frozen, inputs) -> None:
    sample = inputs(frozen, z_observed=2, num_observed=[1, 2])
    taus = torch.tensor([0.98765, 0.5, 0.1])
    noisy = torch.stack([(1 - tau) * sample.clean + tau * sample.noise for tau in taus])
    calls = []
    handle = frozen.transformer.register_forward_pre_hook(lambda *_: calls.append(None))
    with torch.no_grad():
        together = frozen.hidden_states_by_level(noisy, taus, sample.condition, [2, 0])
        assert len(calls) == 1
        for level, tau in enumerate(taus):
            for block in (0, 2):
                alone = frozen.hidden_states(noisy[level], tau.expand(2), sample.condition, [block])[block]
                torch.testing.assert_close(together[block][level], alone, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert together[0].shape == (3, 2, 3 * 2 * 3, 32)
    assert not torch.allclose(together[2][0], together[2][2], atol=1e-2)


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_prompt_too_few_or_too_many_is_refused(frozen, inputs, prompts: int) -> None:
    """Broadcasting would make hidden states of another batch size of it."""
    sample = inputs(frozen)
    object.__setattr__(sample.condition, "prompt", sample.condition.prompt[:1].expand(prompts, -1, -1))  # shapes are checked in tests
    with pytest.raises(ValueError, match=r"prompt must have shape \(2, prompt_tokens, prompt_dim\), one for each sample"):
        frozen.hidden_states(sample.noise, torch.full((2,), 0.5), sample.condition, [0])


@pytest.mark.parametrize("guidance", [7.0, -0.5])
def test_guidance_is_the_official_sum_of_estimates_of_the_clean_sample(frozen, inputs, guidance: float) -> None:
    """x_0 = c + g (c - u), then an Euler step to the next level, which leads to (1 - t'/t) x_0 + t'/t x."""
    sample = inputs(frozen)
    taus, negative = karras_taus(35)[[5, 9]], frozen.encode_prompt(["close the drawer", "close the drawer"])
    for embedding in (None, negative):
        end = frozen.denoise(sample.noise, taus, sample.condition, guidance=guidance, negative_prompt=embedding)
        unconditional = torch.zeros_like(sample.condition.prompt) if embedding is None else embedding
        tau = taus[0].float()
        with torch.no_grad():
            c, u = (
                sample.noise - tau * frozen.velocity(sample.noise, tau.expand(2), VideoCondition(prompt, sample.condition.observed))
                for prompt in (sample.condition.prompt, unconditional)
            )
        ratio = (taus[1] / taus[0]).float()
        expected = (1 - ratio) * (c + guidance * (c - u)) + ratio * sample.noise
        torch.testing.assert_close(end[:, :, 1:], expected[:, :, 1:], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(end, frozen.denoise(sample.noise, taus, sample.condition), atol=1e-4)
        assert torch.equal(end[:, :, :1], sample.clean[:, :, :1])


@pytest.mark.parametrize(("guidance", "passes"), [(0.0, 3), (1.5, 6)])
def test_guidance_that_is_off_costs_one_pass_a_step(frozen, inputs, guidance: float, passes: int) -> None:
    sample, calls = inputs(frozen), []
    handle = frozen.transformer.register_forward_pre_hook(lambda *_: calls.append(None))
    frozen.denoise(sample.noise, karras_taus(35)[:4], sample.condition, guidance=guidance)
    handle.remove()
    assert len(calls) == passes


# ---- Predict2.5 ---------------------------------------------------------------------------------------------------------------


def test_clean_frames_may_be_told_the_level_of_the_others(build, inputs) -> None:
    """Predict2.5's rectified-flow training has no conditional timestep: the result is that of one level per sample."""
    backbone = build(conditional_sigma=None)
    sample = inputs(backbone)
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[:, :, :1] = 1
    with torch.no_grad():
        expected = backbone.transformer(
            hidden_states=mask * sample.clean + (1 - mask) * sample.noisy,
            timestep=sample.tau,
            encoder_hidden_states=sample.condition.prompt,
            condition_mask=mask,
            padding_mask=torch.zeros(1, 1, 32, 48),
        ).sample
        torch.testing.assert_close(backbone.velocity(*sample.all()), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(build().velocity(*sample.all()), expected, atol=1e-4)


def test_a_transformer_that_projects_its_text_is_one_too(own_trio, build, inputs) -> None:
    """Predict2.5: the text encoder is as wide as the transformer's projection takes it, not as the blocks read it."""
    config = {**CosmosTransformer3DModel.load_config(own_trio / "transformer"), "use_crossattn_projection": True}
    config |= {"crossattn_proj_in_channels": 32, "encoder_hidden_states_channels": 24, "text_embed_dim": 24}
    torch.manual_seed(0)
    CosmosTransformer3DModel.from_config(config).save_pretrained(own_trio / "transformer")
    write_manifest(own_trio)
    backbone = build(pretrained=str(own_trio), conditional_sigma=None)
    sample = inputs(backbone)
    with torch.no_grad():
        assert backbone.velocity(*sample.all()).isfinite().all()
        assert backbone.hidden_states(*sample.all(), [1])[1].shape == (2, 18, 32)
    config |= {"crossattn_proj_in_channels": 48}
    CosmosTransformer3DModel.from_config(config).save_pretrained(own_trio / "transformer")
    write_manifest(own_trio)
    with pytest.raises(ValueError, match="text of width 48, but the text encoder gives 32"):
        build(pretrained=str(own_trio))


# ---- precision and gradients --------------------------------------------------------------------------------------------------


def test_velocity_loss_is_the_edm_loss_of_the_real_network_in_float64(build, inputs) -> None:
    backbone = build().double()
    sample = inputs(build())
    clean, noise, tau = sample.clean.double(), sample.noise.double(), torch.tensor([0.3, 0.9], dtype=torch.float64)
    level, future = tau[:, None, None, None, None], 1 - sample.condition.frame_mask(3)[:, None, :, None, None].double()
    with torch.no_grad():
        velocity = backbone.velocity((1 - level) * clean + level * noise, tau, sample.condition)
    assert velocity.dtype == torch.float64
    plain = (future * (velocity - (noise - clean))).square().mean().item()

    sigma = level / (1 - level)
    x_sigma = clean + sigma * noise
    with torch.no_grad():
        estimate = (1 - level) * x_sigma - level * backbone.velocity((1 - level) * x_sigma, tau, sample.condition)
    edm = (future * (1 + sigma) ** 2 / sigma**2 * (estimate - clean).square()).mean().item()
    assert edm == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize(
    "adaptation", [Lora(rank=2, alpha=2), Lora(rank=2, alpha=2, adaln=False), Full(), Full(text_encoder=True), Frozen()]
)
def test_gradient_reaches_exactly_what_adapts(build, inputs, perturb, adaptation) -> None:
    backbone = build(adaptation)
    perturb(backbone)
    velocity = backbone.velocity(*inputs(backbone).all())
    if isinstance(adaptation, Frozen):
        assert not velocity.requires_grad
        return
    velocity.square().mean().backward()
    reached = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    lora = {name for name, _ in backbone.named_parameters() if "lora_" in name}
    every = {name for name, _ in backbone.named_parameters() if name.startswith("transformer.")}
    adaln = {name for name in every if any(part in name for part in (".norm1.l", ".norm2.l", ".norm3.l", ".norm_out.l"))}
    text = {name for name, _ in backbone.named_parameters() if name.startswith("prompts.model.")}
    if isinstance(adaptation, Lora):
        assert reached == (lora | adaln if adaptation.adaln else lora)
        assert len(adaln) == 2 * (3 * 4 + 1)
    else:
        assert reached == every | text
        assert bool(text) == adaptation.text_encoder
    assert reached == {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_gradient_of_early_stop_stays_in_the_blocks_that_ran_and_survives_checkpointing(build, inputs, perturb) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)  # LoRA's start
        backbone = build(Lora(rank=2, alpha=2), gradient_checkpointing=checkpointing)
        perturb(backbone)
        backbone.train()
        backbone.hidden_states(*inputs(backbone).all(), [1])[1].square().mean().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
        assert any("transformer_blocks.1." in name for name in gradients[-1])
        assert not any("transformer_blocks.2." in name or "transformer_blocks.3." in name for name in gradients[-1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_bf16_backbone_keeps_trained_weights_in_fp32_and_trains(build, inputs) -> None:
    backbone = build(Lora(rank=2, alpha=2), dtype="bfloat16")
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in backbone.transformer.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    sample = inputs(backbone)
    velocity = backbone.velocity(*sample.all())
    assert velocity.dtype == torch.float32
    assert backbone.hidden_states(*sample.all(), [1])[1].dtype == torch.bfloat16
    with torch.no_grad():
        precise = build(Lora(rank=2, alpha=2)).velocity(*sample.all())
    assert (velocity - precise).abs().max() < 0.1 * precise.abs().max()
    velocity.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in backbone.parameters() if p.requires_grad)


def test_bf16_mixed_precision_of_a_trainer_works_on_an_fp32_backbone(build, inputs) -> None:
    backbone = build(Full())
    with torch.autocast("cpu", torch.bfloat16):
        loss = backbone.velocity(*inputs(backbone).all()).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in backbone.transformer.parameters())


# ---- identity -----------------------------------------------------------------------------------------------------------------


def test_hashes_tell_weights_but_not_adaptations_apart(build, trio, own_trio) -> None:
    base = build()
    assert build(Lora(rank=2)).weights_hash == base.weights_hash
    assert build(dtype="bfloat16").weights_hash == base.weights_hash
    assert build(dtype="bfloat16").vae_hash != base.vae_hash  # its latents differ
    assert build(initial="random").weights_hash != base.weights_hash
    other = copy.deepcopy(base.vae)
    other.register_to_config(latents_std=[2.0] * 16)  # same weights, other latents
    other.save_pretrained(own_trio / "vae")
    write_manifest(own_trio)
    changed = build(pretrained=str(own_trio))
    assert changed.vae_hash != base.vae_hash
    assert changed.weights_hash != base.weights_hash


def test_random_start_has_other_weights_and_the_same_vae(build, frozen, inputs) -> None:
    torch.manual_seed(3)
    random = build(initial="random")
    sample = inputs(frozen)
    with torch.no_grad():
        assert not torch.allclose(random.velocity(*sample.all()), frozen.velocity(*sample.all()), atol=0.1)
    assert torch.equal(random.encode_video(bytes_video()), frozen.encode_video(bytes_video()))


def test_tensors_of_another_kind_are_refused(frozen, inputs) -> None:
    noisy, _, condition = inputs(frozen).all()
    with pytest.raises(ValueError, match=r"video must be uint8 of shape .*got float32 of \(1, 5, 32, 32, 3\)"):
        check_pixels(torch.rand(1, 5, 32, 32, 3))
    with pytest.raises(ValueError, match=r"got uint8 of \(1, 3, 5, 32, 32\)"):
        check_pixels(torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"latents have shape \(1, 8, 2, 4, 4\), expected \(batch, 16,"):
        frozen.decode_video(torch.zeros(1, 8, 2, 4, 4))
    with pytest.raises(ValueError, match="guidance must be a finite number, got nan"):
        frozen.denoise(noisy, torch.tensor([0.9, 0.5]), condition, guidance=float("nan"))
