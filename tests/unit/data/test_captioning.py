"""Caption policies in training and validation: who gets which sentence, and who is left out."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mimicvideo.data.captions import SIDECAR_VERSION, LongCaption, content_of, sidecar_path
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.modules import ClipData
from mimicvideo.data.open import open_episodes
from tests.synthetic_episodes import Made, by_lerobot, picture, write_video

LABELS = ["Open the drawer.", "", "Öffne die Schublade bitte und nimm den Löffel heraus.", "Close the drawer."]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return by_lerobot(tmp_path / "d", (12, 9, 20, 11), LABELS)


def clips(made: Made, **options: Any) -> ClipData:
    given = {"observed": 5, "future": 4, "batch_size": 16, "validation_fraction": 0.0, "cameras": ["corner2"]}
    return ClipData(str(made.root), **{**given, **options})


def seen(data: ClipData, batches: int = 6) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    stream = iter(data.train_dataloader())
    for _ in range(batches):
        batch = next(stream)
        for episode, prompt in zip(batch["episode"].tolist(), batch["prompt"], strict=True):
            found.setdefault(episode, set()).add(prompt)
    return found


def describe(made: Made, episodes: tuple[int, ...]) -> None:
    reader = LeRobotEpisodes(made.root, ["corner2"])
    with sidecar_path(made.root).open("w") as file:
        for episode in episodes:
            content = content_of(reader, reader.episodes[episode])
            line = LongCaption(str(episode), content, f"A long story about episode {episode}.", "model", "request")
            file.write(json.dumps({"version": SIDECAR_VERSION, **asdict(line)}) + "\n")


def test_without_a_policy_labels_are_taken_as_they_are(made: Made) -> None:
    assert seen(clips(made)) == {number: {label} for number, label in enumerate(LABELS)}


def test_unusable_labels_are_dropped_or_replaced_and_counted(made: Made) -> None:
    data = clips(made, captions={"empty": "drop", "foreign": "replace", "replacement": "do something", "period": "remove"})
    assert seen(data) == {0: {"Open the drawer"}, 2: {"do something"}, 3: {"Close the drawer"}}
    assert list(data.skipped) == ["data/1"] and "no instruction" in data.skipped["data/1"]


def test_long_descriptions_are_for_training_only(made: Made) -> None:
    describe(made, (0, 1, 2))
    data = clips(made, captions={"long_probability": 0.5, "empty": "replace"}, validation_fraction=0.0)
    found = seen(data, 12)
    assert found[0] == {"Open the drawer.", "A long story about episode 0."}
    assert found[1] == {"A long story about episode 1."}, "it has no other"
    assert found[3] == {"Close the drawer."}
    assert {"A long story about episode 2.", "Open the drawer."} <= set(data.prompts())


def test_a_description_stays_with_its_video_when_others_are_added(tmp_path: Path) -> None:
    """Videos without numbers may have one length and no caption: their pictures tell them from each other."""
    for number in (1, 2):
        write_video(tmp_path / f"{number}.mp4", [picture(number, row, 0, 16, 16) for row in range(9)])
    reader = open_episodes(tmp_path)
    with sidecar_path(tmp_path).open("w") as file:
        for episode in reader.episodes:
            line = LongCaption(str(episode.index), content_of(reader, episode), f"Of {episode.index}.", "model", "request")
            file.write(json.dumps({"version": SIDECAR_VERSION, **asdict(line)}) + "\n")
    options: dict[str, Any] = {"observed": 5, "future": 4, "validation_fraction": 0.0, "captions": {"long_probability": 1.0}}
    assert seen(ClipData(str(tmp_path), height=8, width=8, **options)) == {0: {"Of 0."}, 1: {"Of 1."}}
    write_video(tmp_path / "0.mp4", [picture(0, row, 0, 16, 16) for row in range(9)])
    assert seen(ClipData(str(tmp_path), **options)) == {0: {""}, 1: {""}, 2: {""}}


def test_validation_has_the_short_one(tmp_path: Path) -> None:
    made = by_lerobot(tmp_path / "d", (12, 9, 20, 11))
    describe(made, (0, 1, 2, 3))
    data = clips(made, captions={"long_probability": 1.0}, validation_episodes=2)
    assert {prompt for batch in data.val_dataloader() for prompt in batch["prompt"]} == {"Do it."}
    assert all(prompt.startswith("A long story") for prompt in next(iter(data.train_dataloader()))["prompt"])


def test_the_sentence_of_a_sample_is_a_function_of_seed_and_position(made: Made) -> None:
    describe(made, (0, 1, 2, 3))
    options = {"captions": {"long_probability": 0.5}}
    first, again, workers = (next(iter(clips(made, **options, num_workers=count).train_dataloader()))["prompt"] for count in (0, 0, 1))
    assert first == again == workers
    assert next(iter(clips(made, **options, seed=1).train_dataloader()))["prompt"] != first


def test_mistakes_are_told_before_data_is_read() -> None:
    with pytest.raises(ValueError, match="captions.emtpy is not accepted.*empty"):
        ClipData("nowhere", captions={"emtpy": "drop"})
