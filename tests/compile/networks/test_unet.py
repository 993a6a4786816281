import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compile import networks
from compile.networks import MODELS, build_model
from compile.networks.unet import UNet, Up
from pipeline.errors import ModelError


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # Threads that wait for each other cost such small networks many times their own work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(bilinear=False, **options):
    torch.manual_seed(0)
    return UNet(bilinear=bilinear, base_width=4, **options)


def test_importing_the_room_loads_no_torch():
    code = "import sys; from compile.networks import build_model; assert 'torch' not in sys.modules; build_model('unet', base_width=1)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(networks.__file__).parents[2])


def test_every_name_builds_its_network():
    with torch.device("meta"):
        built = {name: type(build_model(name)).__name__ for name in MODELS}
    assert built == {"unet": "UNet", "u2net": "U2Net", "u2net_full": "U2Net", "u2net_lite": "U2Net"}


def test_unknown_name_is_refused():
    with pytest.raises(ModelError, match=r"expected one of unet, u2net, .*got 'resnet'"):
        build_model("resnet")


def test_number_of_parameters():
    with torch.device("meta"):
        network = UNet()
    assert sum(weight.numel() for weight in network.parameters()) == 31_037_698


@pytest.mark.parametrize("bilinear", [False, True])
def test_names_are_those_of_checkpoints(bilinear):
    blocks = ["inc.double_conv"]
    blocks += [f"down{level}.maxpool_conv.1.double_conv" for level in (1, 2, 3, 4)]
    blocks += [f"up{level}.conv.double_conv" for level in (1, 2, 3, 4)]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {f"{block}.{conv}.weight" for block in blocks for conv in (0, 3)}
    names |= {f"{block}.{index}.{value}" for block in blocks for index in (1, 4) for value in norm}
    names |= {"outc.conv.weight", "outc.conv.bias"}
    if not bilinear:
        names |= {f"up{level}.up.{value}" for level in (1, 2, 3, 4) for value in ("weight", "bias")}
    assert tiny(bilinear).state_dict().keys() == names


def test_widths():
    network = UNet(bilinear=True, base_width=4)
    assert network.down4.maxpool_conv[1].double_conv[0].out_channels == 32
    assert [network.get_submodule(f"up{level}").conv.double_conv[0].out_channels for level in (1, 2, 3, 4)] == [
        32,
        16,
        8,
        4,
    ]
    assert [network.get_submodule(f"up{level}").conv.double_conv[3].out_channels for level in (1, 2, 3, 4)] == [
        16,
        8,
        4,
        4,
    ]
    network = UNet(base_width=4)
    assert [network.get_submodule(f"up{level}").conv.double_conv[0].out_channels for level in (1, 2, 3, 4)] == [
        32,
        16,
        8,
        4,
    ]
    assert [network.get_submodule(f"up{level}").up.out_channels for level in (1, 2, 3, 4)] == [32, 16, 8, 4]


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size_hw", [(16, 32), (17, 31), (45, 38)])
def test_every_size_keeps_its_size(bilinear, size_hw):
    network = tiny(bilinear, n_channels=1, n_classes=5).eval()
    image = torch.rand(2, 1, *size_hw)
    with torch.no_grad():
        logits = network(image)
        assert logits.shape == (2, 5, *size_hw)
        assert torch.equal(network.logits(image), logits)


def test_smaller_half_of_the_padding_is_left_and_on_top():
    stage = Up(2, 1, bilinear=True)
    stage.up = stage.conv = nn.Identity()
    joined = stage(torch.ones(1, 1, 2, 3), torch.full((1, 1, 5, 4), 7.0))
    expected = torch.zeros(5, 4)
    expected[1:3, 0:3] = 1
    assert torch.equal(joined[0, 0], torch.full((5, 4), 7.0))
    assert torch.equal(joined[0, 1], expected)


def test_channels_below_one_are_refused():
    with pytest.raises(ValueError, match=r"expected 1 or more each, got 3, 0, 64"):
        UNet(3, 0)


def train_step(network, image):
    output = network(image)
    output.square().mean().backward()
    return output


@pytest.mark.parametrize("bilinear", [False, True])
def test_checkpointing_changes_neither_gradients_nor_statistics_nor_names(bilinear):
    plain = tiny(bilinear).train()
    saving = copy.deepcopy(plain)
    saving.use_checkpointing()
    image = torch.rand(2, 3, 33, 48)
    for _ in range(2):
        assert torch.equal(train_step(plain, image), train_step(saving, image))
    for expected, weight in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-5, atol=1e-8)
    # The second run of a stage must not count the batch again, nor leave copies in place of the buffers.
    state = saving.state_dict()
    assert list(state) == list(plain.state_dict())
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=0, atol=0)
    assert state["up4.conv.double_conv.4.num_batches_tracked"] == 2
    assert not torch.equal(state["inc.double_conv.1.running_mean"], torch.zeros(4))


def test_checkpointing_changes_nothing_in_evaluation():
    plain = tiny().eval()
    saving = copy.deepcopy(plain)
    saving.use_checkpointing()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(saving(image), plain(image))


def peak_bytes(network, image, trace_file):
    """The most memory that a training step holds at one time, from the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        train_step(network, image)
    profile.export_chrome_trace(str(trace_file))
    events = [event for event in json.loads(trace_file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    assert peak > image.nbytes
    return peak


@pytest.mark.parametrize("bilinear", [False, True])
def test_checkpointing_needs_less_memory(bilinear, tmp_path):
    plain = tiny(bilinear).train()
    saving = copy.deepcopy(plain)
    saving.use_checkpointing()
    image = torch.rand(1, 3, 128, 128)
    peaks = [peak_bytes(network, image, tmp_path / "trace.json") for network in (plain, saving)]
    assert peaks[1] < 0.75 * peaks[0], peaks
