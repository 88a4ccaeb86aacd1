"""VideoFolderStore: a folder of mp4 files with captions in text or JSON files, for stage 1, which needs no actions."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from mimicvideo.data.decode import Clock, VideoFacts, decode_frames, frame_times
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.identity import file_identity, video_identity
from mimicvideo.data.natural import natural
from mimicvideo.data.remote import fetched, files_below
from mimicvideo.data.resample import time_places
from mimicvideo.data.scan import look
from mimicvideo.data.store import Entry, Store

CAMERA, CAPTION = "video", "caption"
# Where a JSON file has its sentences: one, or a list of them.
CAPTION_KEYS = ("caption", "captions", "prompt", "prompts", "text", "texts", "instruction", "instructions", "language_instruction")


class VideoFolderStore(Store):
    """Every mp4 file below a folder is an episode of one camera, `video`, without numbers.

    Captions are in a file of the same name and the ending .txt, a sentence per line, or .json: a sentence, a list of them, or an object
    that has them under `caption`, `prompt`, `text` or `instruction` (or their plurals). The file lies beside the video or, as in
    NVIDIA's datasets, in `metas/` where the video is in `videos/`.

    Frames of a file that are not evenly spaced, or do not start at zero, are taken by their times: a row shows the nearest.

    Args:
        root: The folder.
        hz: Frames per second to which all videos are brought by taking the nearest frame; None keeps that of most files, and the others
            cannot be used.

    Raises:
        DatasetError: If there are no videos, or `hz` is not given and no rate is that of most.
    """

    def __init__(self, root: str | Path, hz: float | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(f"there is no folder {root}: give one with mp4 files")
        names = files_below(self.root)
        videos = [self.root / name for name in sorted((name for name in names if name.lower().endswith(".mp4")), key=natural)]
        if not videos:
            raise DatasetError(f"{root} holds no mp4 files")
        self._names = frozenset(names)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(_look, videos))
        self._facts: dict[Path, VideoFacts | str] = {path: facts for path, (facts, _) in zip(videos, found, strict=True)}
        self._times = {path: times for path, (_, times) in zip(videos, found, strict=True) if times is not None}
        sound = {path: facts for path, facts in self._facts.items() if isinstance(facts, VideoFacts)}
        rates = Counter(round(facts.fps, 3) for facts in sound.values())
        if hz is None and rates and 2 * max(rates.values()) <= rates.total() and len(rates) > 1:
            told = ", ".join(f"{rate:g} ({count} files)" for rate, count in rates.most_common(5))
            raise DatasetError(f"videos of {root} differ in frames per second: {told}. Give hz in the description to bring all to one rate")
        self.hz, self._brought = hz or next((rate for rate, _ in rates.most_common(1)), None), hz is not None
        sizes = Counter((facts.height, facts.width) for facts in sound.values())
        self.cameras = {CAMERA: sizes.most_common(1)[0][0] if sizes else (0, 0)}
        self.keys, self.text_keys, self.defaults = {}, [CAPTION], {"instruction": [CAPTION]}
        self.entries = [
            Entry(index, name := path.relative_to(self.root).as_posix(), self._rows(path), path, self._unreadable(path, name))
            for index, path in enumerate(videos)
        ]
        self.remarks = _without_video(self._names, videos, [path.relative_to(self.root).as_posix() for path in self.files([])[0]])

    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        if keys:
            raise DatasetError(f"{self.root} has videos only, no numbers {', '.join(keys)}")
        return {}

    def texts(self, entry: Entry, key: str) -> list[str]:
        for path in self._caption_files(entry.place):
            if path.relative_to(self.root).as_posix() in self._names:
                return _sentences(fetched(path))
        return []

    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        facts = self._facts[entry.place]
        if isinstance(facts, str):
            raise VideoError(facts)
        assert self.hz is not None
        clock: Clock = facts.fps
        if (times := self._times.get(entry.place)) is not None:
            numbers, clock = time_places(times, times[0] + rows / self.hz).nearest, times
        else:
            numbers = np.minimum(np.rint(rows * (facts.fps / self.hz)).astype(np.int64), facts.frames - 1)
        wanted, back = np.unique(numbers, return_inverse=True)
        return decode_frames(entry.place, wanted, clock, size)[back]

    def identity(self, entry: Entry, key: str) -> list[Any]:
        facts = self._facts[entry.place]
        if isinstance(facts, str):
            raise VideoError(facts)
        if entry.place not in self._times:
            return [self.hz, *video_identity(entry.place, 0, facts.frames, facts.fps)]
        try:
            return [self.hz, file_identity(entry.place)]
        except OSError as error:
            raise VideoError(f"it cannot be read: {error}") from error

    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        facts = self._facts[entry.place]
        if isinstance(facts, str):
            return self._unreadable(entry.place, entry.name)
        if not self._brought and round(facts.fps, 3) != self.hz:
            return f"{entry.name} has {facts.fps:g} frames per second, most have {self.hz:g}: give hz in the description to bring all to it"
        if full:
            try:
                times = self._times.get(entry.place)
                if times is None:
                    decode_frames(entry.place, range(facts.frames), facts.fps, strict=True)
                else:
                    decode_frames(entry.place, range(len(times)), times, strict=True)
            except VideoError as error:
                return f"{entry.name} is damaged: {error}"
        return None

    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        captions = {path for video in self._facts for path in self._caption_files(video)}
        present = [path for path in sorted(captions) if path.relative_to(self.root).as_posix() in self._names]
        return present, list(self._facts)

    def marks(self) -> list[Any]:
        """Names and sizes of the videos: there may be no captions, or the same as in the folder of another camera."""
        sizes = {path: None if isinstance(facts, str) else facts.bytes for path, facts in self._facts.items()}
        return [[path.relative_to(self.root).as_posix(), size] for path, size in sizes.items()]

    def size(self, entry: Entry, key: str) -> tuple[int, int]:
        facts = self._facts[entry.place]
        return self.cameras[CAMERA] if isinstance(facts, str) else (facts.height, facts.width)

    def _unreadable(self, video: Path, name: str) -> str | None:
        return f"{name} is unreadable: {facts}" if isinstance(facts := self._facts[video], str) else None

    def _rows(self, video: Path) -> int:
        facts = self._facts[video]
        if isinstance(facts, str) or self.hz is None:
            return 0
        if (times := self._times.get(video)) is not None:
            return max(1, round((times[-1] - times[0] + 1 / facts.fps) * self.hz))
        return facts.frames if facts.fps == self.hz else max(1, round(facts.frames * self.hz / facts.fps))

    def _caption_files(self, video: Path) -> Iterator[Path]:
        """Where a video's captions may be, in the order in which they are looked for."""
        parts = video.relative_to(self.root).parts
        places = [video.parent]
        if "videos" in parts[:-1]:
            at = parts.index("videos")
            places.append(self.root.joinpath(*parts[:at], "metas", *parts[at + 1 : -1]))
        for place in places:
            for suffix in (".txt", ".json"):
                yield place / f"{video.stem}{suffix}"


def _look(path: Path) -> tuple[VideoFacts | str, np.ndarray | None]:
    """What a file holds, or why it cannot be read; and when its frames are shown, if that does not follow from its rate."""
    facts = look(path)
    if isinstance(facts, str) or facts.even:
        return facts, None
    try:
        times = frame_times(path)
        return facts, times if len(times) else None
    except VideoError as error:
        return str(error), None


def _without_video(names: Iterable[str], videos: Iterable[Path], captions: Sequence[str]) -> list[str]:
    """Tells of captions whose video is not there: those that are named like other captions, but for their numbers."""

    def shape(name: str) -> str:
        return re.sub(r"\d+", "0", name)

    stems, shapes = {video.stem for video in videos}, {shape(name) for name in captions}
    alone = sorted((name for name in set(names) - set(captions) if shape(name) in shapes and Path(name).stem not in stems), key=natural)
    more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
    return [f"the caption {alone[0]}{more} has no video: copy it again, or remove the caption"] if alone else []


def _sentences(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if path.suffix == ".json" else text
    except (ValueError, OSError) as error:
        raise DatasetError(f"the caption {path} cannot be read: {error}") from error
    if isinstance(content, dict):
        key = next((key for key in CAPTION_KEYS if key in content), None)
        if key is None:
            raise DatasetError(f"the caption {path} has none of the keys {', '.join(CAPTION_KEYS)}; it has {', '.join(map(str, content))}")
        content = content[key]
    told = content if isinstance(content, list) else [content]
    if wrong := [item for item in told if not isinstance(item, str)]:
        raise DatasetError(f"the caption {path} holds {wrong[0]!r} where a sentence should be")
    return list(dict.fromkeys(line.strip() for item in told for line in item.splitlines() if line.strip()))
