"""The throughput script on two CPU processes with the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mimicvideo.compose import CONF

pytestmark = pytest.mark.integration


def test_it_records_rates_and_equal_losses(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    command = [sys.executable, "tools/scaling", "--devices", "1", "2", "--size", "tiny", "--accelerator", "cpu", "--steps", "5"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, cwd=CONF.parent, timeout=500)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(out.read_text())
    one, two = record["rows"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["efficiency"] == 1.0
    assert two["samples_per_s"] == pytest.approx(2000 / two["p50_ms"])
    assert two["efficiency"] == pytest.approx(two["samples_per_s"] / 2 / one["samples_per_s"], abs=1e-4)
    assert len(two["losses"]) == 5
    assert record["largest_relative_difference_of_losses"] < 1e-4
