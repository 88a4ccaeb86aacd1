"""What a VAE's training clips are changed into."""

import pytest
import torch

from mimicvideo.video.augment import SIZES, SPEED, paste_shapes, shuffle_colours


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.rand(64, 3, 5, 16, 24, generator=generator(1)) * 2 - 1


def test_shuffled_colours_are_the_same_channels_in_another_order_or_inverted(clips: torch.Tensor) -> None:
    shuffled = shuffle_colours(clips, 1.0, generator())
    seen = set()
    for before, after in zip(clips, shuffled, strict=True):
        matches = [
            [(source, sign) for source in range(3) for sign in (1, -1) if torch.equal(channel, sign * before[source])] for channel in after
        ]
        assert all(len(match) == 1 for match in matches)
        assert sorted(match[0][0] for match in matches) == [0, 1, 2]
        seen.add(tuple(match[0] for match in matches))
    assert len(seen) > 20  # of 48


def test_colours_are_shuffled_as_often_as_asked_for(clips: torch.Tensor) -> None:
    assert torch.equal(shuffle_colours(clips, 0.0, generator()), clips)
    many = clips[:1].expand(1000, -1, -1, -1, -1)[..., :1, :1]
    changed = (shuffle_colours(many, 0.25, generator()) != many).flatten(1).any(1).float().mean()
    assert changed.item() == pytest.approx(0.25 * 47 / 48, abs=0.05)


def test_shapes_are_small_single_coloured_and_drift() -> None:
    empty = torch.full((200, 3, 5, 64, 64), 5.0)  # a value that no colour has
    pasted = paste_shapes(empty, 1, generator())
    painted = pasted[:, 0] != 5.0
    shown = painted.flatten(1).any(1)
    assert shown.float().mean().item() == pytest.approx(0.5, abs=0.12)  # 0 or 1, some of them outside the picture
    for clip, mask in zip(pasted[shown], painted[shown], strict=True):
        colours = clip[:, mask]
        assert (colours == colours[:, :1]).all() and (colours.abs() <= 1).all()
        rows, columns = mask.any(0).nonzero().T
        reach = 2 * SIZES[1] + 4 * SPEED + 2
        assert rows.max() - rows.min() <= reach and columns.max() - columns.min() <= reach
    moved = [mask for mask in painted[shown] if not torch.equal(mask[0], mask[4])]
    assert len(moved) > 0.7 * len(painted[shown])


def test_draws_depend_on_the_generator_alone(clips: torch.Tensor) -> None:
    assert torch.equal(paste_shapes(clips, 4, generator(3)), paste_shapes(clips, 4, generator(3)))
    assert not torch.equal(paste_shapes(clips, 4, generator(3)), paste_shapes(clips, 4, generator(4)))
    assert torch.equal(paste_shapes(clips, 0, generator(3)), clips)
