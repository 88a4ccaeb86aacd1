"""NVIDIA's Cosmos-Predict2 network from its equations, on native key names: what an imported network is compared with.

Shapes and names: nvidia-cosmos/cosmos-predict2, `models/text2image_dit.py` and `models/video2world_dit.py`. No line of diffusers runs.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

HEADS, HEAD_DIM, LAYERS, ADALN, TEXT, CHANNELS = 2, 16, 3, 4, 32, 16
WIDTH = HEADS * HEAD_DIM
ROPE_SCALE = (1.0, 3.0, 3.0)
CONFIG = {
    "_class_name": "CosmosTransformer3DModel",
    "in_channels": CHANNELS + 1,
    "out_channels": CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "num_layers": LAYERS,
    "mlp_ratio": 4.0,
    "text_embed_dim": TEXT,
    "adaln_lora_dim": ADALN,
    "rope_scale": ROPE_SCALE,
    "extra_pos_embed_type": None,
}


def state_dict(layers: int = LAYERS, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under the names of a native file."""
    shapes = {
        "x_embedder.proj.1": (WIDTH, (CHANNELS + 2) * 4),
        "t_embedder.1.linear_1": (WIDTH, WIDTH),
        "t_embedder.1.linear_2": (3 * WIDTH, WIDTH),
        "t_embedding_norm": (WIDTH,),
        "final_layer.linear": (4 * CHANNELS, WIDTH),
        "final_layer.adaln_modulation.1": (ADALN, WIDTH),
        "final_layer.adaln_modulation.2": (2 * WIDTH, ADALN),
    }
    for block in range(layers):
        own: dict[str, tuple[int, ...]] = {"mlp.layer1": (4 * WIDTH, WIDTH), "mlp.layer2": (WIDTH, 4 * WIDTH)}
        for attention, context in (("self_attn", WIDTH), ("cross_attn", TEXT)):
            own |= {f"{attention}.q_proj": (WIDTH, WIDTH), f"{attention}.output_proj": (WIDTH, WIDTH)}
            own |= {f"{attention}.{name}": (WIDTH, context) for name in ("k_proj", "v_proj")}
            own |= {f"{attention}.{name}": (HEAD_DIM,) for name in ("q_norm", "k_norm")}
        for part in ("self_attn", "cross_attn", "mlp"):
            own |= {f"adaln_modulation_{part}.1": (ADALN, WIDTH), f"adaln_modulation_{part}.2": (3 * WIDTH, ADALN)}
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = (1 + value / 4 if len(shape) == 1 else value / shape[-1] ** 0.5).to(dtype)
    return weights


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def rotary_angles(frames: int, rows: int, columns: int) -> Tensor:
    """(frames * rows * columns, HEAD_DIM): per axis position * base^(-2i/d), base = 10000 * scale^(d / (d - 2)); no frame rate."""
    spatial = HEAD_DIM // 6 * 2
    sizes = (HEAD_DIM - 2 * spatial, spatial, spatial)
    axes = []
    for axis, (length, dim, scale) in enumerate(zip((frames, rows, columns), sizes, ROPE_SCALE, strict=True)):
        base = 10000.0 * scale ** (dim / (dim - 2))
        frequency = base ** (-torch.arange(0, dim, 2).double() / dim)
        angle = torch.arange(length).double()[:, None] * frequency
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        axes.append(angle.view(shape).expand(frames, rows, columns, dim // 2))
    half = torch.cat(axes, dim=-1).reshape(frames * rows * columns, HEAD_DIM // 2)
    return torch.cat([half, half], dim=-1)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()


def attention(w: dict[str, Tensor], name: str, x: Tensor, context: Tensor, angle: Tensor | None) -> Tensor:
    q, k, v = (
        rearrange(source @ w[f"{name}.{part}_proj.weight"].T, "b s (h d) -> b h s d", h=HEADS)
        for part, source in (("q", x), ("k", context), ("v", context))
    )
    q, k = rms_norm(q, w[f"{name}.q_norm.weight"]), rms_norm(k, w[f"{name}.k_norm.weight"])
    if angle is not None:
        q, k = rotate(q, angle), rotate(k, angle)
    mixed = (q @ k.transpose(-1, -2) / HEAD_DIM**0.5).softmax(-1) @ v
    return rearrange(mixed, "b h s d -> b s (h d)") @ w[f"{name}.output_proj.weight"].T


def modulation(w: dict[str, Tensor], name: str, embedding: Tensor, shared: Tensor) -> Tensor:
    return F.silu(embedding) @ w[f"{name}.1.weight"].T @ w[f"{name}.2.weight"].T + shared


def velocity(weights: dict[str, Tensor], latents: Tensor, mask: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """Network output in float64: (b, 16, t, h, w) latents, (b, 1, t, h, w) mask of clean frames, (b, t) times, (b, n, d) text."""
    w = {name: value.double() for name, value in weights.items()}
    latents, mask, times, text = latents.double(), mask.double(), times.double(), text.double()
    _, _, frames, height, width = latents.shape
    rows, columns = height // 2, width // 2
    x = torch.cat([latents, mask, torch.zeros_like(mask)], dim=1)
    x = rearrange(x, "b c t (h m) (w n) -> b (t h w) (c m n)", m=2, n=2) @ w["x_embedder.proj.1.weight"].T

    frequency = torch.exp(-math.log(10000.0) * torch.arange(WIDTH // 2).double() / (WIDTH // 2))
    angle = times[..., None] * frequency
    sinusoid = torch.cat([angle.cos(), angle.sin()], dim=-1)
    shared = F.silu(sinusoid @ w["t_embedder.1.linear_1.weight"].T) @ w["t_embedder.1.linear_2.weight"].T
    embedding = rms_norm(sinusoid, w["t_embedding_norm.weight"])
    shared, embedding = (value.repeat_interleave(rows * columns, dim=1) for value in (shared, embedding))  # a frame's for its tokens

    angles = rotary_angles(frames, rows, columns)
    for block in range(LAYERS):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in w.items() if name.startswith(f"blocks.{block}.")}
        shift, scale, gate = modulation(own, "adaln_modulation_self_attn", embedding, shared).chunk(3, dim=-1)
        y = layer_norm(x) * (1 + scale) + shift
        x = x + gate * attention(own, "self_attn", y, y, angles)
        shift, scale, gate = modulation(own, "adaln_modulation_cross_attn", embedding, shared).chunk(3, dim=-1)
        x = x + gate * attention(own, "cross_attn", layer_norm(x) * (1 + scale) + shift, text, None)
        shift, scale, gate = modulation(own, "adaln_modulation_mlp", embedding, shared).chunk(3, dim=-1)
        hidden = F.gelu((layer_norm(x) * (1 + scale) + shift) @ own["mlp.layer1.weight"].T)
        x = x + gate * (hidden @ own["mlp.layer2.weight"].T)
    shift, scale = modulation(w, "final_layer.adaln_modulation", embedding, shared[..., : 2 * WIDTH]).chunk(2, dim=-1)
    x = (layer_norm(x) * (1 + scale) + shift) @ w["final_layer.linear.weight"].T
    return rearrange(x, "b (t h w) (m n c) -> b c t (h m) (w n)", t=frames, h=rows, w=columns, m=2, n=2)
