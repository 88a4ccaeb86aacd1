"""What a policy's validation measures: the flow loss, and the errors of sampled chunks in dataset units."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimicvideo import flow, ranks
from mimicvideo.action.decoder import PreparedContext
from mimicvideo.noise import Generators, standard_normal
from mimicvideo.types import Demonstration

if TYPE_CHECKING:
    from mimicvideo.action.policy import ActionPolicy


@torch.no_grad()
def errors(
    policy: "ActionPolicy", batch: Demonstration, generators: Generators, counts: Float[Tensor, " batch"]
) -> dict[str, Float[Tensor, ""]]:
    """`loss`, `action_mse_tau_<tau>` for each of the policy's `validation_taus`, their mean `action_mse`, and `action_mse_generated`.

    All noise comes from `generators`; see `ActionPolicy.validation_step`. Samples whose count is 0 are those of another process.
    """
    metrics = {"loss": ranks.average(policy._flow_losses(batch, generators), counts)}
    latents = policy._latents(batch)
    condition = policy._condition(batch["observation"]["prompt"], latents)
    noise = standard_normal(latents.shape, generators, latents.device)
    action_noise = standard_normal(batch["actions"].shape, generators, latents.device)

    def error(context: PreparedContext, tau_video: Tensor) -> Tensor:
        actions = policy._sample_actions(context, tau_video, batch["observation"]["proprio"], action_noise)
        return ranks.average(F.mse_loss(actions, batch["actions"], reduction="none").flatten(1).mean(1), counts)

    for tau in policy.validation_taus:
        tau_video = torch.full(latents.shape[:1], tau, device=latents.device)
        hidden = policy._hidden_states(flow.interpolate(latents, noise, tau_video), tau_video, condition)
        metrics[f"action_mse_tau_{tau:.2f}"] = error(policy.decoder.prepare_context(*hidden), tau_video)
    if policy.validation_taus:
        metrics["action_mse"] = torch.stack([metrics[f"action_mse_tau_{tau:.2f}"] for tau in policy.validation_taus]).mean()
    hidden, tau_video = policy._future_states(condition, noise, latents)
    metrics["action_mse_generated"] = error(policy.decoder.prepare_context(*hidden), tau_video)
    return metrics
