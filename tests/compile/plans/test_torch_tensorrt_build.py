"""Torch-TensorRT: both networks become one engine, by its real converters, without a GPU; and the real thing where there is one."""

import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn

from compile.networks.contract import Contract
from compile.plans import torch_tensorrt_build
from compile.plans.torch_tensorrt_build import (
    TorchTensorRTProgram,
    build_content,
    build_torch_tensorrt,
    export_around,
    frame_profile,
)
from compile.plans.torch_tensorrt_network import engine_count, operators_outside, require_whole
from compile.program.onnx_export import example_frames, frame_axes
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, Manifest
from pipeline.engines.torch_tensorrt import TorchTensorRTEngine
from pipeline.errors import BackendUnavailableError, CompileError

ROOT = Path(__file__).parents[3]
FOLDER = Path(os.environ.get("EDGEMASK_TEST_TORCH_TENSORRT") or Path(sys.prefix) / "torch-tensorrt")
CPU = torch.device("cpu")
NETWORKS = [
    ("u2netp", "fp32"),
    ("u2netp", "fp16"),
    ("unet-transposed-1", "fp16"),
    ("unet-transposed-19", "fp32"),
    ("unet-bilinear-1", "fp32"),
    ("unet-bilinear-19", "fp16"),
]
# Two processes at once, of about the same length.
CASES = (
    [f"whole,{name},{precision}" for name, precision in NETWORKS[:2]] + ["run,tiny-unet,fp16,2"],
    [f"whole,{name},{precision}" for name, precision in NETWORKS[2:]] + ["not_whole,ceil", "not_whole,no-converter"],
)


@pytest.fixture(scope="module")
def recipe():
    """What the real converters make of each case, from processes of their own."""
    if not torch.__version__.startswith("2.13."):
        pytest.skip(f"the converters on a machine without a GPU are those for torch 2.13, here is {torch.__version__}")
    if not (FOLDER / ".packages").is_file():
        if os.environ.get("FAIL_WITHOUT_TORCH_TENSORRT"):
            pytest.fail(f"no Torch-TensorRT in {FOLDER}: tests/install-torch-tensorrt makes it")
        pytest.skip(f"no Torch-TensorRT in {FOLDER}: tests/install-torch-tensorrt makes it")
    environment = {**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("torch_tensorrt_stubs.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *cases],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for cases in CASES
    ]
    results = {}
    try:
        for process in running:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err[-4000:]
            results |= json.loads(out.splitlines()[-1])
    finally:
        for process in running:
            process.kill()
            process.wait()
    return results


@pytest.mark.parametrize(("name", "precision"), NETWORKS, ids=lambda value: value)
def test_a_whole_network_becomes_one_engine_with_no_operator_outside(recipe, name, precision):
    result = recipe[f"whole,{name},{precision}"]
    assert result["outside"] == {}
    assert result["engines"] == 1
    assert result["layers"] > 40
    assert result["size_bytes"] > 1_000_000
    assert result["input"][0] == {"fp32": "DataType.FLOAT", "fp16": "DataType.HALF"}[precision]
    assert result["input"][1][:2] == [1, 3]


def test_pooling_that_rounds_up_breaks_the_network_and_is_named(recipe):
    said = recipe["not_whole,ceil"]
    assert said.startswith(
        "Torch-TensorRT: expected the whole network as one engine, got 34 engines and these operators"
    )
    assert "aten.max_pool2d.default (33×)" in said


def test_an_operator_without_a_converter_is_named(recipe):
    assert "left to PyTorch: aten.special_bessel_j0.default (1×)" in recipe["not_whole,no-converter"]


def test_a_program_is_built_saved_loaded_and_run_on_frames_of_any_size(recipe):
    result = recipe["run,tiny-unet,fp16,2"]
    assert result["engines"] == 1
    assert result["input"] == ["DataType.HALF", [-1, 3, 48, 64]]
    runs_of_the_engine, runs = result["runs"]
    assert runs_of_the_engine == runs == 10
    assert result["differing"] < 0.01
    assert result["steps"] == [["check operators", 1, 3], ["build the engine", 2, 3], ["save", 3, 3]]
    assert result["refused"] == "frames: expected at most 2 at once, got 3: compile with a larger batch"


def test_what_was_built_once_comes_from_the_cache(recipe):
    assert recipe["run,tiny-unet,fp16,2"]["again"] == [0, True]


def test_the_name_and_the_entry_say_what_it_is_for():
    versions = {"torch": "2.13.0", "torch_tensorrt": "2.13.0", "tensorrt": "11.0.0.114"}
    program = TorchTensorRTProgram(b"x", versions, 90, frame_profile((720, 1280), 4))
    assert program.file_name("fp16") == "engines/torch_tensorrt-2.13-sm90-fp16.pt2"
    assert program.entry("fp16").as_dict() == {
        "file": "engines/torch_tensorrt-2.13-sm90-fp16.pt2",
        "runtime": "torch-tensorrt",
        "version": "2.13.0",
        "versions": versions,
        "sms": [90],
        "hardware": "same",
        "version_compatible": False,
        "size_bytes": 1,
        "profile": [[1, 720, 1280, 3], [4, 720, 1280, 3], [4, 720, 1280, 3]],
    }
    assert frame_profile(None, 1) == ((1, 1, 1, 3), (1, 720, 1280, 3), (1, 16384, 16384, 3))


def graph_module(*targets, submodules=()):
    """A chain of calls: names of submodules, or functions."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    for target in targets:
        x = graph.call_module(target, (x,)) if isinstance(target, str) else graph.call_function(target, (x,))
    graph.output(x)
    return fx.GraphModule(dict(submodules), graph)


ENGINE = {"_run_on_acc_0": nn.Identity(), "_run_on_acc_2": nn.Identity()}


def test_operators_outside_are_counted_with_those_of_parts_left_to_pytorch():
    left = graph_module(torch.ops.aten.relu.default, torch.ops.aten.relu.default, torch.ops.aten.cos.default)
    parts = {**ENGINE, "_run_on_gpu_1": left}
    broken = graph_module("_run_on_acc_0", "_run_on_gpu_1", "_run_on_acc_2", submodules=parts)
    assert operators_outside(broken) == {"aten.relu.default": 2, "aten.cos.default": 1}
    assert engine_count(broken) == 2
    with pytest.raises(
        CompileError, match=r"got 2 engines .*: aten.cos.default \(1×\), aten.relu.default \(2×\): take"
    ):
        require_whole(broken)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("_run_on_acc_0", "_run_on_acc_2"), "got 2 engines .*: none: take"),
        ((torch.ops.aten.relu.default,), r"got 0 engines .*: aten.relu.default \(1×\)"),
        (("_run_on_acc_0", "other"), r"got 1 engines .*: Identity \(1×\)"),
    ],
)
def test_only_one_engine_and_nothing_else_is_whole(targets, said):
    with pytest.raises(CompileError, match=said):
        require_whole(graph_module(*targets, submodules={**ENGINE, "other": nn.Identity()}))


def test_one_engine_is_whole():
    compiled = graph_module("_run_on_acc_0", submodules=ENGINE)
    assert operators_outside(compiled) == {}
    require_whole(compiled)


@pytest.mark.parametrize(
    ("contract", "classes"),
    [
        (Contract("x", (48, 64)), 1),
        (Contract("x", (48, 64)), 3),
        (Contract("x", (64, 32), channels="bgr", divide_by="max", stretch=True), 1),
    ],
    ids=["stream", "classes", "official"],
)
def test_the_program_around_the_network_takes_frames_of_any_size(tiny_unet, contract, classes):
    program = FrameProgram(tiny_unet(classes), contract).eval()
    exported = export_around(program, program.network, example_frames(None), frame_axes(None))
    assert not [node for node in exported.graph.nodes if "_assert_scalar" in str(node.target)]
    run = exported.module()
    height, width = contract.imgsz
    sizes = [(1, 1), (height, width), (2 * height, width), (height, 3 * width), (3 * height // 2 - 1, 7), (90, 160)]
    for size_hw in sizes:
        frames = torch.randint(0, 256, (1, *size_hw, 3), dtype=torch.uint8)
        with torch.no_grad():
            for got, expected in zip(run(frames), program(frames), strict=True):
                assert torch.equal(got, expected), size_hw


@pytest.fixture
def fake(monkeypatch):
    """A Torch-TensorRT that takes any network as one engine, which PyTorch runs; ``fake.calls`` are the options it was given."""
    calls = []

    def compile_(exported, arg_inputs, **options):
        calls.append({**options, "inputs": arg_inputs})
        return graph_module("_run_on_acc_0", submodules={"_run_on_acc_0": exported.module()})

    return SimpleNamespace(
        __version__="2.13.0",
        calls=calls,
        Device=lambda gpu_id: gpu_id,
        Input=lambda *shape, **more: (*shape, more),
        dynamo=SimpleNamespace(compile=compile_),
        save=torch.export.save,
    )


class Mini(nn.Module):
    """The smallest network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def logits(self, x):
        return self.conv(x)


def build(fake, program, cache=None, batch=1, frame_size_hw=(32, 32), builder="a builder"):
    return build_content(fake, program, CPU, frame_size_hw, batch, cache, builder, None)


def test_operators_are_checked_before_an_engine_is_built(fake):
    build(fake, FrameProgram(Mini(), Contract("x", (32, 32))))
    assert [call.get("dryrun", False) for call in fake.calls] == [True, False]
    assert all(call["min_block_size"] == 1 and call["immutable_weights"] for call in fake.calls)
    assert "use_explicit_typing" not in fake.calls[0]


def test_types_are_explicit_before_2_13_too(fake):
    fake.__version__ = "2.11.0+cu130"
    build(fake, FrameProgram(Mini(), Contract("x", (32, 32))))
    assert fake.calls[0]["use_explicit_typing"] is True


def test_more_frames_at_once_are_a_range(fake):
    build(fake, FrameProgram(Mini(), Contract("x", (32, 32)), half=True), batch=4)
    (((shapes),),) = fake.calls[1]["inputs"]
    assert shapes == {
        "min_shape": (1, 3, 32, 32),
        "opt_shape": (4, 3, 32, 32),
        "max_shape": (4, 3, 32, 32),
        "dtype": torch.float16,
    }


def test_the_cache_knows_weights_contract_and_builder(fake, tmp_path):
    cache = tmp_path / "cache"
    first = build(fake, FrameProgram(Mini(), Contract("x", (32, 32))), cache)
    assert len(fake.calls) == 2
    assert build(fake, FrameProgram(Mini(), Contract("x", (32, 32))), cache) == first
    assert len(fake.calls) == 2
    other = Mini()
    with torch.no_grad():
        other.conv.bias.add_(1e-3)
    build(fake, FrameProgram(other, Contract("x", (32, 32))), cache)
    assert len(fake.calls) == 4
    build(fake, FrameProgram(Mini(), Contract("x", (32, 32), std=(1.0, 1.0, 2.0))), cache)
    assert len(fake.calls) == 6
    build(fake, FrameProgram(Mini(), Contract("x", (32, 32))), cache, builder="another")
    assert len(fake.calls) == 8
    assert len(list(cache.glob("*.pt2"))) == 4
    assert not list(cache.glob(".edgemask*"))
    assert (cache.stat().st_mode & 0o777) == 0o700


def test_a_cache_that_others_may_write_is_refused(fake, tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(
        CompileError, match=r"expected a folder that only its owner, you, may write, got permissions 777"
    ):
        build(fake, FrameProgram(Mini(), Contract("x", (32, 32))), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CompileError, match="cannot be used as engine cache"):
        build(fake, FrameProgram(Mini(), Contract("x", (32, 32))), tmp_path / "file")


def test_torch_tensorrts_own_words_are_told_in_one_line(fake, capfd):
    def fail(*_, **__):
        logging.getLogger("torch_tensorrt [TensorRT Conversion Context]").error("layer 7: no kernel\nand more")
        raise RuntimeError("While interpreting the module got an error\nand a whole graph")

    fake.dynamo.compile = fail
    with pytest.raises(CompileError) as caught:
        build(fake, FrameProgram(Mini(), Contract("x", (32, 32))))
    assert str(caught.value) == (
        f"Torch-TensorRT with torch {torch.__version__} cannot convert the network: "
        "While interpreting the module got an error | layer 7: no kernel"
    )
    assert capfd.readouterr() == ("", "")


def test_u2net_is_refused_at_a_size_that_it_does_not_divide(fake, tiny_u2net):
    with pytest.raises(CompileError, match=r"--imgsz: expected multiples of 32 for this network, got 48×64"):
        build(fake, FrameProgram(tiny_u2net(1), Contract("x", (48, 64))))


def test_a_machine_without_a_gpu_is_told_so(tiny_unet, monkeypatch):
    monkeypatch.setattr(torch_tensorrt_build, "cuda_is_here", lambda: False)
    program = FrameProgram(tiny_unet(1), Contract("x", (32, 32)))
    with pytest.raises(BackendUnavailableError, match="Torch-TensorRT: expected an NVIDIA GPU to build for, got none"):
        build_torch_tensorrt(program, precision="fp32")
    with pytest.raises(CompileError, match="--precision: expected fp32, which the program was made with, got fp16"):
        build_torch_tensorrt(program, precision="fp16")


@pytest.mark.gpu
@pytest.mark.needs("torch_tensorrt")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_program_agrees_with_the_network_on_the_gpu(precision, tmp_path, pictures, tiny_u2net):
    contract = Contract("x", (64, 64))
    frames = pictures(4, 240, 400)
    with torch.no_grad():
        expected = FrameProgram(tiny_u2net(1), contract).eval()(torch.from_numpy(frames))[0].numpy().astype(int)
    assert expected.std() > 20
    program = FrameProgram(tiny_u2net(1), contract, half=precision == "fp16").eval()
    built = build_torch_tensorrt(program, precision=precision, batch=2, engine_cache=tmp_path / "cache")
    assert built.versions["torch_tensorrt"] == metadata.version("torch_tensorrt").partition("+")[0]
    file = built.file_name(precision)
    entry = built.entry(precision)
    manifest = Manifest("x", "binary", ("a",), (64, 64), precision, {}, {}, {}, "", engines=(entry,))
    bundle = Bundle.write(tmp_path / "bundle", manifest, {PROGRAM_NAME: b"", file: built.content})
    with TorchTensorRTEngine(bundle) as engine:
        for _ in range(3):  # the first records the CUDA graph
            np.testing.assert_allclose(engine(frames[:2]).astype(int), expected[:2], atol=3)
        for count in (1, 2, 1):
            np.testing.assert_allclose(engine(frames[:count]).astype(int), expected[:count], atol=3)
        engine.submit(frames[:2])
        engine.submit(frames[2:])
        np.testing.assert_allclose(engine.collect().astype(int), expected[:2], atol=3)
        np.testing.assert_allclose(engine.collect().astype(int), expected[2:], atol=3)
        assert engine(pictures(1, 100, 77)).shape == (1, 100, 77)
