"""Commands as they are typed, in the test's own process."""

import sys

import pytest

import mimicvideo.__main__ as program


def typed(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The status of `mimicvideo ARGV`."""
    monkeypatch.setattr(sys, "argv", ["mimicvideo", *argv])
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code
