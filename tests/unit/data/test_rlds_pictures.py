"""JPEG pictures through libjpeg-turbo itself are those that Pillow gives, and Pillow has the last word on what is broken."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mimicvideo.data.rlds.values as values
from mimicvideo.data.rlds.example import Damaged
from mimicvideo.data.rlds.values import decode_picture

NOISE = np.random.default_rng(0).integers(0, 256, (67, 93, 3), dtype=np.uint8)


def encoded(mode: str = "RGB", kind: str = "jpeg", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(content, kind, **options)
    return content.getvalue()


def by_pillow(content: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError):
        return None


def decoded(content: bytes) -> np.ndarray | None:
    into = np.zeros(NOISE.shape, np.uint8)
    try:
        picture = decode_picture(content, into)
    except Damaged:
        return None
    assert picture is into or picture.shape != into.shape
    return picture


KINDS: dict[str, dict[str, Any]] = {
    f"quality {quality}, subsampling {subsampling}, progressive {progressive}": {
        "quality": quality,
        "subsampling": subsampling,
        "progressive": progressive,
    }
    for quality in (30, 95)
    for subsampling in (0, 1, 2)
    for progressive in (False, True)
}
KINDS |= {"grey": {"mode": "L"}, "print": {"mode": "CMYK"}, "rgb": {"keep_rgb": True}, "png": {"kind": "png"}}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str) -> None:
    content = encoded(**KINDS[kind])
    np.testing.assert_array_equal(decoded(content), by_pillow(content))
    np.testing.assert_array_equal(decode_picture(content), by_pillow(content))


def test_pillow_is_not_asked_for_sound_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded()
    monkeypatch.setattr(values.Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    assert decoded(content) is not None


def test_what_is_broken_is_what_pillow_finds_broken() -> None:
    content, random, refused = encoded(), np.random.default_rng(1), 0
    broken = [content[:cut] for cut in (2, 3, 100, len(content) // 2, len(content) - 2, len(content) - 1)]
    for _ in range(60):
        flipped = bytearray(content)
        flipped[random.integers(20, len(content))] ^= int(random.integers(1, 255))
        broken.append(bytes(flipped))
    for case in broken:
        expected, found = by_pillow(case), decoded(case)
        refused += expected is None
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
    assert 6 <= refused < len(broken)


def test_another_size_is_given_as_it_is() -> None:
    other = np.zeros((10, 10, 3), np.uint8)
    picture = decode_picture(encoded(), other)
    assert picture.shape == NOISE.shape and not other.any()
