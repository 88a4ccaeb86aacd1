"""Stage 2 with other rates and representations than the dataset's: what a batch, the statistics and the contract then are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData, Source
from mimicvideo.data.spec import DatasetSpec
from tests.synthetic_episodes import ACTION_NAMES, STATE_NAMES, Made, by_writer, what_is_shown

LENGTHS = (12, 9, 20)
RELATIVE: dict[str, Any] = {
    "actions": {
        "hand": {"kind": "position", "dims": [0, 1], "learned": "relative"},
        "gripper": {"kind": "gripper", "dims": [2], "open": 1, "closed": -1},
    },
    "proprio": {"hand": {"kind": "position", "dims": [0, 1]}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return by_writer(tmp_path_factory.mktemp("data") / "d", LENGTHS, stride=2)  # 40 rows and 80 control steps a second


def data(made: Made, **options: Any) -> DemonstrationData:
    given = {"root": str(made.root), "action_dim": 3, "proprio_dim": 2, "horizon": 4, "observed": 5, "future": 4, "batch_size": 16}
    return DemonstrationData(**{**given, "validation_fraction": 0.0, **options})


def test_batches_statistics_and_contract_are_in_the_representation(made: Made) -> None:
    module = data(made, representation=RELATIVE)
    batch = next(iter(module.train_dataloader()))
    for episode, row, chunk in zip(batch["episode"].tolist(), batch["row"].tolist(), batch["actions"].numpy(), strict=True):
        steps = np.minimum(2 * row + np.arange(4), 2 * LENGTHS[episode] - 1)
        stored, state = made.actions[episode][steps].astype(np.float64), made.states[episode][row].astype(np.float64)
        np.testing.assert_allclose(chunk[:, :2], stored[:, :2] - state, atol=1e-3)
        np.testing.assert_allclose(chunk[:, 2], (stored[:, 2] + 1) / 2, atol=1e-5)
    reader = module.readers["data"]
    assert reader.representation is not None
    for episode, row, chunk in zip(batch["episode"].tolist(), batch["row"].tolist(), batch["actions"].numpy(), strict=True):
        steps, beyond = module.window.action_steps(row, LENGTHS[episode])
        actions, states = reader.actions(reader.episodes[episode]), reader.proprio(reader.episodes[episode])
        alone = reader.representation.windows(actions[steps], beyond, states[row], "repeat").astype(np.float32)
        np.testing.assert_array_equal(chunk, alone, "a window's numbers do not depend on those beside it")
    statistics = module.statistics()["actions"]["pooled"]
    assert np.abs(statistics["mean"][0]) < 1000, "relative, although stored places differ by thousands"
    contract = module.contract()
    assert contract["actions"] == ["hand_x", "hand_y", "gripper"] and contract["representation"] == RELATIVE
    assert contract["environment"] == {"proprio": STATE_NAMES, "actions": ACTION_NAMES}
    assert data(made).contract().keys() == contract.keys() - {"representation", "environment"}


def test_a_description_brings_its_representation(made: Made) -> None:
    spec = DatasetSpec(representation=RELATIVE)
    described, given = data(made, spec=spec), data(made, representation=RELATIVE)
    first, second = (next(iter(module.train_dataloader())) for module in (described, given))
    assert torch.equal(first["actions"], second["actions"]) and torch.equal(first["observation"]["video"], second["observation"]["video"])
    own = {**RELATIVE, "actions": {**RELATIVE["actions"], "hand": {**RELATIVE["actions"]["hand"], "learned": "absolute"}}}
    assert not torch.equal(next(iter(data(made, spec=spec, representation=own).train_dataloader()))["actions"], first["actions"])


def test_rates_are_those_asked_for(made: Made) -> None:
    module = data(made, frame_hz=20, control_hz=40, representation=RELATIVE)
    contract = module.contract()
    assert (contract["control_hz"], contract["frame_interval_steps"]) == (40.0, 2)
    for sample in range(16):
        batch = next(iter(module.train_dataloader()))
        episode, row = int(batch["episode"][sample]), int(batch["row"][sample])
        assert what_is_shown(batch["observation"]["video"][sample, -1].numpy())[:2] == (episode, 2 * row)
    clips = ClipData(str(made.root), frame_hz=20, observed=5, future=4, batch_size=4, validation_fraction=0.0)
    clip = next(iter(clips.train_dataloader()))
    rows = np.clip(int(clip["row"][0]) + np.arange(9) - 4, 0, (LENGTHS[int(clip["episode"][0])] - 1) // 2)
    assert [what_is_shown(frame.numpy())[1] for frame in clip["video"][0]] == (2 * rows).tolist()


def test_what_does_not_go_together_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="give representation"):
        data(made, frame_hz=20).setup()
    with pytest.raises(DatasetError, match="action_dim is 4"):
        data(made, representation=RELATIVE, action_dim=4).setup()
    other = {**RELATIVE, "actions": {**RELATIVE["actions"], "hand": {**RELATIVE["actions"]["hand"], "learned": "absolute"}}}
    sources = {name: Source(str(made.root), spec=DatasetSpec(representation=form)) for name, form in {"a": RELATIVE, "b": other}.items()}
    with pytest.raises(DatasetError, match="sources differ in what actions are learned as"):
        data(made, root=None, sources=sources).setup()
