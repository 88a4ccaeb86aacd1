"""What a policy learns of actions: absolute, relative to the newest state, or step by step, SE(3)-correct and invertible."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

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

    An episode is read once (`learn`); each window then takes a chunk of it (`chunk`); in a roll-out a predicted chunk becomes absolute
    targets (`absolute`) and commands in the dataset's own format (`commands`). All are float64 and take any leading axes.

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

    def window(
        self,
        actions: Shaped[np.ndarray, "steps action_dim"],
        steps: Int[np.ndarray, "*batch horizon"],
        beyond: Bool[np.ndarray, "*batch horizon"],
        anchor: Shaped[np.ndarray, "*batch proprio_dim"],
        tail: Tail,
    ) -> Float[np.ndarray, "*batch horizon action_dim"]:
        """The chunk of one window, or of several of one episode, with its tail.

        Args:
            actions: Of the whole episode; see `learn`.
            steps: Those of the chunk, held at the episode's last; see `Window.action_steps`.
            beyond: Which of them lie beyond its end.
            anchor: See `chunk`.
            tail: `repeat` repeats the last learned value: an absolute or relative target is held, a delta goes on as before.
                `zero_delta` stays in every representation.
        """
        chunk = self.chunk(actions[steps], anchor)
        if not beyond.any():
            return chunk
        horizon = beyond.shape[-1]
        last = np.where(beyond.any(-1), np.maximum(beyond.argmax(-1) - 1, 0), horizon - 1)
        # A delta between two held targets is none; repeating is the caller's choice, made below.
        chunk = np.take_along_axis(chunk, np.minimum(np.arange(horizon), last[..., None])[..., None], axis=-2)
        return fill_tail(chunk, beyond, tail, self.hold_dims, self.neutral)

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
        for group in self.actions.groups:
            state = self._anchor(group)
            if state is None:
                continue
            here, there = self.actions.places[group.name], self.proprio.places[state.name]
            rotation = self._rotation_of(group)
            if group.kind == "rotation":
                turned = _turns(values[..., here], anchor[..., there], group, back)
                result[..., here] = from_matrix(turned, "6d")
            elif rotation is None or group.frame == "world":
                result[..., here] = _shifts(values[..., here], anchor[..., there], group, back)
            else:
                state_rotation = self._anchor(rotation)
                assert state_rotation is not None
                turns = to_matrix(values[..., self.actions.places[rotation.name]], "6d")
                start = to_matrix(anchor[..., self.proprio.places[state_rotation.name]], "6d")
                result[..., here] = _shifts_in_body(values[..., here], anchor[..., there], turns, start, group, back)
        return result

    def _rotation_of(self, group: Group) -> Group | None:
        if group.kind != "position":
            return None
        return next((other for other in self.actions.groups if other.kind == "rotation" and other.body == group.body), None)


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
    """What each step is measured from: the anchor, or for deltas the step before it."""
    anchor = np.expand_dims(start, axis)
    if group.learned == "relative":
        return np.broadcast_to(anchor, values.shape)
    return np.concatenate([anchor, np.take(values, range(values.shape[axis] - 1), axis)], axis)


def _shifts(values: np.ndarray, start: np.ndarray, group: Group, back: bool) -> np.ndarray:
    """p - p_before, or back."""
    if not back:
        return values - _before(values, start, group, axis=-2)
    return start[..., None, :] + (values if group.learned == "relative" else np.cumsum(values, axis=-2))


def _turns(values: np.ndarray, start: np.ndarray, group: Group, back: bool) -> np.ndarray:
    """R_before^T R (body) or R R_before^T (world), or back, as matrices."""
    turns, first = to_matrix(values, "6d"), to_matrix(start, "6d")
    body = group.frame == "body"
    if not back:
        before = inverse(_before(turns, first, group, axis=-3))
        return before @ turns if body else turns @ before
    if group.learned == "relative":
        return first[..., None, :, :] @ turns if body else turns @ first[..., None, :, :]
    return _running_product(turns, first, body)


def _shifts_in_body(
    values: np.ndarray, start: np.ndarray, turns: np.ndarray, start_turn: np.ndarray, group: Group, back: bool
) -> np.ndarray:
    """R_before^T (p - p_before), or back; `turns` are the chunk's rotations in the form that `values` have."""
    if not back:
        before = _before(turns, start_turn, group, axis=-3)
        return _rotate(inverse(before), values - _before(values, start, group, axis=-2))
    if group.learned == "relative":
        return start[..., None, :] + _rotate(start_turn[..., None, :, :], values)
    absolute = _running_product(turns, start_turn, body=True)
    before = np.concatenate([start_turn[..., None, :, :], absolute[..., :-1, :, :]], axis=-3)
    return start[..., None, :] + np.cumsum(_rotate(before, values), axis=-2)


def _running_product(turns: np.ndarray, first: np.ndarray, body: bool) -> np.ndarray:
    result, current = np.empty_like(turns), first
    for step in range(turns.shape[-3]):
        turn = turns[..., step, :, :]
        current = current @ turn if body else turn @ current
        result[..., step, :, :] = current
    return result


def _rotate(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return (matrices @ vectors[..., None])[..., 0]
