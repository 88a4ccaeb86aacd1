"""`mimicvideo captions` with a tiny random vision-language model: what is written, resumed, refused, and read again."""

import fcntl
import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicvideo import caption_workers
from mimicvideo.caption_tool import captions
from mimicvideo.data.captions import content_of, match_long_captions, read_long_captions, sidecar_path
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.reason.vision_language import Answer, VisionLanguageModel, _answer
from tests.synthetic_episodes import by_lerobot, by_writer, numbers
from tests.tiny_vlm import make_llava, make_vlm

FAST: dict[str, Any] = {"frames": 3, "max_new_tokens": 12, "device": "cpu"}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_vlm(tmp_path_factory.mktemp("vlm")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_lerobot(tmp_path_factory.mktemp("data") / "set", (6, 7, 5), ["pick up", "", "pick up"], size=56).root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def texts(root: Path) -> dict[str, list[str]]:
    reader = LeRobotEpisodes(root)
    contents = {str(episode.index): content_of(reader, episode) for episode in reader.episodes}
    return match_long_captions(read_long_captions(sidecar_path(root)), contents)[0]


def test_every_episode_gets_a_caption_that_readers_find(vlm, root, capsys):
    path = captions(str(root), vlm, batch_size=2, **FAST)
    assert path == root / "mimicvideo_captions.jsonl"
    assert set(texts(root)) == {"0", "1", "2"} and all(len(found) == 1 and found[0] for found in texts(root).values())
    line = json.loads(path.read_text().splitlines()[0])
    assert line["version"] == 1 and line["episode"] == "0" and line["model"] == vlm and len(line["content"]) == len(line["request"]) == 64
    assert "3 episodes, 0 have their caption already" in capsys.readouterr().out


def test_a_caption_depends_on_the_episode_alone_not_on_its_batch(vlm, root):
    captions(str(root), vlm, batch_size=3, **FAST)
    together = texts(root)
    sidecar_path(root).unlink()
    captions(str(root), vlm, batch_size=1, **FAST)
    assert texts(root) == together


def test_the_model_sees_the_pictures_and_the_request(vlm):
    network = VisionLanguageModel(vlm, device="cpu")
    one, other = np.zeros((2, 56, 56, 3), np.uint8), np.full((2, 56, 56, 3), 255, np.uint8)
    answers = network.answer([one, other, one], ["word1", "word1", "word2"], 12)
    assert len({answer.text for answer in answers}) == 3 and all(answer.cut for answer in answers)
    assert network.answer([one], ["word1"], 12) == answers[:1]


def test_it_continues_where_it_was_interrupted(vlm, root, capsys):
    path = captions(str(root), vlm, **FAST)
    whole = path.read_text()
    first, second, _ = whole.splitlines(keepends=True)
    path.write_text(first + second[:30])  # killed while writing the second
    captions(str(root), vlm, **FAST)
    assert path.read_text() == whole
    assert "1 have their caption already" in capsys.readouterr().out


def test_several_processes_write_what_one_writes(vlm, root):
    captions(str(root), vlm, batch_size=1, **FAST)
    alone = sorted(sidecar_path(root).read_text().splitlines())
    sidecar_path(root).unlink()
    captions(str(root), vlm, batch_size=1, processes=2, **FAST)
    assert sorted(sidecar_path(root).read_text().splitlines()) == alone


def test_the_failure_of_a_process_is_told(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="one of 2 processes failed: ValueError: model='.*empty' is no image-text-to-text model"):
        captions(str(root), str(tmp_path / "empty"), batch_size=1, processes=2, **FAST)


def test_nothing_is_loaded_when_nothing_is_missing(vlm, root, monkeypatch, capsys):
    captions(str(root), vlm, **FAST)
    before = sidecar_path(root).read_text()
    monkeypatch.setattr(caption_workers, "VisionLanguageModel", lambda *_: pytest.fail("loaded"))
    captions(str(root), vlm, **FAST)
    assert sidecar_path(root).read_text() == before and "nothing to do" in capsys.readouterr().out


def test_another_request_adds_captions_and_changed_episodes_get_new_ones(vlm, root):
    captions(str(root), vlm, limit=2, **FAST)
    captions(str(root), vlm, limit=1, prompt="Say it. {task}", **FAST)
    assert {key: len(found) for key, found in texts(root).items()} == {"0": 2, "1": 1}
    shutil.rmtree(root)
    changed = by_lerobot(root, (6, 8, 5), ["pick up", "", "pick up"], size=56).root
    captions(str(changed), vlm, **FAST)
    assert {key: len(found) for key, found in texts(changed).items()} == {"0": 1, "1": 1, "2": 1}


def test_the_model_is_shown_evenly_spaced_pictures_and_the_task(root, monkeypatch):
    shown: list[tuple[np.ndarray, str]] = []

    class Watching:
        def __init__(self, *_: Any) -> None: ...

        def answer(self, pictures, requests, _):
            shown.extend(zip(pictures, requests, strict=True))
            return [Answer("A robot moves.", False)] * len(requests)

    monkeypatch.setattr(caption_workers, "VisionLanguageModel", Watching)
    captions(str(root), "anything", prompt="Look. {task}Describe {it}.", frames=3)
    assert [request for _, request in shown] == [
        "Look. The robot's task is: pick up. Describe {it}.",
        "Look. Describe {it}.",
        "Look. The robot's task is: pick up. Describe {it}.",
    ]
    reader = LeRobotEpisodes(root)
    for (pictures, _), episode, rows in zip(shown, reader.episodes, ([0, 2, 5], [0, 3, 6], [0, 2, 4]), strict=True):
        np.testing.assert_array_equal(pictures, reader.frames(episode, rows))


def test_empty_answers_are_counted_not_written(root, monkeypatch, capsys):
    class Silent:
        def __init__(self, *_: Any) -> None: ...

        def answer(self, pictures, requests, _):
            return [Answer("", False)] * len(requests)

    monkeypatch.setattr(caption_workers, "VisionLanguageModel", Silent)
    with pytest.raises(RuntimeError, match="anything wrote nothing about any of 3 episodes"):
        captions(str(root), "anything")
    assert "3 empty" in capsys.readouterr().out and sidecar_path(root).read_text() == ""


def test_two_writers_are_refused(vlm, root):
    with open(sidecar_path(root), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="being written by another run"):
            captions(str(root), vlm, **FAST)


def test_mistakes_are_refused_before_the_model_is_read(vlm, root, tmp_path):
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        captions(str(root), vlm, frames=0)
    with pytest.raises(FileNotFoundError, match="nowhere/x.jsonl cannot be written"):
        captions(str(root), vlm, out=str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(FileNotFoundError, match="there is no folder no-such-folder"):
        VisionLanguageModel("no-such-folder")


def test_incomplete_and_other_models_are_told(vlm, tmp_path):
    broken = Path(shutil.copytree(vlm, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="broken' lacks files"):
        VisionLanguageModel(str(broken), device="cpu")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    with pytest.raises((ValueError, ImportError), match="no image-text-to-text model|the processor of t5"):
        VisionLanguageModel(str(broken), device="cpu")


def test_models_of_other_architectures_are_taken(root, tmp_path):
    llava = make_llava(tmp_path / "llava")
    captions(str(root), str(llava), batch_size=2, **FAST)
    assert set(texts(root)) == {"0", "1", "2"}
    assert type(VisionLanguageModel(str(llava), device="cpu").processor).__name__ == "LlavaProcessor"


def test_code_of_a_model_is_never_run(vlm, tmp_path):
    foreign = Path(shutil.copytree(vlm, tmp_path / "foreign"))
    (foreign / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}}
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="foreign' is no image-text-to-text model that transformers knows itself"):
        VisionLanguageModel(str(foreign), device="cpu")
    assert not (tmp_path / "ran").exists()


def refuses(*args):
    raise ConnectionRefusedError("no network")


def never_answers(*args):
    time.sleep(10)


@pytest.mark.parametrize(("connect", "reason"), [(refuses, "no network"), (never_answers, "no answer within 5 s")])
def test_a_hub_that_cannot_be_reached_is_told_within_seconds(monkeypatch, tmp_path, connect, reason):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=rf"model='some/model': .*the hub did not give it \(.*{reason}.*\)\. Either connect"):
        VisionLanguageModel("some/model")
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("written", "cut", "text"),
    [
        ("A robot\n lifts a cup. ", False, "A robot lifts a cup."),
        ("<think>hm, a cup</think>\n<answer>It lifts a cup.</answer>", False, "It lifts a cup."),
        ("thoughts without a start</think> It lifts.", False, "It lifts."),
        ("<think>still thinking", True, ""),
        ("One. Two. Thr", True, "One. Two."),
        ("no sentence yet", True, "no sentence yet"),
    ],
)
def test_answers_without_thoughts_and_broken_sentences(written, cut, text):
    assert _answer(written, cut) == Answer(text, cut)


def test_numbers_make_the_content(root, tmp_path):
    reader, other = LeRobotEpisodes(root), LeRobotEpisodes(by_writer(tmp_path / "other", (6,)).root)
    first = content_of(reader, reader.episodes[0])
    assert first != content_of(other, other.episodes[0]) and first != content_of(reader, reader.episodes[2])
    np.testing.assert_array_equal(reader.actions(reader.episodes[0]), numbers(0, 6, 1)[0])
