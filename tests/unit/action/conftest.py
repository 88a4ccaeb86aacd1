"""One thread: these networks are too small to share, and other tests run beside them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """For each test of this folder."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
