"""The same episodes give the same samples in every format, whatever lies on disk."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData
from mimicvideo.data.open import open_episodes
from mimicvideo.data.spec import DatasetSpec
from tests.every_format import FORMATS, HZ, LENGTHS, ORDER, TOLD, WITH_NUMBERS, film
from tests.synthetic_episodes import ACTION_NAMES, STATE_NAMES, numbers

GEOMETRY: dict[str, Any] = {"observed": 5, "future": 4, "batch_size": 6, "validation_fraction": 0.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, DatasetSpec | None]]:
    folder = tmp_path_factory.mktemp("formats")
    return {name: (folder / name, write(folder / name)) for name, (write, _) in FORMATS.items()}


def opened(written: dict[str, Any], name: str) -> Episodes:
    root, spec = written[name]
    return open_episodes(root, spec=spec, ram_cache_gb=0.0)


@pytest.mark.parametrize("name", FORMATS)
def test_episodes_are_those_that_were_written(written: dict[str, Any], name: str) -> None:
    reader = opened(written, name)
    order = ORDER.get(name, (0, 1, 2))
    assert [episode.length for episode in reader.episodes] == [LENGTHS[number] for number in order]
    assert [episode.instructions for episode in reader.episodes] == [(TOLD[number],) for number in order]
    assert (reader.control_hz, reader.stride, reader.robot) == (HZ, 1, "so101")
    assert [(camera.name, camera.height, camera.width) for camera in reader.cameras] == [("corner2", 16, 16)]
    for episode, number in zip(reader.episodes, order, strict=True):
        rows = np.array([7, 0, 3, 3, 8])
        difference = np.abs(reader.frames(episode, rows).astype(int) - film(number)[rows].astype(int))
        assert difference.max() <= FORMATS[name][1]
        actions, states = numbers(number, LENGTHS[number], 1)
        if name in WITH_NUMBERS:
            np.testing.assert_array_equal(reader.actions(episode), actions)
            np.testing.assert_array_equal(reader.proprio(episode), states)
            assert (reader.action_names, reader.proprio_names) == (ACTION_NAMES, STATE_NAMES)
        else:
            assert reader.action_names == reader.proprio_names == []


def samples(data: ClipData, order: tuple[int, ...]) -> dict[tuple[int, int], Any]:
    """By the episode's number as it was made, and row: everything that a sample holds."""
    found = {}
    for batch in islice(iter(data.train_dataloader()), 12):
        for place, (episode, row) in enumerate(zip(batch["episode"].tolist(), batch["row"].tolist(), strict=True)):
            leaves = {**batch, **batch.get("observation", {})}
            values = {key: value[place] for key, value in leaves.items() if key not in ("observation", "episode", "row", "position")}
            found[order[episode], row] = values
    return found


@pytest.mark.parametrize("kind", [ClipData, DemonstrationData])
def test_batches_hold_the_same_samples(written: dict[str, Any], kind: type[ClipData]) -> None:
    options = GEOMETRY | ({"action_dim": 3, "proprio_dim": 2, "horizon": 6} if kind is DemonstrationData else {})
    reference: dict[tuple[int, int], Any] = {}
    for name in FORMATS if kind is ClipData else WITH_NUMBERS:
        root, spec = written[name]
        data = kind(root=str(root), spec=spec, **options)
        got = samples(data, ORDER.get(name, (0, 1, 2)))
        if not reference:
            reference = got
        shared = got.keys() & reference.keys()
        assert len(shared) > 25, "the test compares too little"
        for place in shared:
            assert got[place].keys() == reference[place].keys()
            for key, value in got[place].items():
                expected = reference[place][key]
                if isinstance(value, str):
                    assert value == expected
                elif value.dtype == torch.uint8:
                    assert (value.int() - expected.int()).abs().max() <= FORMATS["lerobot_v3.0"][1]
                else:
                    assert torch.equal(value, expected), key


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_workers_read_what_the_main_process_reads(written: dict[str, Any], name: str) -> None:
    root, spec = written[name]
    options = GEOMETRY | {"root": str(root), "spec": spec, "action_dim": 3, "proprio_dim": 2, "horizon": 6, "ram_cache_gb": 0.0}
    alone, helped = (samples(DemonstrationData(num_workers=workers, **options), (0, 1, 2)) for workers in (0, 2))
    assert alone.keys() == helped.keys()
    for place, values in alone.items():
        assert torch.equal(values["video"], helped[place]["video"]) and torch.equal(values["actions"], helped[place]["actions"])


def test_statistics_depend_on_the_description(written: dict[str, Any]) -> None:
    root, spec = written["hdf5"]
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    other = open_episodes(root, spec=DatasetSpec(**{**fields, "proprio": ["obs/y", "obs/x"]}))
    assert other.tables_fingerprint != opened(written, "hdf5").tables_fingerprint
    assert opened(written, "hdf5").tables_fingerprint == opened(written, "hdf5").tables_fingerprint


def test_archives_that_may_hold_pickles_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "episode_0.npz", actions=np.array([{"any": "object"}], dtype=object))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("an archive was loaded"))
    for spec in (None, DatasetSpec(proprio=["actions"])):
        with pytest.raises(DatasetError, match=r"is no dataset that is read .*holds .npz files. .*pickles, which run code, .*never loaded"):
            open_episodes(tmp_path, spec=spec)
    for kind in ("zarr", "hdf5", "videos", "lerobot"):
        with pytest.raises(DatasetError):
            open_episodes(tmp_path, spec=DatasetSpec(format=kind))
