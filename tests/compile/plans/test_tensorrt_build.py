"""Real TensorRT-RTX plans, built on the CPU; loading one takes a GPU."""

import json
import os
import signal
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compile.__main__ import main
from compile.networks.contract import Contract
from compile.plans.tensorrt_build import FRAME_RANGE, PlanOptions, build_plan
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import read_plan
from pipeline.command.command_line import run_command
from pipeline.engines import tensorrt_library
from pipeline.engines.tensorrt_library import LIBRARIES_VARIABLE, load_tensorrt_rtx
from pipeline.errors import BackendUnavailableError, CompileError, PlanError
from pipeline.signals import StoppedError

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.needs("tensorrt_rtx_bindings")

NETWORKS = {
    "unet, transposed, 3 classes": lambda unet, _: (unet(3), Contract("x", (48, 64))),
    "unet, bilinear, 19 classes": lambda unet, _: (unet(19, bilinear=True), Contract("x", (48, 64))),
    "u2net, official": lambda _, u2net: (u2net(1), Contract("x", (64, 32), divide_by="max", stretch=True)),
}


@pytest.fixture(scope="module", params=[False, True], ids=["fp32", "fp16"])
def half(request):
    return request.param


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS)
def program(request, half, tiny_unet, tiny_u2net):
    network, contract = request.param(tiny_unet, tiny_u2net)
    return export_program(FrameProgram(network, contract, half=half)).SerializeToString()


@pytest.fixture(scope="module")
def one_program(tiny_unet):
    return export_program(FrameProgram(tiny_unet(1), Contract("x", (32, 32)))).SerializeToString()


def build_rtx_plan(program, sms, *, step=None, **options):
    return build_plan(program, PlanOptions("tensorrt-rtx", sms, **options), step=step)


@pytest.mark.parametrize(
    ("sms", "frame_size_hw", "batch"),
    [((75,), None, 1), ((80, 86, 89), (720, 1280), 1), ((120, 121), None, 4)],
    ids=["dynamic", "static", "batched"],
)
def test_every_program_becomes_a_plan(program, sms, frame_size_hw, batch):
    steps = []
    plan = build_rtx_plan(program, sms, frame_size_hw=frame_size_hw, batch=batch, step=lambda *told: steps.append(told))
    assert len(plan.content) > 10_000
    assert plan.sms == sms
    smallest, usual, largest = plan.options.profile
    assert (smallest[0], usual[0], largest[0]) == (1, batch, batch)
    assert [shape[1:3] for shape in plan.options.profile] == [frame_size_hw] * 3 if frame_size_hw else list(FRAME_RANGE)
    assert steps
    assert all(0 < done <= total for _, done, total in steps)


FITS = {
    "letterbox": {"fit": "letterbox"},
    "cover": {"fit": "cover"},
    "of 16 bits": {
        "channels": 4,
        "bits": 16,
        "mean": (0.0,) * 4,
        "std": (1.0,) * 4,
        "zscore": True,
        "fit": "letterbox",
    },
}


@pytest.mark.parametrize("keys", FITS.values(), ids=FITS)
def test_frames_of_any_shape_and_channels(tiny_unet, keys):
    contract = Contract("x", (32, 48), **keys)
    network = tiny_unet(1, n_channels=len(contract.mean))
    program = export_program(FrameProgram(network, contract, half=True)).SerializeToString()
    plan = build_rtx_plan(program, (86,), pixels=contract.pixels)
    assert plan.options.profile[1] == (1, 720, 1280, len(contract.mean))


def test_the_name_says_what_it_is_for(one_program):
    plan = build_rtx_plan(one_program, (86, 89))
    version = ".".join(load_tensorrt_rtx().__version__.split(".")[:2])
    assert plan.file_name("fp16") == f"engines/tensorrt_rtx-{version}-sm86+sm89-fp16.plan"


def test_an_unknown_gpu_is_refused():
    with pytest.raises(CompileError, match=r"--sm: expected compute capabilities of 75, .*121 .*, got 90"):
        build_rtx_plan(b"", (86, 90))


def test_what_is_no_program_is_refused_with_tensorrts_words():
    with pytest.raises(CompileError, match=r"TensorRT-RTX .* cannot read the program: .*[Pp]arse"):
        build_rtx_plan(b"no program", (86,))


def test_an_operation_that_tensorrt_lacks_is_named():
    node = helper.make_node("NoSuchThing", ["frames"], ["masks"], domain="nowhere")
    values = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", 3]) for name in ("frames", "masks")
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    model = helper.make_model(
        helper.make_graph([node], "x", values[:1], values[1:]), opset_imports=opsets, ir_version=10
    )
    with pytest.raises(CompileError, match="NoSuchThing"):
        build_rtx_plan(model.SerializeToString(), (86,))


def test_a_signal_ends_a_build_without_harm(one_program):
    told = []

    def interrupt(*step):
        if not told:
            os.kill(os.getpid(), signal.SIGINT)
        told.append(step)

    assert run_command(lambda: build_rtx_plan(one_program, (86,), step=interrupt)) == 130
    assert told
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert build_rtx_plan(one_program, (86,)).content


def test_the_command_writes_a_bundle_with_the_plan(tmp_path, tiny_unet, capsys):
    torch.save(tiny_unet(1).state_dict(), tmp_path / "net.pth")
    arguments = ["--weights", str(tmp_path / "net.pth"), "--imgsz", "64", "--precision", "fp16", "--min-iou", "0.9"]
    output = tmp_path / "bundle"
    assert main([*arguments, "--target", "tensorrt-rtx", "--sm", "89,86", "--output", str(output)]) == 0
    bundle = Bundle.read(output)
    (entry,) = bundle.manifest.engines
    assert entry.sms == (86, 89)
    assert entry.runtime == "tensorrt-rtx"
    assert (entry.hardware, entry.version_compatible, entry.dla_core) == ("same", False, None)
    assert entry.size_bytes == (output / entry.file).stat().st_size
    assert entry.version == load_tensorrt_rtx().__version__
    assert (output / entry.file).stat().st_size > 10_000
    assert set(bundle.manifest.files) == {
        "program.onnx",
        "reference.onnx",
        "drift.json",
        "verification.png",
        entry.file,
    }
    assert json.loads((output / "manifest.json").read_text())["engines"][0]["profile"][0] == [1, *FRAME_RANGE[0], 3]
    onnx.checker.check_model(onnx.load(output / "program.onnx"))
    before = (output / "manifest.json").read_bytes()
    assert main([*arguments, "--target", "tensorrt-rtx", "--sm", "90", "--output", str(output)]) == 2
    assert (output / "manifest.json").read_bytes() == before
    plan = output / entry.file
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    assert main([*arguments, "--target", "tensorrt-rtx", "--sm", "a", "--output", str(output)]) == 2
    assert "expected compute capabilities such as 86" in capsys.readouterr().err
    with pytest.raises(PlanError, match=r"sm89-fp16\.plan: expected sha256"):
        read_plan(Bundle.read(output), "tensorrt-rtx", entry.version, 89, "a GPU")


def test_missing_packages_are_told_with_the_command(monkeypatch, tmp_path):
    load = load_tensorrt_rtx.__wrapped__
    monkeypatch.setenv(LIBRARIES_VARIABLE, str(tmp_path))
    with pytest.raises(
        BackendUnavailableError, match=r"expected libcudart\.so in .*pip install 'edgemask\[tensorrt-rtx\]'"
    ):
        load()
    monkeypatch.delenv(LIBRARIES_VARIABLE)
    for name in tensorrt_library._MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        BackendUnavailableError, match=r"its packages are not here .*pip install 'edgemask\[tensorrt-rtx\]'"
    ):
        load()


def test_a_stop_is_no_plain_exception():
    assert not issubclass(StoppedError, Exception)


@pytest.mark.network
def test_the_published_network_in_fp16_keeps_its_masks(published_u2netp, ecssd, tmp_path, cli):
    output = tmp_path / "bundle"
    arguments = ["--model", "u2netp", "--precision", "fp16", "--target", "tensorrt-rtx", "--sm", "86,89,120"]
    arguments += ["--verify", ecssd / "images" / "0[0-4]?5.jpg", "--verify-count", "6", "--min-iou", "0.995"]
    said = cli("compile", *arguments, "--output", output, check=True).stdout
    manifest = Bundle.read(output).manifest
    assert manifest.verification["iou_mean"] >= 0.995
    assert manifest.verification["frames"] == 6
    # The one layer that has an outlier channel, and the one before it.
    assert manifest.layers == dict.fromkeys(
        (f"decode_modules.3.decode_modules.{index}.conv" for index in (3, 4)), "fp32"
    )
    assert "decode_modules.3.decode_modules.4.conv stays FP32" in said
    (entry,) = manifest.engines
    _, content = read_plan(Bundle.read(output), "tensorrt-rtx", entry.version, 120, "a GPU")
    assert len(content) > 4_000_000
