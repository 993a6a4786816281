import pytest
import torch
from torch import nn

from compile.networks.u2net import FULL, LITE, U2Net, u2net_full, u2net_lite

TINY = ((3, 2, 4), *((4, 2, 4),) * 5, *((8, 2, 4),) * 5)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # Threads that wait for each other cost such small networks many times their own work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(**options):
    torch.manual_seed(0)
    return U2Net(stages=TINY, **options)


@pytest.mark.parametrize(("build", "count"), [(u2net_full, 43_995_469), (u2net_lite, 1_128_333)])
def test_number_of_parameters(build, count):
    with torch.device("meta"):
        network = build()
    assert sum(weight.numel() for weight in network.parameters()) == count


def test_names_are_those_of_checkpoints():
    heights = [("encode", i, height) for i, height in enumerate((7, 6, 5, 4, 4, 4))]
    heights += [("decode", i, height) for i, height in enumerate((4, 4, 5, 6, 7))]
    units = []
    for half, stage, height in heights:
        units.append(f"{half}_modules.{stage}.conv_in")
        units += [f"{half}_modules.{stage}.encode_modules.{i}" for i in range(height)]
        units += [f"{half}_modules.{stage}.decode_modules.{i}" for i in range(height - 1)]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {f"{unit}.conv.weight" for unit in units} | {f"{unit}.bn.{value}" for unit in units for value in norm}
    names |= {f"side_modules.{i}.{value}" for i in range(6) for value in ("weight", "bias")}
    names |= {"out_conv.weight", "out_conv.bias"}
    assert tiny().state_dict().keys() == names


def test_widths_and_dilations():
    with torch.device("meta"):
        network = U2Net(2, FULL, in_channels=4)
    assert network.encode_modules[0].conv_in.conv.in_channels == 4
    assert network.decode_modules[1].conv_in.conv.in_channels == 1024
    assert [side.in_channels for side in network.side_modules] == [512, 512, 256, 128, 64, 64]
    assert (network.out_conv.in_channels, network.out_conv.out_channels) == (12, 2)
    dilations = {
        f"{half}.{stage}": [unit.conv.dilation[0] for unit in (*block.encode_modules, *block.decode_modules)]
        for half, blocks in (("encode", network.encode_modules), ("decode", network.decode_modules))
        for stage, block in enumerate(blocks)
    }
    dilated = [1, 2, 4, 8, 4, 2, 1]
    assert {name for name, got in dilations.items() if got == dilated} == {"encode.4", "encode.5", "decode.0"}
    assert dilations["encode.0"] == [1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("size_hw", [(32, 64), (33, 47), (1, 5)])
def test_mask_keeps_the_size(size_hw):
    network = tiny(out_channels=2, in_channels=1).eval()
    image = torch.randn(2, 1, *size_hw)
    with torch.no_grad():
        mask = network(image)
        assert mask.shape == (2, 2, *size_hw)
        assert torch.equal(mask, network.logits(image).sigmoid())


def test_training_returns_the_fused_logits_then_the_sides_from_stage_1_to_6():
    network = tiny().train()
    with torch.no_grad():
        for index, side in enumerate(network.side_modules):
            side.weight.zero_()
            side.bias.fill_(6 - index)  # the first module is the side of stage 6
        network.out_conv.weight.copy_(torch.tensor([1e0, 1e1, 1e2, 1e3, 1e4, 1e5]).view(1, 6, 1, 1))
        network.out_conv.bias.fill_(0.5)
        outputs = network(torch.randn(2, 3, 40, 40))
        assert [output.mean().item() for output in outputs] == pytest.approx([654321.5, 1, 2, 3, 4, 5, 6])
        assert all(output.shape == (2, 1, 40, 40) for output in outputs)
        fused = network.logits(torch.randn(2, 3, 40, 40))
    torch.testing.assert_close(fused, torch.full_like(fused, 654321.5))


def test_every_weight_is_trained():
    network = tiny().train()
    torch.stack(network(torch.randn(2, 3, 64, 64))).square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("size_hw", [(32, 32), (64, 96), (160, 32)])
def test_rounding_down_is_equal_at_multiples_of_32(size_hw):
    network = tiny().eval()
    image = torch.randn(1, 3, *size_hw)
    with torch.no_grad():
        up = network.logits(image)
        network.set_ceil_mode(False)
        assert not any(module.ceil_mode for module in network.modules() if isinstance(module, nn.MaxPool2d))
        assert torch.equal(network.logits(image), up)
    assert all(size % network.size_multiple == 0 for size in size_hw)


def test_rounding_down_refuses_other_sizes_until_it_is_undone():
    network = tiny().eval()
    network.set_ceil_mode(False)
    with pytest.raises(ValueError, match=r"expected height and width in multiples of 32, got 64×72"):
        network(torch.randn(1, 3, 64, 72))
    network.set_ceil_mode(True)
    assert network(torch.randn(1, 3, 64, 72)).shape == (1, 1, 64, 72)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (LITE[:-1], r"expected 11 rows \(in, mid, out\), got 10"),
        ((*LITE[:2], (32, 16, 64), *LITE[3:]), r"encoder stage 3 expected 64 input channels, got 32: mend row 2"),
        ((*LITE[:7], (64, 16, 64), *LITE[8:]), r"decoder stage 4 expected 128 input channels, got 64: mend row 7"),
        (((3, 0, 64), *LITE[1:]), r"expected 1 or more each"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        U2Net(stages=stages)
