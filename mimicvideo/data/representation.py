"""What a policy learns of actions: absolute, relative to the newest state, or step by step, SE(3)-correct and invertible."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mimicvideo.data.layout import Group, Layout, parse_layout
from mimicvideo.data.rotations import IDENTITY_6D, from_matrix, inverse, to_matrix
from mimicvideo.data.window import Tail, fill_tail
from mimicvideo.normalize import Mode, Normalization


class LearnedVectors(TypedDict):
    """An episode's vectors in learnable form; see `Layout.learn`. Actions that are to become relative or deltas are still absolute."""

    actions: Float[np.ndarray, "steps action_dim"]
    proprio: Float[np.ndarray, "rows proprio_dim"]


@dataclass(frozen=True)
class Representation:
    """The layouts of actions and proprio, and what becomes of actions once a window's anchor state is known.

    An episode is read once (`learn`); windows then take chunks of it (`windows`, or `chunk` without tails). In a roll-out a predicted
    chunk becomes absolute targets (`absolute`) or commands in the dataset's own format (`commands`). All are float64 and take any
    leading axes.

    Args:
        actions: See `parse_layout`.
        proprio: Likewise; relative actions and deltas of absolute ones need its groups of the same kind and body.

    Raises:
        ValueError: If an anchor is missing or has another width.
    """

    actions: Layout
    proprio: Layout

    def __post_init__(self) -> None:
        for group in self.actions.groups:
            self._anchor(group)

    @property
    def neutral(self) -> Float[np.ndarray, " action_dim"]:
        """The learned action that stays where it is, as far as it does not depend on the place: no change, and 6-D identity for turns."""
        result = np.zeros(self.actions.learned_dim)
        for group in self.actions.groups:
            if group.kind == "rotation":
                result[self.actions.places[group.name]] = IDENTITY_6D
        return result

    @property
    def learned(self) -> list[str]:
        """What each group of actions is learned as, in words; datasets whose words agree can be mixed."""
        return [f"{group.name}: {group.learned} {group.kind}, {group.frame} {group.body}".rstrip() for group in self.actions.groups]

    @property
    def hold_dims(self) -> tuple[int, ...]:
        """Learned dimensions whose last value means "stay": all but deltas. A relative pose of zero would go back to the anchor."""
        held = [self.actions.places[group.name] for group in self.actions.groups if group.learned != "delta"]
        return tuple(dim for place in held for dim in range(place.start, place.stop))

    def normalization(self, mode: Mode = "variance", per_step: bool = True) -> Normalization:
        """What a policy's `normalization` must be: `mode` for everything but rotations."""
        return {"actions": self.actions.normalization(mode), "proprio": self.proprio.normalization(mode), "per_step": per_step}

    def learn(self, actions: Shaped[np.ndarray, "steps _"], proprio: Shaped[np.ndarray, "rows _"]) -> LearnedVectors:
        """An episode in learnable form. Raises ValueError; see `Layout.learn`."""
        stored = {"actions": actions, "proprio": proprio}
        return {"actions": self.actions.learn(stored), "proprio": self.proprio.learn(stored)}

    def chunk(
        self, actions: Shaped[np.ndarray, "*batch horizon action_dim"], anchor: Shaped[np.ndarray, "*batch proprio_dim"]
    ) -> Float[np.ndarray, "*batch horizon action_dim"]:
        """What the policy predicts.

        Args:
            actions: Successive learned vectors of `learn`.
            anchor: The newest state of the observation, likewise.
        """
        return self._convert(np.asarray(actions, dtype=np.float64), np.asarray(anchor, dtype=np.float64), back=False)

    def absolute(
        self, chunk: Shaped[np.ndarray, "*batch horizon action_dim"], anchor: Shaped[np.ndarray, "*batch proprio_dim"]
    ) -> Float[np.ndarray, "*batch horizon action_dim"]:
        """The inverse of `chunk`: absolute targets, but for what the dataset itself stores as deltas."""
        return self._convert(np.asarray(chunk, dtype=np.float64), np.asarray(anchor, dtype=np.float64), back=True)

    def commands(
        self, chunk: Shaped[np.ndarray, "*batch horizon action_dim"], anchor: Shaped[np.ndarray, "*batch proprio_dim"]
    ) -> Float[np.ndarray, "*batch horizon command_dim"]:
        """Absolute targets in the dataset's format; see `Layout.store` for their order."""
        return self.actions.store(self.absolute(chunk, anchor))

    def windows(
        self,
        actions: Shaped[np.ndarray, "*batch horizon action_dim"],
        beyond: Bool[np.ndarray, "*batch horizon"],
        anchor: Shaped[np.ndarray, "*batch proprio_dim"],
        tail: Tail,
    ) -> Float[np.ndarray, "*batch horizon action_dim"]:
        """Chunks with their tails.

        Args:
            actions: The steps of each window out of `learn`, held at the episode's last; see `Window.action_steps`.
            beyond: Which of them lie beyond its end; never the first.
            anchor: See `chunk`.
            tail: `repeat` repeats the last learned value: an absolute or relative target is held, a delta goes on as before.
                `zero_delta` stays in every representation.
        """
        chunk = self.chunk(actions, anchor)
        if not beyond.any():
            return chunk
        # A delta between two held targets is none. Whether the last one before is repeated is the caller's choice: so repeat it first.
        inside = np.maximum((~beyond).sum(-1, keepdims=True) - 1, 0)
        steps = np.minimum(np.arange(beyond.shape[-1]), inside)
        return fill_tail(np.take_along_axis(chunk, steps[..., None], axis=-2), beyond, tail, self.hold_dims, self.neutral)

    # ---- groups ---------------------------------------------------------------------------------------------------------------

    def _anchor(self, group: Group) -> Group | None:
        """The state that a group is relative to; None if to none. Raises ValueError if there should be one."""
        if group.learned == "absolute" or group.stored == "delta":
            return None
        for other in self.proprio.groups:
            if (other.kind, other.body) == (group.kind, group.body):
                if other.learned_width != group.learned_width:
                    raise ValueError(
                        f"actions.{group.name} has {group.learned_width} numbers, its anchor proprio.{other.name} {other.learned_width}: "
                        "they must be the same axes"
                    )
                return other
        of = f" of body {group.body!r}" if group.body else ""
        raise ValueError(f"actions.{group.name} is learned as {group.learned}, but proprio has no {group.kind} group{of} to start from")

    def _convert(self, values: np.ndarray, anchor: np.ndarray, back: bool) -> np.ndarray:
        result = values.copy()
        axes: dict[str, np.ndarray] = {}  # by body, the rotations in whose axes its positions are measured
        for group in sorted(self.actions.groups, key=lambda group: group.kind != "rotation"):  # rotations first
            if (state := self._anchor(group)) is None:
                continue
            here, there = self.actions.places[group.name], self.proprio.places[state.name]
            if group.kind == "rotation":
                turns, before = _turns(to_matrix(values[..., here], "6d"), to_matrix(anchor[..., there], "6d"), group, back)
                result[..., here] = from_matrix(turns, "6d")
                if group.frame == "body":
                    axes[group.body] = before
            else:
                result[..., here] = _shifts(values[..., here], anchor[..., there], axes.get(group.body), group, back)
        return result


def parse_representation(description: Mapping[str, Any], action_dim: int | None = None, proprio_dim: int | None = None) -> Representation:
    """Reads a representation from a plain mapping with the keys `actions` and `proprio`; see `parse_layout`.

    Args:
        description: As yaml gives it.
        action_dim: Numbers of a stored action, if known.
        proprio_dim: Numbers of a stored state, if known.

    Raises:
        ValueError: If a key is missing or unknown, or see `parse_layout` and `Representation`.
    """
    if not isinstance(description, Mapping) or set(description) != {"actions", "proprio"}:
        given = sorted(description) if isinstance(description, Mapping) else description
        raise ValueError(f"a representation has the keys actions and proprio, each a mapping of groups; got {given}")
    actions, proprio = description["actions"], description["proprio"]
    return Representation(parse_layout(actions, "actions", action_dim), parse_layout(proprio, "proprio", proprio_dim))


def _before(values: np.ndarray, start: np.ndarray, group: Group, axis: int) -> np.ndarray:
    """What each absolute value is measured from: the anchor, or for deltas the value before it."""
    anchor = np.expand_dims(start, axis)
    if group.learned == "relative":
        return np.broadcast_to(anchor, values.shape)
    return np.concatenate([anchor, np.take(values, range(values.shape[axis] - 1), axis)], axis)


def _turns(turns: np.ndarray, start: np.ndarray, group: Group, back: bool) -> tuple[np.ndarray, np.ndarray]:
    """R_before^T R (body) or R R_before^T (world), or back; and R_before of each step. All are matrices."""
    body = group.frame == "body"
    if not back:
        before = _before(turns, start, group, axis=-3)
        return (inverse(before) @ turns if body else turns @ inverse(before)), before
    absolute, before = np.empty_like(turns), np.empty_like(turns)
    current = start
    for step in range(turns.shape[-3]):
        turn = turns[..., step, :, :]
        before[..., step, :, :] = current
        absolute[..., step, :, :] = current @ turn if body else turn @ current
        current = start if group.learned == "relative" else absolute[..., step, :, :]
    return absolute, before


def _shifts(values: np.ndarray, start: np.ndarray, axes: np.ndarray | None, group: Group, back: bool) -> np.ndarray:
    """p - p_before in the given axes, or back; without axes, in those that p has. Joints likewise, where nothing turns."""
    axes = axes if group.kind == "position" else None
    if not back:
        moved = values - _before(values, start, group, axis=-2)
        return moved if axes is None else _rotate(inverse(axes), moved)
    moved = values if axes is None else _rotate(axes, values)
    return start[..., None, :] + (moved if group.learned == "relative" else np.cumsum(moved, axis=-2))


def _rotate(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (matrices @ vectors[..., None])[..., 0]
