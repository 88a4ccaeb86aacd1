"""The official mimic-video action decoder from its equations, on official key names: what an imported decoder is compared with.

Shapes and names: mimic-video, `models/world2action_dit.py` and `pipelines/world2action.py`. No line of our decoder runs.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

WIDTH, DEPTH, HEADS, ADALN, CONTEXT = 16, 2, 2, 4, 12
PROPRIO, ACTION, HORIZON = 3, 2, 6
EMBEDDER = {PROPRIO: (3, 16), ACTION: (2, 6, 16)}  # round(log4(16 / 3)) = 1 hop, round(log4(16 / 2)) = 2 hops of ratio sqrt(8)


def state_dict(horizon: int = HORIZON, depth: int = DEPTH) -> dict[str, Tensor]:
    """Random weights under the names of an official file."""
    shapes: dict[str, tuple[int, ...]] = {
        "ctx_norm.weight": (CONTEXT,),
        "ctx_norm.bias": (CONTEXT,),
        "obs_mask_token": (1, 1, WIDTH),
        "pos_embedding": (1, 1 + horizon, WIDTH),
        "t_embedding_norm.weight": (WIDTH,),
        "t_embedder.pair.A.weight": (3 * WIDTH, WIDTH),
        "final_layer.linear.weight": (ACTION, WIDTH),
        "final_layer.adaln_modulation.1.weight": (ADALN, WIDTH),
        "final_layer.adaln_modulation.2.weight": (2 * WIDTH, ADALN),
    }
    for name in ("proj_x", "proj_c", "B", "C"):
        shapes |= {f"t_embedder.pair.{name}.weight": (WIDTH, WIDTH), f"t_embedder.pair.{name}.bias": (WIDTH,)}
    for name, widths in {"obs_embedder": EMBEDDER[PROPRIO], "action_embedder": EMBEDDER[ACTION]}.items():
        for hop in range(len(widths) - 1):
            shapes |= {
                f"{name}.layers.{2 * hop}.weight": (widths[hop + 1], widths[hop]),
                f"{name}.layers.{2 * hop}.bias": (widths[hop + 1],),
            }
    for block in range(depth):
        own: dict[str, tuple[int, ...]] = {"mlp.layer1": (4 * WIDTH, WIDTH), "mlp.layer2": (WIDTH, 4 * WIDTH)}
        for attention, width in (("cross_attn", CONTEXT), ("self_attn", WIDTH)):
            own |= {f"{attention}.q_proj": (WIDTH, WIDTH), f"{attention}.output_proj": (WIDTH, WIDTH)}
            own |= {f"{attention}.{name}": (WIDTH, width) for name in ("k_proj", "v_proj")}
            own |= {f"{attention}.{name}": (WIDTH // HEADS,) for name in ("q_norm", "k_norm")}
        for part in ("cross_attn", "self_attn", "mlp"):
            own |= {f"adaln_modulation_{part}.1": (ADALN, WIDTH), f"adaln_modulation_{part}.2": (3 * WIDTH, ADALN)}
        shapes |= {f"blocks.{block}.{name}.weight": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(shape, generator=generator) / max(shape[-1], 4) ** 0.5 for name, shape in shapes.items()}


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def embed(w: dict[str, Tensor], name: str, x: Tensor, hops: int) -> Tensor:
    for hop in range(hops):
        x = F.gelu(x) if hop else x
        x = x @ w[f"{name}.layers.{2 * hop}.weight"].T + w[f"{name}.layers.{2 * hop}.bias"]
    return x / WIDTH**0.5


def sinusoids(tau: Tensor) -> Tensor:
    """WIDTH / 2 periods, 4e-3 ... 4 in geometric steps; sines, then cosines."""
    periods = 4e-3 * 1e3 ** torch.linspace(0, 1, WIDTH // 2, dtype=torch.float64)
    angle = math.tau * tau[..., None] / periods
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def attention(w: dict[str, Tensor], name: str, x: Tensor, context: Tensor) -> Tensor:
    q, k, v = (
        rearrange(source @ w[f"{name}.{part}_proj.weight"].T, "b s (h d) -> b h s d", h=HEADS)
        for part, source in (("q", x), ("k", context), ("v", context))
    )
    q, k = rms_norm(q, w[f"{name}.q_norm.weight"]), rms_norm(k, w[f"{name}.k_norm.weight"])
    mixed = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
    return rearrange(mixed, "b h s d -> b s (h d)") @ w[f"{name}.output_proj.weight"].T


def modulation(w: dict[str, Tensor], name: str, e: Tensor, shared: Tensor) -> Tensor:
    return F.silu(e) @ w[f"{name}.1.weight"].T @ w[f"{name}.2.weight"].T + shared


def velocity(weights: dict[str, Tensor], actions: Tensor, tau_a: Tensor, context: Tensor, tau_v: Tensor, proprio: Tensor) -> Tensor:
    """In float64, normalised units: (b, horizon, actions), (b), (b, tokens, context), (b), (b, 1, proprio)."""
    w = {name: value.double() for name, value in weights.items()}
    actions, tau_a, context, tau_v, proprio = (value.double() for value in (actions, tau_a, context, tau_v, proprio))
    tau = tau_a[:, None, None]
    scaled = actions / ((1 - tau) ** 2 + tau**2).sqrt()
    tokens = [embed(w, "obs_embedder", proprio, 1), embed(w, "action_embedder", scaled, 2)]
    x = torch.cat(tokens, dim=1) + w["pos_embedding"]
    context = layer_norm(context) * w["ctx_norm.weight"] + w["ctx_norm.bias"]

    pair = {name.removeprefix("t_embedder.pair."): value for name, value in w.items() if name.startswith("t_embedder.pair.")}
    times = torch.cat([torch.full_like(proprio[..., 0], 1e-3), tau_a[:, None].expand(-1, actions.shape[1])], dim=1)
    phi_a = F.silu(sinusoids(times) @ pair["proj_x.weight"].T + pair["proj_x.bias"])
    phi_v = F.silu(sinusoids(tau_v[:, None]) @ pair["proj_c.weight"].T + pair["proj_c.bias"])
    left, right = phi_a @ pair["B.weight"].T + pair["B.bias"], phi_v @ pair["C.weight"].T + pair["C.bias"]
    z = left * right - pair["B.bias"] * pair["C.bias"]
    shared, e = z @ pair["A.weight"].T, rms_norm(z, w["t_embedding_norm.weight"])

    for block in range(DEPTH):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in w.items() if name.startswith(f"blocks.{block}.")}
        shift, scale, gate = modulation(own, "adaln_modulation_cross_attn", e, shared).chunk(3, dim=-1)
        x = x + gate * attention(own, "cross_attn", layer_norm(x) * (1 + scale) + shift, context)
        shift, scale, gate = modulation(own, "adaln_modulation_self_attn", e, shared).chunk(3, dim=-1)
        y = layer_norm(x) * (1 + scale) + shift
        x = x + gate * attention(own, "self_attn", y, y)
        shift, scale, gate = modulation(own, "adaln_modulation_mlp", e, shared).chunk(3, dim=-1)
        hidden = F.gelu((layer_norm(x) * (1 + scale) + shift) @ own["mlp.layer1.weight"].T)
        x = x + gate * (hidden @ own["mlp.layer2.weight"].T)
    shift, scale = modulation(w, "final_layer.adaln_modulation", e, shared[..., : 2 * WIDTH]).chunk(2, dim=-1)
    return ((layer_norm(x) * (1 + scale) + shift) @ w["final_layer.linear.weight"].T)[:, proprio.shape[1] :]
