"""A LeRobotDataset v3.0 of any size whose meta folder is real and whose rows and videos are not there.

`python experiments/benchmarks/synthetic_lerobot.py ROOT EPISODES ROWS [TASKS]` writes one; `write` is what it calls.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from mimicvideo.data.lerobot_files import tasks_table, write_json, write_table

FPS, DIMS = 30, 7
CAMERAS = ("observation.images.front", "observation.images.wrist")
EPISODES_PER_LIST, EPISODES_PER_VIDEO, ROWS_PER_FILE = 100_000, 500, 10**6  # about what LeRobot's limits of 100 and 200 MB give
CHUNK = 1000


def write(root: Path, episodes: int, rows: int, tasks: int = 10_000) -> np.ndarray:
    """Writes the meta folder.

    Args:
        root: Of the dataset.
        episodes: How many.
        rows: Of an episode on average; they lie between half and one and a half of it.
        tasks: How many different sentences there are.

    Returns:
        Rows of each episode.
    """
    lengths = np.random.default_rng(0).integers(rows // 2, 3 * rows // 2 + 1, episodes)
    ends = np.cumsum(lengths)
    sentences = np.array([f"put the {number % 97} onto the {number // 97}" for number in range(min(tasks, episodes))])
    for number, start in enumerate(range(0, episodes, EPISODES_PER_LIST)):
        part = np.arange(start, min(start + EPISODES_PER_LIST, episodes))
        write_table(root / f"meta/episodes/chunk-000/file-{number:03d}.parquet", _listing(part, lengths, ends, sentences))
    write_table(root / "meta/tasks.parquet", tasks_table({str(sentence): number for number, sentence in enumerate(sentences)}))
    vector = {"dtype": "float32", "shape": [DIMS]}
    video = {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": episodes,
        "total_frames": int(ends[-1]),
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": {**vector, "names": [f"s{number}" for number in range(DIMS)]},
            "action": {**vector, "names": [f"a{number}" for number in range(DIMS)]},
            **dict.fromkeys(CAMERAS, video),
        },
    }
    write_json(root / "meta/info.json", info)
    return lengths


def _listing(part: np.ndarray, lengths: np.ndarray, ends: np.ndarray, sentences: np.ndarray) -> pa.Table:
    """Rows of meta/episodes, with the statistics that LeRobot puts there too."""
    told = pa.array(sentences[part % len(sentences)])
    columns = {
        "episode_index": pa.array(part),
        "tasks": pa.ListArray.from_arrays(pa.array(np.arange(len(part) + 1), pa.int32()), told),
        "length": pa.array(lengths[part]),
        "data/chunk_index": pa.array((ends[part] - lengths[part]) // ROWS_PER_FILE // CHUNK),
        "data/file_index": pa.array((ends[part] - lengths[part]) // ROWS_PER_FILE % CHUNK),
        "dataset_from_index": pa.array(ends[part] - lengths[part]),
        "dataset_to_index": pa.array(ends[part]),
    }
    file, starts = part // EPISODES_PER_VIDEO, ends[part] - lengths[part]
    first = starts - (ends - lengths)[file * EPISODES_PER_VIDEO]
    for key in CAMERAS:
        columns[f"videos/{key}/chunk_index"] = pa.array(file // CHUNK)
        columns[f"videos/{key}/file_index"] = pa.array(file % CHUNK)
        columns[f"videos/{key}/from_timestamp"] = pa.array(first / FPS)
        columns[f"videos/{key}/to_timestamp"] = pa.array((first + lengths[part]) / FPS)
    numbers = pa.array(np.random.default_rng(part[0]).normal(size=len(part) * DIMS))
    for feature in ("observation.state", "action"):
        for statistic in ("min", "max", "mean", "std"):
            columns[f"stats/{feature}/{statistic}"] = pa.FixedSizeListArray.from_arrays(numbers, DIMS)
    return pa.table(columns)


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
