"""LeRobot datasets of many episodes: what opening reads and keeps, and that rows come from their files once, when they are asked for."""

import gc
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mimicvideo.data.lerobot as lerobot
import mimicvideo.data.lerobot_rows as lerobot_rows
from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.lerobot_listing import _fast_lines, _lines, read_v2
from mimicvideo.data.lerobot_rows import LeRobotRows
from mimicvideo.data.modules import ClipData
from mimicvideo.data.open import open_episodes
from mimicvideo.data.sampler import BatchStream
from mimicvideo.data.spec import DatasetSpec
from tests.every_format import LENGTHS, lerobot_v21
from tests.synthetic_episodes import DATA_FILE, EPISODES_FILE, Made, by_lerobot, by_writer, change_rows

BENCHMARKS = Path(__file__).resolve().parents[3] / "experiments" / "benchmarks"


@pytest.fixture
def listing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """Twenty thousand episodes whose rows and videos are not there, and their lengths."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from synthetic_lerobot import write  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(lerobot, "LARGE", 10_000)
    return tmp_path / "d", write(tmp_path / "d", 20_000, 100, tasks=300)


def check_numbers(reader: Any, made: Made) -> None:
    for number, episode in enumerate(reader.episodes):
        np.testing.assert_array_equal(reader.actions(episode), made.actions[number])
        np.testing.assert_array_equal(reader.proprio(episode), made.states[number])


def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """File, stretch and column of everything that is read from here on."""
    found: list[tuple[int, int, str]] = []
    load = LeRobotRows._load

    def noted(self: LeRobotRows, code: int, file: Any, number: int, names: list[str]) -> Any:
        found.extend((code, number, name) for name in names)
        return load(self, code, file, number, names)

    monkeypatch.setattr(LeRobotRows, "_load", noted)
    return found


# ---- opening ------------------------------------------------------------------------------------------------------------------------


def test_opening_needs_the_meta_folder_only(listing_only: tuple[Path, np.ndarray], caplog: pytest.LogCaptureFixture) -> None:
    root, lengths = listing_only
    reader = LeRobotEpisodes(root, ["wrist"])
    assert "20000 episodes: their numbers and videos are looked at when they are read" in caplog.text
    np.testing.assert_array_equal(reader.episodes.lengths, lengths)
    episode = reader.episodes[12_345]
    assert (episode.index, episode.length, episode.task) == (12_345, lengths[12_345], f"put the {12_345 % 300 % 97} onto the 0")
    span = reader._meta.listing.video(12_345, "observation.images.wrist")
    assert span is not None and span.path == root / "videos/observation.images.wrist/chunk-000/file-024.mp4"
    assert span.first == lengths[12_000:12_345].sum(), "500 episodes share a video"
    assert reader._meta.listing.starts[12_345] == lengths[:12_345].sum() - lengths[: np.searchsorted(lengths.cumsum(), 10**6) + 1].sum()


def test_no_object_is_kept_per_episode(listing_only: tuple[Path, np.ndarray]) -> None:
    gc.collect()
    before = len(gc.get_objects())
    reader = LeRobotEpisodes(listing_only[0], ["wrist"])
    gc.collect()
    assert len(gc.get_objects()) - before < 2_000 < len(reader.episodes)


def test_ranks_divide_the_samples_of_a_large_listing(listing_only: tuple[Path, np.ndarray]) -> None:
    root, _ = listing_only
    data = DemonstrationData(7, 7, 60, root=str(root), cameras=["front"], validation_fraction=0.1)
    data.setup()
    trains = data._training.lengths
    streams = [iter(BatchStream(data._order(), 50, rank, 4)) for rank in range(4)]
    items = [item for _ in range(40) for stream in streams for item in next(stream)]
    assert len({(item.episode, item.row) for item in items}) == len(items) == 8_000, "each window once"
    assert len(trains) == 18_000 and all(0 <= item.row < trains[item.episode] for item in items[:1000])
    shares = np.histogram(np.cumsum(trains)[[item.episode for item in items]] / trains.sum(), 10, (0, 1))[0]
    assert np.abs(shares - 800).max() < 6 * np.sqrt(800 * 0.9), "windows of all parts are as likely"
    clips = ClipData(str(root), cameras=["front"], validation_fraction=0.0)
    clips.setup()
    drawn = np.array([clips._order()[position].episode for position in range(2000)])
    assert np.abs(np.histogram(drawn, 10, (0, 20_000))[0] - 200).max() < 6 * np.sqrt(200 * 0.9), "episodes are as likely"


def test_what_was_not_looked_at_is_told_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_writer(tmp_path / "d", lengths=(12, 9, 20, 10))
    change_rows(tmp_path / "d", lambda columns: columns["action"][12 + 4].__setitem__(2, float("nan")))
    (tmp_path / "d/videos/observation.images.corner2/chunk-000/file-002.mp4").unlink()
    with pytest.raises(DatasetError, match="2 of 4 episodes"):
        LeRobotEpisodes(tmp_path / "d")
    monkeypatch.setattr(lerobot, "LARGE", 3)
    for reader in (LeRobotEpisodes(tmp_path / "d"), LeRobotEpisodes(tmp_path / "d", verify="meta")):
        assert len(reader.episodes) == 4
        with pytest.raises(DatasetError, match="episode 1 of .*: action is NaN or infinite in row 4, dimension 2"):
            reader.actions(reader.episodes[1])
        with pytest.raises(DatasetError, match="episode 2 of .*file-002.mp4: there is no such file"):
            reader.frames(reader.episodes[2], [0])
    with pytest.raises(DatasetError, match="1: it has 9 rows, fewer than 10"):
        LeRobotEpisodes(tmp_path / "d", verify="meta", min_rows=10)
    with pytest.raises(DatasetError, match="2 of 4 episodes"):
        LeRobotEpisodes(tmp_path / "d", verify="quick")


def test_training_replaces_what_was_not_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_writer(tmp_path / "d", lengths=(12, 9, 20, 10))
    (tmp_path / "d/videos/observation.images.corner2/chunk-000/file-002.mp4").unlink()
    options: dict[str, Any] = {"observed": 5, "future": 4, "validation_fraction": 0.0, "batch_size": 16, "verify": "meta"}
    with caplog.at_level(logging.WARNING):
        data = DemonstrationData(3, 2, 4, root=str(tmp_path / "d"), max_bad_fraction=0.25, **options)
        batch = next(iter(data.train_dataloader()))
    assert 2 not in batch["episode"].tolist() and "skipping episode 2" in caplog.text
    strict = DemonstrationData(3, 2, 4, root=str(tmp_path / "d"), **options)
    with pytest.raises(DatasetError, match="1 of 4 episodes"):
        next(iter(strict.train_dataloader()))


def test_the_meta_folder_alone_is_checked(tmp_path: Path) -> None:
    by_lerobot(tmp_path / "rows")
    change_rows(tmp_path / "rows", lambda columns: columns["length"].__setitem__(1, 8), EPISODES_FILE)
    with pytest.raises(DatasetError, match="total_frames 41, meta/episodes lists 40"):
        LeRobotEpisodes(tmp_path / "rows", verify="meta")
    by_lerobot(tmp_path / "twice")
    change_rows(tmp_path / "twice", lambda columns: columns["episode_index"].__setitem__(1, 0), EPISODES_FILE)
    with pytest.raises(DatasetError, match="lists episode 0 twice"):
        LeRobotEpisodes(tmp_path / "twice", verify="meta")
    by_lerobot(tmp_path / "lacks")
    change_rows(tmp_path / "lacks", lambda columns: columns.__delitem__("length"), EPISODES_FILE)
    with pytest.raises(DatasetError, match="meta/episodes lacks length"):
        LeRobotEpisodes(tmp_path / "lacks", verify="meta")
    by_lerobot(tmp_path / "blind")
    nowhere = {f"videos/observation.images.corner2/{name}_index": [0, 0, None] for name in ("chunk", "file")}
    change_rows(tmp_path / "blind", lambda columns: columns.update(nowhere), EPISODES_FILE)
    with pytest.raises(DatasetError, match="1 of 3 .*\n  episode 2: it has no video of camera corner2"):
        LeRobotEpisodes(tmp_path / "blind", verify="meta")


def test_episodes_listed_in_several_files_and_any_order(tmp_path: Path) -> None:
    made = by_lerobot(tmp_path / "d", instructions=["Lift.", "Push.", "Lift."])
    table = pq.read_table(tmp_path / "d" / EPISODES_FILE)
    pq.write_table(table.take([2, 0]), tmp_path / "d" / EPISODES_FILE)
    pq.write_table(table.take([1]), tmp_path / "d" / EPISODES_FILE.replace("file-000", "file-001"))
    reader = LeRobotEpisodes(tmp_path / "d")
    check_numbers(reader, made)
    assert [episode.task for episode in reader.episodes] == reader.episodes.tasks == ["Lift.", "Push.", "Lift."]


def test_version_2_opens_without_its_rows(tmp_path: Path) -> None:
    lerobot_v21(tmp_path / "d")
    for file in (tmp_path / "d/data").rglob("*.parquet"):
        file.unlink()
    reader = open_episodes(tmp_path / "d", verify="meta")
    assert [episode.length for episode in reader.episodes] == list(LENGTHS)
    with pytest.raises(DatasetError, match="data/chunk-000/episode_000000.parquet is missing"):
        reader.actions(reader.episodes[0])


# ---- rows ---------------------------------------------------------------------------------------------------------------------------


def regroup(root: Path, rows: int) -> None:
    """Writes the rows in groups of so many."""
    pq.write_table(pq.read_table(root / DATA_FILE), root / DATA_FILE, row_group_size=rows)


@pytest.mark.parametrize("stretch", [1, 8, 2**14])
@pytest.mark.parametrize("kept", [0, 400, 2**30])
def test_rows_are_those_of_the_episode_however_files_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stretch: int, kept: int
) -> None:
    made = by_lerobot(tmp_path / "d")
    regroup(tmp_path / "d", 5)
    monkeypatch.setattr(lerobot_rows, "STRETCH_ROWS", stretch)
    monkeypatch.setattr(lerobot_rows, "KEPT_BYTES", kept)
    reader = LeRobotEpisodes(tmp_path / "d")
    check_numbers(reader, made)
    check_numbers(pickle.loads(pickle.dumps(reader)), made)
    for number in (2, 0, 1, 2):
        np.testing.assert_array_equal(reader.times(reader.episodes[number]), np.arange(made.lengths[number]) / 10)
    described = open_episodes(tmp_path / "d", spec=DatasetSpec(robot="mine"))
    check_numbers(described, made)


def test_a_pass_over_all_episodes_reads_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_writer(tmp_path / "d", lengths=(12, 9, 20, 10, 11, 13))
    regroup(tmp_path / "d", 5)
    monkeypatch.setattr(lerobot_rows, "STRETCH_ROWS", 32)
    monkeypatch.setattr(lerobot_rows, "KEPT_BYTES", 0)  # nothing but the newest stretch
    data = DemonstrationData(3, 2, 4, root=str(tmp_path / "d"), observed=5, future=4, validation_fraction=0.0)
    read = loads(monkeypatch)
    data.setup()
    stretches = 3  # of 30, 30 and 15 rows
    assert sorted(set(read)) == sorted(read), "opening reads nothing twice"
    assert {(code, number) for code, number, _ in read} == {(0, number) for number in range(stretches)}
    read.clear()
    data.statistics()
    # An episode that lies in two stretches has its rows looked for in both before its numbers are read.
    assert len(read) <= 4 * stretches + 4 * 2, "columns by stretch, and those at whose border an episode lies again"
    read.clear()
    monkeypatch.setattr(lerobot_rows, "KEPT_BYTES", 2**30)
    reader = LeRobotEpisodes(tmp_path / "d")
    check_numbers(reader, made)
    assert sorted(set(read)) == sorted(read), "a small dataset is read once altogether"


def test_a_single_episode_needs_its_own_stretch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_lerobot(tmp_path / "d")
    regroup(tmp_path / "d", 4)
    monkeypatch.setattr(lerobot_rows, "STRETCH_ROWS", 4)
    reader = LeRobotEpisodes(tmp_path / "d", verify="meta")
    read = loads(monkeypatch)
    np.testing.assert_array_equal(reader.actions(reader.episodes[1]), made.actions[1])
    assert {number for _, number, _ in read} == {3, 4, 5}, "rows 12 ... 20 of groups of four"


def test_episodes_that_lie_elsewhere_in_their_file_are_found(tmp_path: Path) -> None:
    made = by_lerobot(tmp_path / "d")
    table = pq.read_table(tmp_path / "d" / DATA_FILE)
    pq.write_table(pa.concat_tables([table.slice(21), table.slice(0, 21)]), tmp_path / "d" / DATA_FILE)
    check_numbers(LeRobotEpisodes(tmp_path / "d"), made)
    more = table.slice(0, 3).set_column(0, "episode_index", pa.array([7] * 3))
    pq.write_table(pa.concat_tables([more.select(table.column_names), table]), tmp_path / "d" / DATA_FILE)
    check_numbers(LeRobotEpisodes(tmp_path / "d", verify="meta"), made)
    with pytest.raises(DatasetError, match="the data files hold 44"):
        LeRobotEpisodes(tmp_path / "d")


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    by_lerobot(tmp_path / "d")
    table = pq.read_table(tmp_path / "d" / DATA_FILE)
    pq.write_table(table.slice(0, 30), tmp_path / "d" / DATA_FILE)
    reader = LeRobotEpisodes(tmp_path / "d", verify="meta")
    with pytest.raises(DatasetError, match="episode 2 has 9 rows, meta/episodes says 20"):
        reader.proprio(reader.episodes[2])
    wide = pa.array([[0.0] * 4] * len(table), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", wide), tmp_path / "d" / DATA_FILE)
    with pytest.raises(DatasetError, match="holds 4 numbers of action per row, meta/info.json says \\[3\\]"):
        LeRobotEpisodes(tmp_path / "d")


def test_a_file_per_episode_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lerobot_v21(tmp_path / "d")
    monkeypatch.setattr(lerobot_rows, "KEPT_FOOTERS", 1)
    reader = open_episodes(tmp_path / "d")
    before = [reader.actions(episode) for episode in reader.episodes]
    for file in (tmp_path / "d/data").rglob("*.parquet"):
        file.unlink()
    for episode, actions in zip(reader.episodes, before, strict=True):
        np.testing.assert_array_equal(reader.actions(episode), actions)


EPISODES = ['{"episode_index": 0, "tasks": ["a", "b"], "length": 3}', '{"episode_index": 2, "length": 5, "more": {"x": NaN}}']


@pytest.mark.parametrize(
    ("lines", "fast"),
    [
        ([*EPISODES[:1], '{"episode_index": 2, "length": 5, "tasks": [], "stats": {"x": [1.5]}}'], True),
        ([*reversed(EPISODES[:1]), "", '{"length": 5, "episode_index": 2}', ""], True),
        (EPISODES, True),  # NaN is no JSON, but Python writes it
        (['{"episode_index": 0, "tasks": ["a", "b"], "length": 3.0}', '{"episode_index": 2, "length": 5, "tasks": null}'], False),
    ],
)
def test_lines_of_version_2_are_the_same_however_they_are_read(tmp_path: Path, lines: list[str], fast: bool) -> None:
    (tmp_path / "meta").mkdir()
    path = tmp_path / "meta/episodes.jsonl"
    path.write_text("\n".join(lines))
    assert (_fast_lines(path) is not None) is fast
    assert [row["tasks"] or [] for row in _lines(tmp_path, path).to_pylist()] == [["a", "b"], []]
    listing = read_v2(tmp_path, {"features": {}})[0]
    assert (listing.indices.tolist(), listing.lengths.tolist()) == ([0, 2], [3, 5])
    assert [listing.sentences(place) for place in range(2)] == [("a", "b"), ()]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"episode_index": 1, "tasks": []}', "lacks episode_index or length in line 2"), ('{"epis', "truncated in line 2")],
)
def test_wrong_lines_of_version_2_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/episodes.jsonl").write_text(f"{EPISODES[0]}\n{line}")
    with pytest.raises(DatasetError, match=message):
        read_v2(tmp_path, {"features": {}})
