"""Equality bit for bit holds at one number of threads; the agent sets it, and so do these tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
