"""What the dimensions of an action or state vector are: named groups read from a plain mapping, and their common, learnable form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped

from mimicvideo.data import rotations
from mimicvideo.data.gripper import Gripper
from mimicvideo.messages import nearest
from mimicvideo.normalize import Mode

Kind = Literal["position", "rotation", "gripper", "joint", "other", "unused"]
Learned = Literal["absolute", "relative", "delta"]
Stored = Literal["absolute", "delta"]
Frame = Literal["body", "world"]
Vector = Literal["actions", "proprio"]

_MOTION = ("stored", "learned", "frame", "body")
_GRIPPER = tuple(option.name for option in fields(Gripper))
_KEYS: dict[str, tuple[str, ...]] = {
    "position": ("source", "shift", *_MOTION),
    "rotation": ("source", "shift", *_MOTION, "format", "right_factor"),
    "joint": ("source", "shift", "stored", "learned", "body"),
    "gripper": ("source", "shift", *_GRIPPER),
    "other": ("source", "shift"),
    "unused": ("value",),
}
_NAMES_6D = ("r11", "r12", "r13", "r21", "r22", "r23")


@dataclass(frozen=True)
class Group:
    """Some dimensions of a vector that mean one thing.

    Attributes:
        name: Its key in the mapping.
        kind: `position` (metres), `rotation`, `gripper`, `joint` (one number per axis), `other` (taken as it is) or `unused` (not learned).
        dims: Its places in the stored vector, 0-based, in order.
        source: Which stored vector has them. Actions may come from `proprio`: the pose reached is the command that led there (Bridge).
        shift: So many control steps later: 1 takes the next step's value, as commands out of states must (the paper's Bridge).
        stored: What the stored numbers are: `absolute`, or `delta` from the step before, a controller's own increments (LIBERO).
        learned: What the policy learns: `absolute`, `relative` to the newest proprio, or `delta` from the step before (the first from
            the newest proprio).
        frame: Whose axes relative poses and deltas have. `body` is T_anchor^-1 T: position and rotation in the anchor's own axes (the
            paper's Bridge). `world` is p - p_anchor and R R_anchor^T (robosuite's deltas, hence LIBERO's); it is all that a position
            without a rotation has, and the default of stored deltas.
        body: Which body a position, rotation or joint group belongs to, where there are several (`left`, `right`).
        format: Of a stored rotation; what is learned is always its 6-D form.
        right_factor: A fixed rotation R_f: R_stored R_f is used. It turns one convention of a tool's axes into another.
        gripper: Of a gripper group.
        value: What an unused dimension of a command is.
    """

    name: str
    kind: Kind
    dims: tuple[int, ...]
    source: Vector
    shift: int = 0
    stored: Stored = "absolute"
    learned: Learned = "absolute"
    frame: Frame = "body"
    body: str = ""
    format: rotations.Format = "6d"
    right_factor: np.ndarray | None = field(default=None, compare=False)
    gripper: Gripper | None = None
    value: tuple[float, ...] = ()

    @property
    def learned_width(self) -> int:
        """Numbers that it has in the learned vector."""
        return {"rotation": 6, "unused": 0}.get(self.kind, len(self.dims))

    @property
    def learned_names(self) -> list[str]:
        """A name for each of them."""
        parts = {"rotation": _NAMES_6D, "position": ("x", "y", "z")}.get(self.kind, tuple(map(str, range(len(self.dims)))))
        return [self.name] if self.learned_width == 1 else [f"{self.name}_{part}" for part in parts[: self.learned_width]]


@dataclass(frozen=True)
class Layout:
    """The groups of one vector, in the order in which they are learned.

    Attributes:
        vector: Which one it is.
        groups: Those with something to learn.
        unused: The others.
        width: Numbers of the stored vector.
    """

    vector: Vector
    groups: tuple[Group, ...]
    unused: tuple[Group, ...]
    width: int

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each group lies in the learned vector."""
        ends = np.cumsum([0, *(group.learned_width for group in self.groups)]).tolist()
        return {group.name: slice(*bounds) for group, bounds in zip(self.groups, zip(ends[:-1], ends[1:], strict=True), strict=True)}

    @property
    def learned_dim(self) -> int:
        """Numbers of the learned vector."""
        return sum(group.learned_width for group in self.groups)

    @property
    def names(self) -> list[str]:
        """A name for each of them."""
        return [name for group in self.groups for name in group.learned_names]

    def normalization(self, mode: Mode = "variance") -> list[Mode]:
        """A mode for each learned dimension: `identity` for rotations, which the paper does not normalise, `mode` for all others."""
        modes: list[Mode] = []
        for group in self.groups:
            modes.extend("identity" if group.kind == "rotation" else mode for _ in range(group.learned_width))
        return modes

    def learn(self, stored: Mapping[str, Shaped[np.ndarray, "_ _"]]) -> Float[np.ndarray, "steps learned_dim"]:
        """An episode's vectors in learnable form: rotations as 6-D, grippers in the learned convention, poses as they are stored.

        Args:
            stored: The episode's `actions` and `proprio`; only those that the groups come from are needed. A shift takes later values;
                beyond the end the last stays.

        Raises:
            ValueError: If a vector is missing or has another width, lengths differ, or a rotation is none.
        """
        needed = list(dict.fromkeys(group.source for group in self.groups))
        for vector in needed:
            if vector not in stored:
                raise ValueError(f"{self.vector}: groups come from {vector}, which this episode does not have")
        if (given := stored.get(self.vector)) is not None and given.shape[-1] != self.width:
            raise ValueError(f"{self.vector} is declared with {self.width} dimensions, an episode has {given.shape[-1]}: correct dims")
        if len({len(stored[vector]) for vector in needed}) > 1:
            lengths = ", ".join(f"{vector} {len(stored[vector])}" for vector in needed)
            raise ValueError(f"{self.vector} is made of vectors of different lengths ({lengths}): resample them to one rate first")
        columns = []
        for group in self.groups:
            vectors = stored[group.source]
            if max(group.dims) >= vectors.shape[-1]:
                raise ValueError(
                    f"{self.vector}.{group.name}: dims reach {max(group.dims)}, {group.source} has {vectors.shape[-1]} numbers"
                )
            values = np.asarray(vectors, dtype=np.float64)[:, list(group.dims)]
            steps = np.minimum(np.arange(len(values)) + group.shift, len(values) - 1)
            columns.append(self._learn(group, values)[steps])
        return np.concatenate(columns, axis=-1)

    def store(self, learned: Shaped[np.ndarray, "*batch learned_dim"]) -> Float[np.ndarray, "*batch width"]:
        """The way back, as commands: numbers in the dataset's places, formats and conventions.

        Where a group comes from the other vector there is no such place: the groups then stand one after another, in their order.
        """
        learned = np.asarray(learned, dtype=np.float64)
        columns = {group.name: self._store(group, learned[..., self.places[group.name]]) for group in self.groups}
        if any(group.source != self.vector for group in self.groups):
            return np.concatenate([columns[group.name] for group in self.groups], axis=-1)
        result = np.empty((*learned.shape[:-1], self.width))
        for group in self.unused:
            result[..., list(group.dims)] = group.value
        for group in self.groups:
            result[..., list(group.dims)] = columns[group.name]
        return result

    def command_names(self, stored: Sequence[str]) -> list[str]:
        """A name for each number of `store`; `stored` are those of the dataset's vector."""
        if all(group.source == self.vector for group in self.groups):
            return list(stored)
        return [f"{group.name}_{place}" for group in self.groups for place in range(len(group.dims))]

    def _learn(self, group: Group, values: np.ndarray) -> np.ndarray:
        if group.kind == "gripper":
            assert group.gripper is not None
            return group.gripper.learn(values)
        if group.kind != "rotation":
            return values
        try:
            matrices = rotations.to_matrix(values, group.format)
        except ValueError as error:
            raise ValueError(f"{self.vector}.{group.name} ({group.format}): {error}") from None
        return rotations.from_matrix(matrices if group.right_factor is None else matrices @ group.right_factor, "6d")

    def _store(self, group: Group, values: np.ndarray) -> np.ndarray:
        if group.kind == "gripper":
            assert group.gripper is not None
            return group.gripper.store(values)
        if group.kind != "rotation":
            return values
        matrices = rotations.to_matrix(values, "6d")
        if group.right_factor is not None:
            matrices = matrices @ rotations.inverse(group.right_factor)
        return rotations.from_matrix(matrices, group.format)


def parse_layout(groups: Mapping[str, Any], vector: Vector, width: int | None = None) -> Layout:
    """Reads a layout from a plain mapping, as yaml gives it.

    Example:
        position: {kind: position, dims: [0, 1, 2], learned: relative}
        rotation: {kind: rotation, dims: [3, 4, 5], format: euler_xyz, learned: relative}
        gripper: {kind: gripper, dims: [6], open: 1, closed: 0, clip: true}

    Args:
        groups: By name; the keys are attributes of `Group` and, for grippers, arguments of `Gripper`.
        vector: What is declared, for messages and defaults.
        width: Numbers of the stored vector, if known already; otherwise the highest of `dims` says it.

    Raises:
        ValueError: If a key or value is unknown, dimensions overlap, are left out or do not exist, a rotation has another width than its
            format, or groups of one body do not agree.
    """
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"{vector} must map group names to what they are, such as position: {{kind: position, dims: [0, 1, 2]}}")
    parsed = [_parse_group(f"{vector}.{name}", str(name), options, vector) for name, options in groups.items()]
    own = [group for group in parsed if group.source == vector]
    width = _check_dims(vector, own, width)
    used = [group for group in parsed if group.kind != "unused"]
    if not used:
        raise ValueError(f"{vector} has unused groups only: nothing is left to learn")
    _check_bodies(vector, used)
    turning = {group.body for group in used if group.kind == "rotation"}
    for group in used:
        if group.kind == "position" and group.body not in turning and groups[group.name].get("frame") == "body":
            raise ValueError(f"{vector}.{group.name}: without a rotation a position has no axes of its own body: leave out frame")
    return Layout(vector, tuple(used), tuple(group for group in own if group.kind == "unused"), width)


def _parse_group(key: str, name: str, options: Any, vector: Vector) -> Group:
    if not isinstance(options, Mapping):
        raise ValueError(f"{key} must be a mapping such as {{kind: joint, dims: [0, 1]}}, got {options!r}")
    kind: Kind = _choice(key, options, "kind", Kind)
    known = ("kind", "dims", *_KEYS[kind])
    for option in options:
        if option not in known:
            raise ValueError(f"{key}.{option} is not accepted for kind {kind}{nearest(str(option), known)}")
    dims = _dims(key, options.get("dims"))
    chosen: dict[str, Any] = {"name": name, "kind": kind, "dims": dims, "source": _choice(key, options, "source", Vector, vector)}
    for option, choices in (("stored", Stored), ("learned", Learned), ("frame", Frame), ("format", rotations.Format)):
        if option in options:
            chosen[option] = _choice(key, options, option, choices)
    chosen["body"] = str(options.get("body", ""))
    chosen["shift"] = options.get("shift", 0)
    if not isinstance(chosen["shift"], int) or isinstance(chosen["shift"], bool) or chosen["shift"] < 0:
        raise ValueError(f"{key}.shift must be a whole number of steps of at least 0, got {chosen['shift']!r}")
    if kind == "rotation":
        if "format" not in options:
            raise ValueError(f"{key}.format is missing: choose from {', '.join(rotations.WIDTHS)}")
        if len(dims) != rotations.WIDTHS[chosen["format"]]:
            raise ValueError(f"{key}: {chosen['format']} has {rotations.WIDTHS[chosen['format']]} numbers, dims name {len(dims)}")
        chosen["right_factor"] = _right_factor(key, options.get("right_factor"))
    elif kind == "position" and len(dims) > 3:
        raise ValueError(f"{key}: a position has at most 3 numbers, dims name {len(dims)}")
    elif kind == "gripper":
        chosen["gripper"] = _gripper(key, {option: options[option] for option in _GRIPPER if option in options}, vector)
    elif kind == "unused":
        value = options.get("value", 0.0)
        chosen["value"] = tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * len(dims)
        if len(chosen["value"]) != len(dims):
            raise ValueError(f"{key}.value must be one number or one for each of {len(dims)} dims, got {value!r}")
    _check_motion(key, chosen, vector)
    if chosen.get("stored") == "delta" and "frame" not in options:
        chosen["frame"] = "world"
    return Group(**chosen)


def _check_motion(key: str, chosen: Mapping[str, Any], vector: Vector) -> None:
    stored, learned = chosen.get("stored", "absolute"), chosen.get("learned", "absolute")
    if vector == "proprio" and (stored, learned, chosen["source"], chosen["shift"]) != ("absolute", "absolute", "proprio", 0):
        raise ValueError(
            f"{key}: states are absolute and come from proprio, without shift; stored, learned, source and shift are of actions"
        )
    if stored == "delta" and learned != "delta":
        raise ValueError(
            f"{key}: stored deltas can only be learned as deltas, not {learned}: a controller does not reach its targets exactly, so that "
            "their sum drifts away. Set learned: delta, or take the poses from states with source: proprio, shift: 1"
        )
    if stored == "delta" and chosen["source"] == "proprio":
        raise ValueError(f"{key}: states are absolute: leave out stored: delta, or source: proprio")
    if stored == "delta" and chosen.get("right_factor") is not None:
        raise ValueError(f"{key}: a right_factor changes the axes of absolute rotations, not of deltas: leave it out")


def _check_dims(vector: Vector, own: Sequence[Group], width: int | None) -> int:
    """Every dimension of the vector in exactly one group. Returns its width."""
    owner: dict[int, str] = {}
    for group in own:
        for dim in group.dims:
            if dim in owner:
                raise ValueError(f"{vector}: dimension {dim} is in both {owner[dim]} and {group.name}")
            owner[dim] = group.name
    width = max(owner, default=-1) + 1 if width is None else width
    if beyond := sorted(dim for dim in owner if dim >= width):
        raise ValueError(f"{vector} has {width} dimensions (0 ... {width - 1}); {owner[beyond[0]]} names {beyond}")
    if left := [dim for dim in range(width) if dim not in owner]:
        raise ValueError(f"{vector}: dimensions {left} of {width} are in no group: add them, or declare them as kind: unused")
    return width


def _check_bodies(vector: Vector, groups: Sequence[Group]) -> None:
    seen: dict[tuple[str, str], Group] = {}
    for group in groups:
        if group.kind not in ("position", "rotation", "joint"):
            continue
        if other := seen.get((group.kind, group.body)):
            raise ValueError(
                f"{vector}: {other.name} and {group.name} are both the {group.kind} of one body: tell them apart with body: NAME"
            )
        seen[group.kind, group.body] = group
    for (kind, body), position in seen.items():
        if kind != "position" or (rotation := seen.get(("rotation", body))) is None:
            continue
        if len(position.dims) != 3:
            raise ValueError(
                f"{vector}.{position.name}: the position of a body with a rotation has 3 numbers, dims name {len(position.dims)}"
            )
        for option in ("stored", "learned", "frame", "source", "shift"):
            if getattr(position, option) != getattr(rotation, option):
                raise ValueError(
                    f"{vector}: {position.name} and {rotation.name} are one pose, but {option} is {getattr(position, option)!r} and "
                    f"{getattr(rotation, option)!r}: make them equal"
                )


def _choice(key: str, options: Mapping[str, Any], option: str, choices: Any, default: Any = None) -> Any:
    value = options.get(option, default)
    if value not in get_args(choices):
        hint = nearest(value, get_args(choices)) if isinstance(value, str) else ""
        raise ValueError(
            f"{key}.{option} must be one of {', '.join(get_args(choices))}, got {value!r}{hint if hint.startswith(':') else ''}"
        )
    return value


def _dims(key: str, dims: Any) -> tuple[int, ...]:
    whole = isinstance(dims, Sequence) and not isinstance(dims, str) and all(type(dim) is int and dim >= 0 for dim in dims)
    if not whole or not dims or len(set(dims)) < len(dims):
        raise ValueError(f"{key}.dims must list places in the vector from 0 on, each once, such as [0, 1, 2], got {dims!r}")
    return tuple(dims)


def _right_factor(key: str, value: Any) -> np.ndarray | None:
    if value is None:
        return None
    try:
        return rotations.nearest_rotation(np.array(value, dtype=np.float64).reshape(3, 3))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}.right_factor must be a 3 x 3 rotation, row by row, got {value!r} ({error})") from None


def _gripper(key: str, options: dict[str, Any], vector: Vector) -> Gripper:
    if vector == "proprio" and (options.get("thresholds") is not None or options.get("incremental")):
        raise ValueError(
            f"{key}: thresholds and incremental need a whole episode, which a robot's state does not have: they are of actions"
        )
    if (thresholds := options.get("thresholds")) is not None:
        if not isinstance(thresholds, Sequence) or len(thresholds) != 2:
            raise ValueError(f"{key}.thresholds must be two openings such as [0.05, 0.95], got {thresholds!r}")
        options["thresholds"] = (float(thresholds[0]), float(thresholds[1]))
    for option in ("open", "closed", "learned_open", "learned_closed"):
        if option in options and (isinstance(options[option], bool) or not isinstance(options[option], int | float)):
            raise ValueError(f"{key}.{option} must be a number, got {options[option]!r}")
    try:
        return Gripper(**options)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
