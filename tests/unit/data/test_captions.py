"""Captions: who sees which, the same on every rank, bad labels in every mode and counted, and the sidecar of long ones."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from mimicvideo.data.captions import (
    SIDECAR_VERSION,
    CaptionPolicy,
    EpisodeCaptions,
    episode_content,
    match_long_captions,
    parse_captions,
    prepare_captions,
    read_long_captions,
    sidecar_path,
)
from mimicvideo.data.errors import DatasetError

BOTH = EpisodeCaptions(("short", "other"), ("a long one", "another long one"))
MIXED = {"0": ["pick up the cube"], "1": [""], "2": ["recoge el bloque rojo"], "3": ["", "open the drawer", "拿起方块"], "4": []}


def drawn(captions, policy, seed=0, count=4000):
    return Counter(captions.training(policy, seed, position) for position in range(count))


def test_training_sees_long_descriptions_with_their_probability_and_evaluation_the_short_one():
    counts = drawn(BOTH, CaptionPolicy(long_probability=0.25))
    assert set(counts) == {"short", "a long one"}
    assert abs(counts["a long one"] / 4000 - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert BOTH.evaluation() == "short"
    assert set(drawn(BOTH, CaptionPolicy(long_probability=1.0))) == {"a long one"}
    assert set(drawn(EpisodeCaptions(("short",)), CaptionPolicy(long_probability=1.0))) == {"short"}, "without descriptions"
    assert set(drawn(BOTH, CaptionPolicy())) == {"short"}, "the paper's"


def test_alternatives_are_drawn_uniformly():
    counts = drawn(BOTH, CaptionPolicy(choose="uniform"))
    assert abs(counts["short"] / 4000 - 0.5) < 0.04 and counts["short"] + counts["other"] == 4000
    counts = drawn(BOTH, CaptionPolicy(choose="uniform", long_probability=0.5))
    assert all(abs(count / 4000 - 0.25) < 0.03 for count in counts.values()) and len(counts) == 4


def test_a_draw_depends_on_seed_and_position_alone():
    policy = CaptionPolicy(choose="uniform", long_probability=0.5)
    first = [BOTH.training(policy, 7, position) for position in range(200)]
    assert [BOTH.training(policy, 7, position) for position in reversed(range(200))] == first[::-1]
    assert [BOTH.training(policy, 8, position) for position in range(200)] != first


def test_kept_labels_stay_as_they_are():
    prepared = prepare_captions(MIXED, CaptionPolicy())
    assert {key: captions.short for key, captions in prepared.episodes.items()} == {
        "0": ("pick up the cube",),
        "1": ("",),
        "2": ("recoge el bloque rojo",),
        "3": ("", "open the drawer", "拿起方块"),
        "4": ("",),
    }
    counts = prepared.counts
    assert (counts.episodes, counts.labels, counts.empty, counts.without, counts.several) == (5, 7, 3, 0, 1)
    assert counts.foreign == {"es": 1, "script:CJK": 1}


def test_bad_labels_are_replaced():
    """The paper's Bridge: bad labels become the empty string."""
    prepared = prepare_captions(MIXED, CaptionPolicy(empty="keep", foreign="replace"))
    assert prepared.episodes["2"].short == ("",) and prepared.episodes["3"].short == ("", "open the drawer")
    assert (prepared.counts.replaced, prepared.counts.dropped, prepared.dropped) == (1, 0, {})
    prepared = prepare_captions(MIXED, CaptionPolicy(empty="replace", foreign="replace", replacement="do something"))
    assert [prepared.episodes[key].short for key in "1234"] == [
        ("do something",),
        ("do something",),
        ("open the drawer",),
        ("do something",),
    ]
    assert prepared.counts.replaced == 3


def test_bad_labels_are_dropped_with_their_reason():
    prepared = prepare_captions(MIXED, CaptionPolicy(empty="drop", foreign="drop"))
    assert set(prepared.episodes) == {"0", "3"} and prepared.episodes["3"].short == ("open the drawer",)
    assert prepared.dropped == {
        "1": "it has no instruction",
        "2": "its instruction is not English (es): 'recoge el bloque rojo'",
        "4": "it has no instruction",
    }
    assert str(prepared.counts) == (
        "5 episodes, 7 instructions: 3 empty, 2 not English (1 es, 1 script:CJK), 0 corrected; 3 episodes without a usable one: "
        "0 replaced, 3 dropped; 0 with several, 0 with a long description"
    )


def test_long_descriptions_stand_in_for_missing_instructions_in_training_only():
    prepared = prepare_captions(MIXED, CaptionPolicy(empty="replace"), {"1": ["the arm lifts a cube", "the arm lifts a cube"]})
    captions = prepared.episodes["1"]
    assert captions.long == ("the arm lifts a cube",)
    assert set(drawn(captions, CaptionPolicy(), count=50)) == {"the arm lifts a cube"}
    assert captions.evaluation() == "" and prepared.counts.described == 1


def test_corrections_substitutions_and_periods():
    policy = CaptionPolicy(corrections={"pik cube": "pick up the cube", "asdf": ""}, substitutions={"black bowl": "bowl"}, period="remove")
    assert policy.clean("  pik   cube ") == "pick up the cube"
    assert policy.clean("put the black bowl on the plate.") == "put the bowl on the plate"
    assert CaptionPolicy(period="add").clean("open the drawer") == "open the drawer."
    assert CaptionPolicy(period="add").clean("open the drawer.") == "open the drawer." and CaptionPolicy(period="add").clean("") == ""
    prepared = prepare_captions({"0": ["asdf"], "1": ["pik cube"]}, policy)
    assert prepared.counts.corrected == 2 and prepared.counts.empty == 1 and prepared.episodes["0"].evaluation() == ""


def test_options_come_from_a_mapping_and_a_file(tmp_path):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"asdf": ""}))
    assert parse_captions({"corrections": str(file), "foreign": "replace"}) == CaptionPolicy(corrections={"asdf": ""}, foreign="replace")
    assert parse_captions(None) == CaptionPolicy()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_probability": 1.5}, r"long_probability must lie in \[0, 1\], got 1.5"),
        ({"empty": "ignore"}, "captions.empty must be one of keep, replace, drop, got 'ignore'"),
        ({"long_probabilty": 0.5}, "captions.long_probabilty is not accepted: did you mean 'long_probability'"),
        ({"corrections": {"a": 1}}, "captions.corrections must map text to text"),
        ({"corrections": "nowhere.json"}, "there is no file nowhere.json"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_captions(options)


# ---- the sidecar --------------------------------------------------------------------------------------------------------------


def line(episode, content, caption, **changes):
    entry = {"version": SIDECAR_VERSION, "episode": episode, "content": content, "caption": caption, "model": "m", "request": "r"}
    return json.dumps({**entry, **changes})


def test_captions_are_matched_by_episode_and_content(tmp_path):
    file = sidecar_path(tmp_path)
    file.write_text(
        "\n".join([line("0", "aa", "zero"), line("1", "bb", "one"), line("0", "aa", "zero again"), line("2", "old", "two")]) + "\n"
    )
    matched, stale = match_long_captions(read_long_captions(file), {"0": "aa", "1": "bb", "2": "new"})
    assert matched == {"0": ["zero", "zero again"], "1": ["one"]} and stale == 1
    assert read_long_captions(tmp_path / "none.jsonl") == []
    (tmp_path / "data.hdf5").touch()
    assert sidecar_path(tmp_path / "data.hdf5") == tmp_path / "data.hdf5.mimicvideo_captions.jsonl"


def test_a_cut_last_line_is_left_out_and_other_damage_is_refused(tmp_path, caplog):
    file = tmp_path / "captions.jsonl"
    file.write_text(line("0", "aa", "zero") + "\n" + line("1", "bb", "one")[:20])
    assert [caption.caption for caption in read_long_captions(file)] == ["zero"]
    assert "ends within a line" in caplog.text
    file.write_text("{broken\n" + line("1", "bb", "one") + "\n")
    with pytest.raises(DatasetError, match="line 1, is damaged"):
        read_long_captions(file)
    file.write_text(line("1", "bb", "one", version=9) + "\n")
    with pytest.raises(DatasetError, match="line 1, is of version 9, this reads 1"):
        read_long_captions(file)


def test_content_tells_episodes_apart():
    actions, states = np.zeros((5, 2), np.float32), np.ones((5, 3), np.float32)
    content = episode_content(["pick"], 5, actions, states)
    assert content == episode_content(["pick"], 5, actions.astype(np.float64), states)
    others = [
        episode_content(["place"], 5, actions, states),
        episode_content(["pick"], 6, actions, states),
        episode_content(["pick"], 5, actions + 1e-6, states),
        episode_content(["pick"], 5, actions.reshape(2, 5), states),
        episode_content(["pick"], 5, actions, states, extra="video"),
    ]
    assert len({content, *others}) == 6
