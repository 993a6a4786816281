# U-Net and U²-Net behind the door: a graph of layers by their names in the state dict, which gives what the module gives.

import copy

import pytest
import torch
from torch import nn

from calibration.int8.equalise import ChannelGraph
from compile.networks.checkpoint import load_network
from compile.networks.layered import LayeredNetwork
from compile.program.open_network import open_network

SIZE_HW = (64, 96)


@pytest.fixture(params=["unet", "bilinear", "classes", "u2net"])
def saved(request, tiny_unet, tiny_u2net, tmp_path):
    made = {
        "unet": tiny_unet,
        "bilinear": lambda: tiny_unet(1, bilinear=True),
        "classes": lambda: tiny_unet(3),
        "u2net": tiny_u2net,
    }
    path = tmp_path / f"{request.param}.pth"
    torch.save(made[request.param]().state_dict(), path)
    return path


def test_a_checkpoint_becomes_a_graph_that_gives_what_its_network_gives(saved):
    network = load_network(saved).model
    opened = open_network(saved, "stream", imgsz=SIZE_HW)
    assert isinstance(opened._trained, LayeredNetwork)
    x = torch.rand(3, 3, *SIZE_HW)
    with torch.inference_mode():
        expected = network.logits(x)
        torch.testing.assert_close(
            opened._trained.logits(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


def test_its_layers_have_the_names_of_the_state_dict(saved):
    network = load_network(saved).model
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    expected = {name: type(layer) for name, layer in network.named_modules() if isinstance(layer, kinds)}
    graph = open_network(saved, "stream", imgsz=SIZE_HW)._trained
    assert {name: type(layer) for name, layer in graph.named_modules() if not [*layer.children()]} == expected
    in_order = []
    for name, layer in network.named_modules():
        if name in expected:
            layer.register_forward_hook(lambda *_, name=name: in_order.append(name))
    with torch.inference_mode():
        network.logits(torch.rand(1, 3, *SIZE_HW))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == in_order


def test_first_and_last_layers_and_work_follow_the_graph(saved):
    opened = open_network(saved, "stream", imgsz=SIZE_HW)
    u2net = saved.stem == "u2net"
    ends = ChannelGraph(opened._trained, (1, 3, *SIZE_HW))
    assert ends.first_layers == (("encode_modules.0.conv_in.conv",) if u2net else ("inc.double_conv.0",))
    sides = tuple(f"side_modules.{index}" for index in range(6))
    assert ends.last_layers == ((*sides, "out_conv") if u2net else ("outc.conv",))
    macs = 0

    def count(layer, inputs, output):
        nonlocal macs
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        macs += layer.weight.numel() * places.shape[2] * places.shape[3]

    network = copy.deepcopy(opened._trained)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.rand(1, 3, *SIZE_HW))
    assert opened.giga_macs == pytest.approx(macs / 1e9)
