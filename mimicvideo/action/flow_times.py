"""Flow times: whether the noise levels of video and actions are drawn apart, as in the paper, or are one and the same."""

from typing import Literal

from mimicvideo.action.future import PAPER_TAU, Future
from mimicvideo.noise import Fixed, NoiseLevels

FlowTimes = Literal["decoupled", "tied"]
"""How tau_a of a training sample follows from its tau_v.

`decoupled`: it does not; tau_a comes from `action_noise`. The decoder meets every pair, so that it can act on hidden states of any
    noise level, in one pass of the backbone.
`tied`: tau_a = tau_v, from `video_noise`, since the frozen backbone is at home at those levels; `action_noise` is not used. A pass of
    the backbone has one level, so that its `draws` share tau_a and differ in the noise of their actions.

When acting, and for the action errors of validation, the hidden states are read once per chunk in either case, and the decoder is told
the level at which they were taken. The action flow then runs from 1 to 0 by itself: of tied times only the start, tau_v = 1 (the
paper's 80/81), is a pair that training has shown. To stay tied, every Euler step would need the video at its own level: two passes of
the backbone each, one for the states and one for the video's velocity, in place of a single one per chunk. That cost is what decoupled
times avoid, and a tied decoder in one pass shows what they are worth.
"""

START_TAU = 0.98  # as good as noise: of the official grid of 35 steps the first four levels lie above it, from 80/81 on


def check_flow_times(flow_times: FlowTimes, video_noise: NoiseLevels, future: Future) -> None:
    """Raises ValueError for another word, and for tied times that leave nothing to learn or do not even start tied."""
    if flow_times not in ("decoupled", "tied"):
        raise ValueError(f"flow_times must be decoupled or tied, got {flow_times!r}")
    if flow_times == "decoupled":
        return
    if isinstance(video_noise, Fixed):
        raise ValueError(
            f"flow_times tied gives the actions the video's noise level, which is always {video_noise.tau} here, so that no other is "
            "learned: choose a video_noise that varies (paper or uniform), or flow_times decoupled"
        )
    if future.tau < START_TAU:
        raise ValueError(
            f"flow_times tied needs a future at the action flow's start, tau >= {START_TAU}, got {future.tau}: choose future noise "
            f"(tau {PAPER_TAU:.5f}), or flow_times decoupled"
        )
