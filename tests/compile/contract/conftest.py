"""Networks of these tests have the same weights each time."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)
