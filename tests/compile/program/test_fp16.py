"""What FP16 spoils: values beyond its range, and small differences of large values."""

import numpy as np
import pytest
import torch
from torch import nn

from calibration.metrics.agreement import iou
from compile.networks.contract import Contract
from compile.program.fp16 import GOAL_IOU, LARGEST, HalfEmulation, RangeRecorder, find_sensitive
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from compile.proof.verify import open_session
from pipeline.errors import CompileError

CONTRACT = Contract("x", (64, 64))


def recorded(network, frames):
    recorder = RangeRecorder(network)
    with recorder.watching(), torch.inference_mode():
        masks = FrameProgram(network, CONTRACT).eval()(torch.from_numpy(frames))[0].numpy()
    return recorder.beyond_half(), masks


def scaled(network, first, second, factor):
    """The same network: what leaves one convolution is ``factor`` times as large, and what the next one takes as much less."""
    with torch.no_grad():
        norm = network.get_submodule(first)
        norm.weight *= factor
        norm.bias *= factor
        network.get_submodule(second).weight /= factor
    return network


@pytest.fixture
def frames(pictures):
    return pictures(3, 64, 64)


def test_an_ordinary_network_has_nothing_beyond(tiny_unet, tiny_u2net, frames):
    assert recorded(tiny_unet(1), frames)[0] == {}
    assert recorded(tiny_u2net(1), frames)[0] == {}


@pytest.mark.parametrize("bilinear", [False, True])
def test_layers_beyond_the_range_are_named_and_the_masks_stay(tiny_unet, frames, bilinear):
    network = scaled(tiny_unet(1, bilinear), "inc.double_conv.1", "inc.double_conv.3", 1e6)
    beyond, expected = recorded(network, frames)
    # The convolution that gives it, with its normalisation folded in, and the one that takes it; nothing else.
    assert set(beyond) == {"inc.double_conv.0", "inc.double_conv.3"}
    assert min(beyond.values()) > LARGEST
    assert np.ptp(expected) > 100

    def compiled(keep):
        emulation = HalfEmulation(network)
        with emulation.keeping(keep), torch.inference_mode():
            return FrameProgram(emulation.network, CONTRACT).eval()(torch.from_numpy(frames))[0].numpy()

    assert np.ptp(compiled(())) == 0  # NaN, and so nothing: what would happen
    assert np.abs(compiled(beyond).astype(int) - expected).max() <= 3


def test_the_program_with_such_layers_is_typed_and_right(tiny_unet, frames):
    network = scaled(tiny_unet(3), "down1.maxpool_conv.1.double_conv.1", "down1.maxpool_conv.1.double_conv.3", 1e6)
    beyond, expected = recorded(network, frames)
    assert beyond
    model = export_program(FrameProgram(network, CONTRACT, half=True, keep=beyond))
    types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] > 1}
    assert types == {1, 10}  # FLOAT and FLOAT16
    (masks,) = open_session(model.SerializeToString(), "x").run(["masks"], {"frames": frames})
    assert (masks == expected).mean() > 0.999


class Sum(nn.Module):
    """Two branches of one layer each, added."""

    def __init__(self, value):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        for branch in (self.left, self.right):
            nn.init.constant_(branch.bias, value)

    def forward(self, x):
        return self.left(x) + self.right(x)


def test_a_sum_beyond_the_range_takes_what_is_added_with_it():
    for value, expected in ((0.4 * LARGEST, set()), (0.7 * LARGEST, {"0.left", "0.right", "1"})):
        network = nn.Sequential(Sum(value), nn.Conv2d(2, 1, 1)).eval()
        nn.init.constant_(network[1].weight, 1e-4)
        recorder = RangeRecorder(network)
        with recorder.watching(), torch.inference_mode():
            network(torch.rand(1, 3, 8, 8))
        assert set(recorder.beyond_half()) == expected


def test_what_is_broken_in_fp32_is_refused(tiny_unet, frames):
    network = tiny_unet(1)
    with torch.no_grad():
        network.down1.maxpool_conv[1].double_conv[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(
        CompileError, match=r"expected finite values, got nan from down1\.maxpool_conv\.1\.double_conv\.0: its weights"
    ):
        recorded(network, frames)


def cancelling(network, frames):
    """The same network, but one layer takes the difference of two large, almost equal channels."""
    first, second = network.inc.double_conv[1], network.inc.double_conv[3]
    with torch.no_grad():
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        network.inc.double_conv[0].weight[1] = network.inc.double_conv[0].weight[0]
        if network.inc.double_conv[0].bias is not None:
            network.inc.double_conv[0].bias[1] = network.inc.double_conv[0].bias[0]
        first.running_mean[1], first.running_var[1] = first.running_mean[0], first.running_var[0]
        first.bias[:2] += 300
        second.weight[:, 1] = 500.0
        second.weight[:, 0] -= 500.0 + second.weight[:, 0] * 0
    return network


def test_layers_that_lose_the_mask_in_rounding_are_found(tiny_unet, frames):
    network = cancelling(tiny_unet(1), frames)
    reference = FrameProgram(network, CONTRACT).eval()
    with torch.inference_mode():
        expected = reference(torch.from_numpy(frames))[0].numpy()
    emulation = HalfEmulation(network)
    emulated = FrameProgram(emulation.network, CONTRACT).eval()
    runs = []

    def run():
        with torch.inference_mode():
            masks = emulated(torch.from_numpy(frames))[0].numpy()
        runs.append(np.mean([iou(mask, other, "binary") for mask, other in zip(masks, expected, strict=True)]))
        return float(runs[-1])

    found = find_sensitive(emulation, run, ())
    assert runs[0] < GOAL_IOU - 0.01
    assert "inc.double_conv.3" in found
    assert len(found) <= 2
    assert max(runs) > runs[0] + 0.5 * (1 - runs[0])
    # And it left the emulation as it was.
    with emulation.keeping(()):
        assert run() == runs[0]


def test_bf16_rounds_more_and_its_layers_are_found_too(tiny_unet, frames):
    network = cancelling(tiny_unet(1), frames)
    with torch.inference_mode():
        expected = FrameProgram(network, CONTRACT).eval()(torch.from_numpy(frames))[0].numpy()
    apart = {}
    for rounding in ("fp16", "bf16"):
        emulation = HalfEmulation(network, rounding)
        emulated = FrameProgram(emulation.network, CONTRACT).eval()

        def agree(emulated=emulated):
            with torch.inference_mode():
                masks = emulated(torch.from_numpy(frames))[0].numpy()
            return float(np.mean([iou(mask, other, "binary") for mask, other in zip(masks, expected, strict=True)]))

        values = torch.tensor([1.0, 1.0 + 2**-8, 70000.0])
        with emulation.keeping(()):
            apart[rounding] = agree()
            (layer,) = [one for name, one in emulation.network.named_modules() if name == "outc.conv"]
            scores = layer(values[:2].reshape(1, 1, 2, 1).expand(-1, layer.in_channels, -1, -1))
            assert torch.equal(scores, scores.to(torch.float16 if rounding == "fp16" else torch.bfloat16).float())
        assert "inc.double_conv.3" in find_sensitive(emulation, agree, ())
    assert apart["bf16"] < GOAL_IOU - 0.01


def test_nothing_is_kept_where_fp16_is_good_enough(tiny_unet):
    emulation = HalfEmulation(tiny_unet(1))
    assert find_sensitive(emulation, lambda: GOAL_IOU, ()) == ()


def test_nothing_is_kept_where_it_does_not_help(tiny_unet, frames):
    emulation = HalfEmulation(tiny_unet(1))

    def run():
        with torch.inference_mode():
            emulation.network.logits(torch.rand(1, 3, 64, 64))
        return 0.5

    assert find_sensitive(emulation, run, ()) == ()


def test_emulation_rounds_as_half_does(tiny_unet):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    emulation = HalfEmulation(network)
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode(), emulation.keeping(()):
        got = emulation.network(x)
        expected = network.half()(x.half()).float()
    assert torch.allclose(got, expected, atol=2e-3)
    assert torch.equal(got, got.half().float())
    assert not torch.equal(got, network.float()(x))
