"""`mimicvideo captions`: a vision-language model describes every episode of a dataset; its texts go into a sidecar that readers merge."""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mimicvideo.caption_workers import Request, described
from mimicvideo.data.captions import SIDECAR_VERSION, LongCaption, content_of, read_long_captions, sidecar_path
from mimicvideo.data.open import open_episodes
from mimicvideo.reason.vision_language import Answer

PROMPT = (
    "These pictures are from a video of a robot, in the order of time. {task}Describe in one paragraph of plain English what the video "
    "shows: the scene, the objects with their colours and places, the robot, and step by step how it moves and what changes. Say only "
    "what can be seen."
)


def captions(
    root: str,
    model: str,
    cameras: list[str] | None = None,
    spec: str | None = None,
    out: str | None = None,
    prompt: str = PROMPT,
    frames: int = 8,
    batch_size: int = 4,
    max_new_tokens: int = 256,
    revision: str | None = None,
    device: str | None = None,
    limit: int | None = None,
    processes: int = 1,
) -> Path:
    """Writes a long caption for every episode that has none from this model and request yet.

    Each caption is a line of its own, on disk before the next batch begins: an interrupted run continues where it was. An episode that
    has changed since gets a new caption, and readers no longer take the old one.

    Args:
        root: Folder of the dataset.
        model: Folder or hub id of an image-text-to-text model of transformers, such as nvidia/Cosmos-Reason1-7B.
        cameras: Which cameras, from left to right; may be left out if there is one only.
        spec: What the dataset is, a name in conf/dataset or a yaml file; LeRobot datasets need none.
        out: The sidecar; left out, it lies beside the data, where readers look for it.
        prompt: The request; {task} stands for a sentence with the episode's instruction, or nothing where it has none.
        frames: Pictures of each episode, evenly spaced from the first to the last.
        batch_size: Episodes at a time.
        max_new_tokens: Length of a caption at most; what is longer ends with its last whole sentence.
        revision: Branch, tag or commit of a hub id.
        device: Where the model runs; left out, the GPU if there is one.
        limit: Episodes at most, to try it out.
        processes: How many look at episodes, each with a model of its own; they take the GPUs in turn. The texts are the same.

    Returns:
        The sidecar.

    Raises:
        ValueError: If a number is out of range, or the model is none of these.
        FileNotFoundError: If the model or the dataset is not there.
        RuntimeError: If another run is writing to the sidecar, a process fails, or the model wrote nothing about any episode.
    """
    numbers = {"frames": frames, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "limit": limit, "processes": processes}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    path = Path(out).expanduser() if out else sidecar_path(root)
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise FileNotFoundError(f"{path} cannot be written: give another place with out, in a folder that exists")
    reader = open_episodes(root, cameras, spec=spec, ram_cache_gb=0)
    request = hashlib.sha256(json.dumps([prompt, frames, max_new_tokens, [camera.name for camera in reader.cameras]]).encode()).hexdigest()
    with _locked(path) as sidecar:
        there = {(line.episode, line.content) for line in read_long_captions(path) if (line.model, line.request) == (model, request)}
        contents = {episode.index: content_of(reader, episode) for episode in reader.episodes}
        missing = [episode for episode in reader.episodes if (str(episode.index), contents[episode.index]) not in there]
        print(f"{root}: {len(reader.episodes)} episodes, {len(reader.episodes) - len(missing)} have their caption already")
        missing = missing[:limit]
        counts: Counter[str] = Counter()
        asked = Request(root, cameras, spec, model, revision, prompt, frames, max_new_tokens)
        batches = [[episode.index for episode in missing[start : start + batch_size]] for start in range(0, len(missing), batch_size)]
        for batch, answers in _shown(described(asked, batches, device, processes), len(missing)):
            for index, answer in zip(batch, answers, strict=True):
                counts["cut short" if answer.text and answer.cut else "whole" if answer.text else "empty"] += 1
                if answer.text:
                    line = LongCaption(str(index), contents[index], answer.text, model, request)
                    sidecar.write(json.dumps({"version": SIDECAR_VERSION, **asdict(line)}, ensure_ascii=False).encode() + b"\n")
            sidecar.flush()
            os.fsync(sidecar.fileno())
    print(f"{path}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items())) or 'nothing to do'}")
    if missing and counts["empty"] == len(missing):
        raise RuntimeError(
            f"{model} wrote nothing about any of {len(missing)} episodes: raise max_new_tokens, or change the prompt or model"
        )
    return path


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The sidecar, opened to append whole lines by this process alone; a line that an interrupted run left unfinished is removed."""
    with open(path, "ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{path} is being written by another run of mimicvideo captions: wait for it, or give another out") from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        yield file


def _shown(done: Iterator[tuple[Sequence[int], list[Answer]]], total: int) -> Iterator[tuple[Sequence[int], list[Answer]]]:
    columns = (TextColumn("captions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("captions", total=total)
        for batch, answers in done:
            yield batch, answers
            bar.advance(task, len(batch))
