"""What INT8 does to masks: of all layers by looking, of one by its gradient."""

import pytest
import torch
from torch import nn

from calibration.int8.quantized import QuantizedLayer
from calibration.int8.sensitivity import Example, damage, damage_by_layer


class Linear(nn.Module):
    """Two convolutions with nothing between them: small errors add up exactly."""

    def __init__(self, classes=1):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, classes, 1)
        self.requires_grad_(False)

    def logits(self, x):
        return self.second(self.first(x))


def examples(network, count=3):
    torch.manual_seed(1)
    inputs = [torch.rand(1, 3, 12, 12) for _ in range(count)]
    return [Example(x, network.logits(x)) for x in inputs]


class Shifted(nn.Module):
    def __init__(self, network, by):
        super().__init__()
        self.network, self.by = network, by

    def logits(self, x):
        return self.network.logits(x) + self.by


@pytest.mark.parametrize("classes", [1, 3])
def test_the_trained_network_does_no_damage_to_itself(classes):
    network = Linear(classes)
    assert damage(network, examples(network)) == damage(network, examples(network))
    result = damage(network, examples(network))
    assert (result.noise, result.iou) == (pytest.approx(0.0, abs=2e-6), 1.0)


def test_noise_is_what_the_logits_are_off():
    network = Linear()
    assert damage(Shifted(network, 0.25), examples(network)).noise == pytest.approx(0.25, rel=1e-4)
    assert damage(Shifted(network, torch.nan), examples(network)).noise == torch.inf
    assert damage(Shifted(network, 100.0), examples(network)).iou < 0.5


def test_noise_where_the_decision_is_clear_counts_little():
    network = Linear()
    (example,) = examples(network, 1)
    clear = torch.zeros_like(example.logits)
    clear[..., :6] = 12.0  # as good as decided there
    sure = Example(example.x, clear)
    by = torch.zeros_like(clear)
    by[..., :6] = 1.0

    class Fixed(nn.Module):
        def logits(self, x):
            return clear + by

    assert damage(Fixed(), [sure]).noise < 0.01
    assert sure.doubt < Example(example.x, torch.zeros_like(clear)).doubt


def test_each_layer_is_given_what_it_does_alone():
    network = Linear()
    some = examples(network, 12)
    quantised = {
        "first": QuantizedLayer(network.first, 1.0),
        "second": QuantizedLayer(network.second, 40.0),  # a scale far too coarse
    }
    found = damage_by_layer(network, quantised, some)
    measured = {}
    for name, layer in quantised.items():
        alone = Linear()
        alone.set_submodule(name, layer)
        measured[name] = damage(alone, some).noise ** 2
    # By chance, from signs drawn once for each example: what is small is hardly known, but that it is small.
    assert found["second"].total == pytest.approx(measured["second"] / sum(measured.values()), rel=0.1)
    assert sum(one.total for one in found.values()) == pytest.approx(1.0)
    assert found["second"].total > 20 * found["first"].total
    assert found["second"].channels.shape == (6,)


def test_a_channel_that_stays_out_does_no_damage():
    network = Linear()
    some = examples(network, 1)
    whole, without = (
        damage_by_layer(network, {"first": QuantizedLayer(network.first, 2.0, exact=exact)}, some)["first"].channels
        for exact in ((), (1,))
    )
    assert whole[1] > 0
    assert without[1] == 0
    assert float(without[0] / without[2]) == pytest.approx(float(whole[0] / whole[2]))


def test_doubt_of_classes_is_between_the_first_two():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 10.0
    assert Example(logits, logits).doubt == 0.0
    logits[:, 1, :2] = 10.0
    assert Example(logits, logits).doubt == 0.5
