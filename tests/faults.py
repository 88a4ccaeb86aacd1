"""Small datasets with smooth motion and moving pictures, sound or with one fault each, for the tests of the audit."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mimicvideo.data.lerobot_writer import LeRobotWriter
from mimicvideo.data.video_encoding import EncodedVideo, VideoCodec, encode_video
from tests.synthetic_episodes import DATA_FILE, change_rows

EPISODES, ROWS, HZ, SIDE = 12, 40, 10, 48
CAMERAS = ("front", "side")
STATE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
ACTION = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
SCALE = np.array([0.15, 0.2, 0.1, 0.4, 0.3, 0.5])  # metres and radians
CENTRE = np.array([0.5, 0.0, 0.2, 0.1, -0.2, 0.3])
BAD = 5  # the episode that gets the fault
TASKS = {"lift": "Pick up the red block.", "push": "Push the red block to the left.", "stack": "Stack the red block on the blue one."}
CODEC = VideoCodec(keyframe_interval=8)


@dataclass
class Recording:
    """An episode before it is written."""

    actions: np.ndarray
    states: np.ndarray
    frames: dict[str, np.ndarray]
    instruction: str
    task: str

    def rows(self, places: Sequence[int] | np.ndarray) -> "Recording":
        """Only these rows, or some of them several times."""
        frames = {name: pictures[places] for name, pictures in self.frames.items()}
        return replace(self, actions=self.actions[places], states=self.states[places], frames=frames)


@dataclass
class Corpus:
    """Clean recordings and their videos, encoded once."""

    folder: Path
    recordings: list[Recording] = field(default_factory=list)
    videos: list[dict[str, EncodedVideo]] = field(default_factory=list)

    def numbers(self, index: int) -> dict[str, np.ndarray]:
        return {"actions": self.recordings[index].actions, "states": self.recordings[index].states}


def make_corpus(folder: Path, episodes: int = EPISODES) -> Corpus:
    """Sound recordings: minimum-jerk motion between random poses, a grasp on the way, an arm and a block in two views."""
    corpus = Corpus(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(episodes):
        recording = record(index)
        corpus.recordings.append(recording)
        corpus.videos.append({name: encode(folder / f"{index}-{name}.mp4", frames) for name, frames in recording.frames.items()})
    return corpus


def encode(path: Path, frames: np.ndarray) -> EncodedVideo:
    return encode_video(path, frames, HZ, CODEC)


def record(index: int) -> Recording:
    """The sound recording of this number."""
    random = np.random.default_rng(index)
    rows = ROWS + int(random.integers(-4, 5))
    stops = np.cumsum(random.uniform(-1, 1, (4, 6)) + 0.4 * random.choice([-1, 1], (4, 6)), axis=0)
    path = CENTRE + SCALE * (minimum_jerk(stops - stops.mean(0), rows + 1) + 0.15 * wobble(random, rows + 1))
    closed = np.arange(rows) >= rows // 2 + int(random.integers(-3, 4))
    opening = np.convolve(np.concatenate([np.zeros(4), 1.0 - closed]), np.ones(4) / 4)[4 : rows + 4]
    opening[:4] = 1.0
    actions = np.concatenate([np.diff(path, axis=0), 1.0 - closed[:, None]], axis=1)
    states = np.concatenate([path[:-1], opening[:, None]], axis=1)
    noise = 0.002 * SCALE * random.normal(size=(rows, 6))
    actions[:, :6] += noise
    task = list(TASKS)[index % len(TASKS)]
    return Recording(actions.astype(np.float32), states.astype(np.float32), render(states), TASKS[task], task)


def minimum_jerk(stops: np.ndarray, rows: int) -> np.ndarray:
    """Through the stops, without a pause: halves of minimum-jerk segments blend into each other."""
    times = np.linspace(0, len(stops) - 1, rows)
    left = np.minimum(times.astype(int), len(stops) - 2)
    s = (times - left)[:, None]
    s = 10 * s**3 - 15 * s**4 + 6 * s**5
    return stops[left] * (1 - s) + stops[left + 1] * s


def wobble(random: np.random.Generator, rows: int) -> np.ndarray:
    """Slow oscillations, other ones in each dimension, so that nothing ever stands still."""
    times = np.arange(rows)[:, None] / HZ
    return np.sin(2 * np.pi * (random.uniform(0.4, 0.9, 6) * times + random.uniform(0, 1, 6)))


def render(states: np.ndarray) -> dict[str, np.ndarray]:
    """The hand as a blob before a background, which no flip or exchange of colours leaves the same."""
    grid = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    views = {}
    for number, name in enumerate(CAMERAS):
        background = np.stack([200 - 120 * grid[0], 90 + 60 * grid[1], 40 + 50 * grid[0] * grid[1]], axis=-1)
        if number:
            background = np.stack([60 + 40 * grid[1], 80 + 100 * grid[0] * grid[1], 190 - 90 * grid[1]], axis=-1)
        background[4:14, 4:22] = (250, 230, 60)
        place = (states[:, :6] - CENTRE) / SCALE
        row = 0.5 + 0.17 * place[:, 2 * number % 3] + 0.05 * place[:, 3]
        column = 0.5 + 0.17 * place[:, 1] + 0.05 * place[:, 4 + number]
        far = ((grid[0][None] - row[:, None, None]) ** 2 + (grid[1][None] - column[:, None, None]) ** 2)[..., None]
        weight = np.exp(-far / (2 * (0.06 + 0.01 * states[:, 6, None, None, None]) ** 2))
        frames = background * (1 - weight) + np.array([20.0, 20.0, 30.0]) * weight
        views[name] = frames.round().clip(0, 255).astype(np.uint8)
    return views


def write(root: Path, corpus: Corpus, changed: dict[int, Recording] | None = None, extra: Sequence[Recording] = ()) -> Path:
    """Writes a corpus as a LeRobotDataset, with some recordings changed and some more at its end."""
    described = [{"name": name, "height": SIDE, "width": SIDE, "view": {}} for name in CAMERAS]
    names = {"robot": "test-arm", "control_hz": float(HZ), "stride": 1, "proprio_names": STATE, "action_names": ACTION}
    with LeRobotWriter(root, cameras=described, codec=CODEC, **names) as writer:
        for index, clean in enumerate([*corpus.recordings, *extra]):
            recording = (changed or {}).get(index, clean)
            frames: dict[str, np.ndarray | EncodedVideo] = dict(recording.frames)
            if index < len(corpus.recordings):
                for name, pictures in recording.frames.items():
                    if pictures is clean.frames[name]:  # encoded before
                        video = corpus.videos[index][name]
                        frames[name] = replace(video, path=Path(shutil.copy(video.path, writer.incoming)))
            writer.add_episode(frames, recording.states, recording.actions, recording.instruction, recording.task, seed=index)
        writer.finish()
    return root


@dataclass(frozen=True)
class Fault:
    """What is done to one recording, or to the files of a written dataset, and what the audit must find in episode `episode`."""

    kind: str
    change: Callable[[Recording, Corpus], Recording] | None = None
    damage: Callable[[Path], None] | None = None
    again: Callable[[Corpus], Recording] | None = None  # another recording at the end, which is then the faulty one
    cameras: tuple[str, ...] = ("front",)  # that are read
    also: frozenset[str] = frozenset()  # kinds that the same fault may rightly bring along


# -- numbers -------------------------------------------------------------------------------------------------------------------


def numbers(actions: Callable[[np.ndarray], np.ndarray] | None = None, states: Callable[[np.ndarray], np.ndarray] | None = None):
    """A change of all actions, of all states, or of both."""

    def change(recording: Recording, corpus: Corpus) -> Recording:
        changed = replace(recording)
        if actions:
            changed.actions = actions(recording.actions.copy()).astype(np.float32)
        if states:
            changed.states = states(recording.states.copy()).astype(np.float32)
        return changed

    return change


def columns(order: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values[:, list(order)]


def times(dims: Sequence[int], factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values * np.where(np.isin(np.arange(values.shape[1]), list(dims)), factor, 1.0)


def setting(dims: Sequence[int], value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.where(np.isin(np.arange(values.shape[1]), list(dims)), value, values)


def rolled(rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Later by so many rows; the first or last row repeats."""
    return lambda values: values[np.clip(np.arange(len(values)) - rows, 0, len(values) - 1)]


def clipped(values: np.ndarray) -> np.ndarray:
    limit = 0.25 * np.abs(values[:, :3]).max(0)
    return np.concatenate([np.clip(values[:, :3], -limit, limit), values[:, 3:]], axis=1)


def gripper(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.concatenate([values[:, :6], change(values[:, 6:])], axis=1)


def of_another(what: str):
    """Actions, states or both of the next recording, cut or held to this one's length."""

    def change(recording: Recording, corpus: Corpus) -> Recording:
        other = corpus.recordings[BAD + 1]
        places = np.minimum(np.arange(len(recording.actions)), len(other.actions) - 1)
        names = ("actions", "states") if what == "both" else (what,)
        return replace(recording, **{name: getattr(other, name)[places] for name in names})

    return change


def cell(column: str, value: float) -> Callable[[Path], None]:
    """Puts a number into the third row of the bad episode, which the writer would refuse."""

    def change(columns: dict[str, list]) -> None:
        columns[column][columns["episode_index"].index(BAD) + 2][1] = value

    return lambda root: change_rows(root, change)


def timestamps(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def edit(columns: dict[str, list]) -> None:
        start, length = columns["episode_index"].index(BAD), columns["episode_index"].count(BAD)
        columns["timestamp"][start : start + length] = change(np.array(columns["timestamp"][start : start + length])).tolist()

    return lambda root: change_rows(root, edit)


# -- pictures ------------------------------------------------------------------------------------------------------------------


def pictures(change: Callable[[np.ndarray], np.ndarray], cameras: Sequence[str] = ("front",)):
    """A change of all frames of some cameras."""

    def apply(recording: Recording, corpus: Corpus) -> Recording:
        frames = {name: change(seen.copy()) if name in cameras else seen for name, seen in recording.frames.items()}
        return replace(recording, frames=frames)

    return apply


def black(frames: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    frames[rows] = 0
    return frames


def grey(frames: np.ndarray) -> np.ndarray:
    frames[10:16] = 128
    return frames


def held(start: int, stop: int) -> Callable[[np.ndarray], np.ndarray]:
    """The frame at `start` stands until `stop`."""

    def change(frames: np.ndarray) -> np.ndarray:
        frames[start:stop] = frames[start]
        return frames

    return change


def skipping(start: int, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Frames are lost; the last one fills the end."""

    def change(frames: np.ndarray) -> np.ndarray:
        places = np.arange(len(frames))
        return frames[np.minimum(places + count * (places >= start), len(frames) - 1)]

    return change


def brighter(frames: np.ndarray) -> np.ndarray:
    frames[18:] = np.minimum(frames[18:].astype(int) + 45, 255)
    return frames


def noisy_copy(corpus: Corpus) -> Recording:
    """A recording once more, with noise on its numbers and pictures."""
    clean = corpus.recordings[3]
    random = np.random.default_rng(99)
    states = clean.states + np.append(SCALE, 1) * 5e-4 * random.normal(size=clean.states.shape)
    actions = clean.actions + np.append(SCALE, 0) * 5e-4 * random.normal(size=clean.actions.shape)
    frames = {
        name: np.clip(seen.astype(int) + random.integers(-2, 3, seen.shape), 0, 255).astype(np.uint8) for name, seen in clean.frames.items()
    }
    return replace(clean, actions=actions.astype(np.float32), states=states.astype(np.float32), frames=frames)


def stretched(recording: Recording, rows: int) -> Recording:
    return recording.rows(np.linspace(0, len(recording.states) - 1, rows).round().astype(int))


def swap(recording: Recording, corpus: Corpus) -> Recording:
    return replace(recording, frames={"front": recording.frames["side"], "side": recording.frames["front"]})


# -- files ---------------------------------------------------------------------------------------------------------------------


def video(root: Path, camera: str = "front") -> Path:
    return root / f"videos/observation.images.{camera}/chunk-000/file-{BAD:03d}.mp4"


def truncate(root: Path) -> None:
    data = video(root).read_bytes()
    video(root).write_bytes(data[: int(0.6 * len(data))])


def scramble(root: Path) -> None:
    """Overwrites bytes in the middle of the coded pictures."""
    data = bytearray(video(root).read_bytes())
    start = data.find(b"mdat") + (len(data) - data.find(b"mdat")) // 3
    data[start : start + 400] = np.random.default_rng(0).integers(0, 256, 400, np.uint8).tobytes()
    video(root).write_bytes(bytes(data))


def forget(root: Path) -> None:
    """Removes the record of the files' hashes, as in datasets of others: damage is not looked for at opening then."""
    path = root / "meta/mimicvideo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {}}))


def encoded_again(rows: slice = slice(None), side: int = SIDE, hz: int = HZ) -> Callable[[Path], None]:
    """The video of the bad episode at another rate or size, or less of it."""

    def damage(root: Path) -> None:
        frames = record(BAD).frames["front"][rows]
        places = np.arange(side) * SIDE // side
        encode_video(video(root), np.ascontiguousarray(frames[:, places][:, :, places]), hz, CODEC)

    return damage


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for step in steps:
            step(root)

    return damage


def rows_of(root: Path, episode: int) -> int:
    return pq.read_table(root / DATA_FILE).column("episode_index").to_pylist().count(episode)


FAULTS: dict[str, Fault] = {
    "nan_state": Fault("not_finite", damage=cell("observation.state", float("nan"))),
    "infinite_action": Fault("not_finite", damage=cell("action", float("inf"))),
    "constant_action_dim": Fault("constant_action", numbers(setting([1], 0.0))),
    "constant_actions": Fault("constant_action", numbers(setting(range(6), 0.0))),
    "constant_state_dim": Fault("constant_proprio", numbers(states=setting([4], 0.3))),
    "constant_proprio": Fault("constant_proprio", numbers(states=setting(range(7), 0.3))),
    "saturated_dims": Fault("saturated_action", numbers(clipped)),
    "swapped_positions": Fault("swapped_dims", numbers(columns([1, 0, 2, 3, 4, 5, 6]))),
    "swapped_rotations": Fault("swapped_dims", numbers(columns([0, 1, 2, 4, 3, 5, 6]))),
    "swapped_states": Fault("swapped_dims", numbers(states=columns([0, 1, 2, 5, 4, 3, 6]))),
    "positions_for_rotations": Fault("swapped_dims", numbers(columns([3, 4, 5, 0, 1, 2, 6])), also=frozenset({"wrong_units"})),
    "inverted_dim": Fault("inverted_dim", numbers(times([2], -1))),
    "inverted_rotations": Fault("inverted_dim", numbers(times([3, 4, 5], -1))),
    "degrees_in_states": Fault("wrong_units", numbers(states=times([3, 4, 5], 180 / np.pi))),
    "degrees_in_actions": Fault("wrong_units", numbers(times([3, 4, 5], 180 / np.pi))),
    "degrees_in_both": Fault("wrong_units", numbers(times([3, 4, 5], 180 / np.pi), times([3, 4, 5], 180 / np.pi))),
    "millimetres": Fault("wrong_units", numbers(times([0, 1, 2], 1000), times([0, 1, 2], 1000))),
    "actions_in_kilometres": Fault("wrong_units", numbers(times([0, 1, 2], 0.001))),
    "actions_one_row_late": Fault("shifted_actions", numbers(rolled(1))),
    "actions_one_row_early": Fault("shifted_actions", numbers(rolled(-1))),
    "actions_three_rows_late": Fault("shifted_actions", numbers(rolled(3))),
    "inverted_gripper": Fault("inverted_gripper", numbers(gripper(lambda values: 1 - values))),
    "gripper_from_minus_one": Fault("gripper_range", numbers(gripper(lambda values: 2 * values - 1))),
    "actions_of_another": Fault("inconsistent_actions", of_another("actions")),
    "states_of_another": Fault("inconsistent_actions", of_another("states")),
    "duplicate": Fault("duplicate_episode", again=lambda corpus: corpus.recordings[3]),
    "duplicate_encoded_again": Fault("duplicate_episode", again=lambda corpus: replace(noisy_copy(corpus), **corpus.numbers(3))),
    "near_duplicate": Fault("near_duplicate", again=noisy_copy),
    "near_duplicate_under_another_name": Fault(
        "near_duplicate", again=lambda corpus: replace(noisy_copy(corpus), instruction=TASKS["stack"], task="stack")
    ),
    "pictures_of_another": Fault(
        "copied_pictures",
        again=lambda corpus: replace(stretched(record(40), len(corpus.recordings[3].states)), frames=corpus.recordings[3].frames),
    ),
    "one_camera_of_another": Fault(
        "copied_pictures",
        again=lambda corpus: replace(
            (other := stretched(record(40), len(corpus.recordings[3].states))),
            frames={**other.frames, "side": corpus.recordings[3].frames["side"]},
        ),
        cameras=CAMERAS,
    ),
    "empty_instruction": Fault("no_instruction", lambda recording, corpus: replace(recording, instruction="")),
    "placeholder_instruction": Fault("placeholder_instruction", lambda recording, corpus: replace(recording, instruction="TODO")),
    "german_instruction": Fault(
        "other_language", lambda recording, corpus: replace(recording, instruction="Hebe den roten Würfel auf und lege ihn ab.")
    ),
    "chinese_instruction": Fault("other_language", lambda recording, corpus: replace(recording, instruction="拿起红色的方块")),
    "instruction_of_another_task": Fault(
        "foreign_instruction",
        lambda recording, corpus: replace(recording, instruction=next(text for task, text in TASKS.items() if task != recording.task)),
    ),
    "truncated_video": Fault("corrupt_video", damage=truncate, also=frozenset({"short_video"})),
    "missing_video": Fault("missing_video", damage=lambda root: video(root).unlink()),
    "corrupt_bytes": Fault("corrupt_video", damage=scramble),
    "corrupt_bytes_unrecorded": Fault("corrupt_video", damage=both(scramble, forget)),
    "short_video": Fault("short_video", damage=encoded_again(slice(0, 20))),
    "wrong_resolution": Fault("wrong_resolution", damage=encoded_again(side=32)),
    "video_at_another_rate": Fault("wrong_rate", damage=both(encoded_again(hz=5), forget)),
    "black_video": Fault("black_frames", pictures(black)),
    "black_frames": Fault("black_frames", pictures(lambda frames: black(frames, slice(12, 15)))),
    "grey_frames": Fault("blank_frames", pictures(grey)),
    "frozen_video": Fault("frozen_video", pictures(held(0, 60))),
    "frozen_end": Fault("frozen_video", pictures(held(22, 60), cameras=("side",)), cameras=CAMERAS),
    "repeated_frames": Fault("dropped_frames", pictures(held(15, 19))),
    "lost_frames": Fault("dropped_frames", pictures(skipping(16, 4), cameras=CAMERAS), cameras=CAMERAS),
    "swapped_cameras": Fault("swapped_cameras", swap, cameras=CAMERAS),
    "swapped_channels": Fault("swapped_channels", pictures(lambda frames: frames[..., ::-1])),
    "mirrored": Fault("flipped_pictures", pictures(lambda frames: frames[:, :, ::-1])),
    "upside_down": Fault("flipped_pictures", pictures(lambda frames: frames[:, ::-1])),
    "exposure_jump": Fault("exposure_jump", pictures(brighter)),
    "idle_head": Fault("idle_head", lambda recording, corpus: idle(recording, head=15)),
    "idle_tail": Fault("idle_tail", lambda recording, corpus: idle(recording, tail=15)),
    "short_episode": Fault("short_episode", lambda recording, corpus: recording.rows(np.arange(6))),
    "one_row": Fault("too_short", lambda recording, corpus: recording.rows(np.arange(1))),
    "timestamp_gap": Fault("timestamp_gap", damage=timestamps(lambda seconds: seconds + 0.7 * (np.arange(len(seconds)) >= 20))),
    "wrong_rate": Fault("wrong_rate", damage=timestamps(lambda seconds: seconds * 2)),
    "timestamps_back": Fault(
        "timestamps_not_increasing", damage=timestamps(lambda seconds: np.where(np.arange(len(seconds)) == 20, 0.1, seconds))
    ),
    "timestamps_repeat": Fault("timestamps_not_increasing", damage=timestamps(lambda seconds: np.minimum(seconds, 3.0))),
}


def idle(recording: Recording, head: int = 0, tail: int = 0) -> Recording:
    """Stands still for so many rows before or after the motion; deltas are zero meanwhile."""
    rows = len(recording.actions)
    places = np.concatenate([np.zeros(head, int), np.arange(rows), np.full(tail, rows - 1)])
    waiting = recording.rows(places)
    still = (np.arange(len(places)) < head) | (np.arange(len(places)) >= head + rows)
    waiting.actions = np.where(still[:, None] & (np.arange(7) < 6), 0, waiting.actions).astype(np.float32)
    return waiting


def inject(root: Path, corpus: Corpus, fault: Fault) -> int:
    """Writes the corpus with a fault; returns which episode has it."""
    extra = [fault.again(corpus)] if fault.again else []
    changed = {BAD: fault.change(corpus.recordings[BAD], corpus)} if fault.change else {}
    write(root, corpus, changed, extra)
    if fault.damage:
        fault.damage(root)
    return len(corpus.recordings) if extra else BAD
