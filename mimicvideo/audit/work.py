"""Summaries of all episodes of a dataset: by several processes, kept in a file of lines, and taken from there at the next run."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mimicvideo.atomic import told
from mimicvideo.audit.calibration import Calibration
from mimicvideo.audit.episode import VERSION, summarise
from mimicvideo.data.episodes import Episode, Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.scan import Verify

IN_FLIGHT = 4  # episodes per process that are given out at once


def results_key(reader: Episodes, calibration: Calibration, verify: Verify) -> str:
    """Names all that summaries depend on: the content of the dataset's files and how they are read.

    Raises:
        DatasetError: If a file has vanished since the dataset was opened.
    """
    cameras = [(camera.name, camera.height, camera.width) for camera in reader.cameras]
    fingerprint, _ = fingerprints(reader)
    read = [VERSION, fingerprint, cameras, reader.stride, asdict(calibration), verify]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()


def fingerprints(reader: Episodes) -> tuple[str, str]:
    """Of all that is read, and of the dataset as it is stored; see `Episodes`. Readers keep them, so that files may vanish later.

    Raises:
        DatasetError: If a file has vanished since the dataset was opened.
    """
    try:
        return reader.fingerprint, reader.stored_fingerprint
    except OSError as error:
        raise DatasetError(f"a file of {reader.root} was there when it was opened and cannot be read now ({error}): audit again") from error


def summarise_all(
    reader: Episodes, calibration: Calibration, verify: Verify, path: Path, key: str, num_workers: int, done: Callable[[int, bool], None]
) -> tuple[int, int]:
    """Writes a line for each usable episode to `path`; those of an earlier run with the same key stay.

    Args:
        reader: The dataset.
        calibration: See `calibrate`.
        verify: See `summarise`.
        path: The file: a line that names the key, then one JSON object for each episode, in any order.
        key: Of `results_key`; results under another one are thrown away.
        num_workers: Processes; 0 works in this one.
        done: Called with an episode's number of frames and whether it was new.

    Returns:
        How many episodes were summarised now and how many had been before.

    Raises:
        OSError: If the file cannot be written, or a process died; what was finished is kept.
    """
    with writing(path.parent):
        _keep_whole_lines(path, key)
    lengths = dict(zip(reader.episodes.indices.tolist(), reader.episodes.lengths.tolist(), strict=True))
    there = {summary["episode"] for summary in read_summaries(path)} & set(lengths)
    for index in there:
        done(lengths[index], False)
    missing = (episode for episode in reader.episodes if episode.index not in there)
    new = 0
    with path.open("a", encoding="utf-8") as file:
        for summary in _compute(reader, missing, calibration, verify, num_workers):
            with writing(path.parent):
                _write_line(file, summary)
            new += 1
            done(summary["length"], True)
    return new, len(there)


def writing(folder: Path) -> AbstractContextManager[None]:
    """Says in plain words that results cannot be written."""
    remedy = "choose another folder with --out; episodes that were finished are not read again"
    return told("results cannot be written to", folder, remedy)


def read_summaries(path: Path) -> Iterator[dict[str, Any]]:
    """One after the other."""
    with path.open(encoding="utf-8") as file:
        next(file, None)
        for line in file:
            yield json.loads(line)


def _keep_whole_lines(path: Path, key: str) -> None:
    """Makes the file, or cuts off a line that an interrupted run did not finish."""
    if path.is_file():
        with path.open("rb+") as file:
            if file.readline() == _head(key):
                end = file.tell()
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    end += len(line)
                file.truncate(end)
                return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_head(key))


def _head(key: str) -> bytes:
    return json.dumps({"key": key}).encode() + b"\n"


def _write_line(file: IO[str], summary: dict[str, Any]) -> None:
    file.write(json.dumps(summary, ensure_ascii=False, separators=(",", ":")) + "\n")
    file.flush()


def _compute(
    reader: Episodes, episodes: Iterator[Episode], calibration: Calibration, verify: Verify, num_workers: int
) -> Iterator[dict[str, Any]]:
    if num_workers == 0:
        for episode in episodes:
            yield summarise(reader, episode, calibration, verify)
        return
    context = multiprocessing.get_context("spawn")  # forked video decoders can hang
    waiting: deque[Future[dict[str, Any]]] = deque()
    with ProcessPoolExecutor(num_workers, context, _start, (reader, calibration, verify)) as pool:
        try:
            for episode in episodes:
                waiting.append(pool.submit(_summarise_here, episode))
                if len(waiting) >= IN_FLIGHT * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process of the audit died, most likely for want of memory: run it again with fewer --num_workers; "
                "episodes that were finished are not read again"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_here: tuple[Episodes, Calibration, Verify]


def _start(reader: Episodes, calibration: Calibration, verify: Verify) -> None:
    """In a process that starts: each has its share of the cores, and ends when the audit is killed."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the audit ends its processes itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    _here = (reader, calibration, verify)


def _end_with_parent() -> None:
    """A pool's processes would wait for work forever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _summarise_here(episode: Episode) -> dict[str, Any]:
    reader, calibration, verify = _here
    return summarise(reader, episode, calibration, verify)
