"""Channels brought to one reach: the network's function stays, and what its layers see does not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calibration.inference_form import fold_norms
from calibration.int8.equalise import ChannelGraph


def convolutions(network):
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}


def reach_of(network, x):
    reach = {}
    handles = [
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: reach.__setitem__(name, inputs[0].abs().amax((0, 2, 3)))
        )
        for name, layer in convolutions(network).items()
    ]
    with torch.inference_mode():
        network.logits(x)
    for handle in handles:
        handle.remove()
    return reach


def equalised(network, factors):
    changed = copy.deepcopy(network)
    for name, one in factors.items():
        one.apply(changed.get_submodule(name))
    return changed


def spread(reach):
    """How far the channels of a tensor are apart, those aside that are always zero."""
    return torch.stack(
        [values[values > 0.01 * values.max()].log().std(correction=0) for values in reach.values()]
    ).mean()


@pytest.mark.parametrize("kind", ["unet", "unet bilinear", "u2net"])
@pytest.mark.parametrize("size_hw", [(64, 64), (52, 70)])
def test_the_function_stays_and_channels_reach_alike(kind, size_hw, tiny_unet, tiny_u2net):
    torch.manual_seed(0)
    network = tiny_u2net(1) if kind == "u2net" else tiny_unet(3, bilinear="bilinear" in kind)
    network = fold_norms(network)
    x = torch.rand(1, 3, *size_hw)
    reach = reach_of(network, x)
    factors = ChannelGraph(network, x.shape).factors(reach, 1.0)
    assert set(convolutions(network)) <= set(factors)
    changed = equalised(network, factors)
    with torch.inference_mode():
        before, after = network.logits(x), changed.logits(x)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    assert spread(reach_of(changed, x)) < 0.7 * spread(reach)
    first = next(iter(factors.values()))
    assert torch.equal(first.inputs, torch.ones(3))  # the picture is what it is


def test_power_zero_changes_nothing(tiny_unet):
    network = fold_norms(tiny_unet(1))
    x = torch.rand(1, 3, 64, 64)
    for one in ChannelGraph(network, x.shape).factors(reach_of(network, x), 0.0).values():
        assert torch.equal(one.inputs, torch.ones_like(one.inputs))
        assert torch.equal(one.outputs, torch.ones_like(one.outputs))


class Odd(nn.Module):
    """Between its convolutions stands what lets no factor through, or a layer that is used twice."""

    def __init__(self, between, twice=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)
        self.between, self.twice = between, twice

    def logits(self, x):
        y = self.between(self.second(F.relu(self.first(x))))
        if self.twice:
            y = self.between(self.second(y))
        return self.last(y)


@pytest.mark.parametrize(
    ("between", "twice", "free"),
    [
        (F.relu, False, {"first", "second"}),
        (torch.sigmoid, False, {"first"}),
        (lambda y: F.pad(y, (1, 1, 1, 1), value=0.5), False, {"first"}),
        (lambda y: F.pad(y, (1, 1, 1, 1)), False, {"first", "second"}),
        (lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"), False, {"first"}),
        (lambda y: y + 1.0, False, {"first"}),
        (lambda y: y * y, False, {"first"}),
        (F.relu6, False, {"first"}),
        (F.relu, True, set()),
    ],
    ids=["relu", "sigmoid", "pad 0.5", "pad 0", "reflected", "constant added", "square", "relu6", "layer twice"],
)
def test_what_lets_no_factor_through_is_left(between, twice, free):
    torch.manual_seed(0)
    network = Odd(between, twice).eval()
    with torch.no_grad():
        network.first.weight[1] *= 40
        network.second.weight[2] *= 40
    x = torch.rand(1, 3, 12, 12)
    factors = ChannelGraph(network, x.shape).factors(reach_of(network, x), 1.0)
    with torch.inference_mode():
        assert torch.allclose(network.logits(x), equalised(network, factors).logits(x), rtol=1e-3, atol=1e-3)
    assert {name for name, one in factors.items() if not torch.equal(one.outputs, torch.ones_like(one.outputs))} == free


def test_a_sum_gives_both_sides_the_same_factors():
    class Sum(Odd):
        def logits(self, x):
            y = F.relu(self.first(x))
            return self.last(y + F.relu(self.second(y)))

    torch.manual_seed(0)
    network = Sum(F.relu).eval()
    with torch.no_grad():
        network.first.weight[3] *= 100
    x = torch.rand(1, 3, 10, 10)
    factors = ChannelGraph(network, x.shape).factors(reach_of(network, x), 0.75)
    assert torch.equal(factors["first"].outputs, factors["second"].outputs)
    assert factors["first"].outputs.std() > 0.1
    with torch.inference_mode():
        assert torch.allclose(network.logits(x), equalised(network, factors).logits(x), rtol=1e-3, atol=1e-3)


def test_a_channel_that_is_always_zero_is_not_blown_up():
    torch.manual_seed(0)
    network = Odd(F.relu).eval()
    with torch.no_grad():
        network.first.weight[0] = 0
        network.first.bias[0] = -1
    x = torch.rand(1, 3, 10, 10)
    factors = ChannelGraph(network, x.shape).factors(reach_of(network, x), 1.0)
    assert factors["first"].outputs.max() < 1000
