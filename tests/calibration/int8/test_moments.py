"""Second moments of a convolution's patches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calibration.int8.moments import BLOCK, Moments


def moments(layer, *frames):
    seen = Moments(layer, torch.Generator().manual_seed(0))
    for x in frames:
        seen.add(x)
    return seen.blocks()


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2, "padding": (2, 1)}, {"dilation": 2, "padding": 2}, {}],
    ids=["padded", "strided", "dilated", "bare"],
)
def test_moments_are_those_of_the_unfolded_input(options):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(5, 4, 3, **options), torch.randn(2, 5, 9, 8)
    columns = F.unfold(x, 3, layer.dilation, layer.padding, layer.stride).transpose(1, 2).flatten(0, 1)
    (block,) = moments(layer, x)
    assert torch.allclose(block, columns.T @ columns / len(columns), atol=1e-4)


def test_the_power_of_the_outputs_follows():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 7, 1, bias=False), torch.randn(1, 6, 12, 12)
    (block,) = moments(layer, x)
    weight = layer.weight.detach().flatten(1)
    assert torch.allclose(((weight @ block) * weight).sum(1), layer(x).square().mean((0, 2, 3)), rtol=1e-3)


def test_large_maps_are_sampled_alike():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 2, 1), torch.randn(1, 2, 100, 100)
    (block,) = moments(layer, *([x] * 20))
    exact = x.flatten(2)[0] @ x.flatten(2)[0].T / 10_000
    assert torch.allclose(block, exact, atol=0.1)


def test_many_channels_come_in_blocks_so_that_memory_stays():
    layer = nn.Conv2d(300, 2, 3, padding=1)
    blocks = moments(layer, torch.rand(1, 300, 4, 4))
    assert [len(block) for block in blocks] == [1152, 1152, 396]
    assert max(map(len, blocks)) <= BLOCK
