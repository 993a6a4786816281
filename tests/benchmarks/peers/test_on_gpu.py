"""Rows for a machine with a GPU, on one without: NVIDIA's programs as scripts, PyTorch on the CPU, Torch-TensorRT as it is called."""

import json
import os
import re
import sys
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.__main__ import main
from benchmarks.peers import on_gpu as peers_gpu
from benchmarks.peers import torch_loops as peers_torch
from benchmarks.peers import trtexec as peers_trtexec
from benchmarks.peers.commands import run_with
from benchmarks.peers.on_gpu import open_gpu_engine, require_plan
from benchmarks.peers.runs import Job
from benchmarks.peers.trtexec import Rates, command, find_program, measured_by
from benchmarks.shared.process import in_its_own_process
from compile.networks.unet import UNet
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines import open_engine
from pipeline.errors import BackendUnavailableError

FAKE = """#!{python}
import json, sys
if sys.argv[1:] == ["--help"]:
    print('''{help}''')
    sys.exit(0)
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
print('''{printed}''')
sys.exit({status})
"""
HELP_10 = """=== Model Options ===
  --onnx=<file>               ONNX model
=== Inference Options ===
  --shapes=spec               Set input shapes for dynamic shapes inference inputs.
  --noDataTransfers           Disable DMA transfers to and from device (default = enabled). See --includeDataTransfers of later ones.
  --useSpinWait               Actively synchronize on GPU events. This option may decrease synchronization time but increase CPU usage
  --useCudaGraph              Use CUDA graph to capture engine execution and then launch inference (default = disabled).
"""
HELP_RTX = """=== Inference Options ===
  --shapes=spec               Set input shapes for dynamic shapes inference inputs.
  --includeDataTransfers      Include DMA transfers to and from device (default = disabled).
  --noSpinWait                Do not actively synchronize on GPU events.
  --rtxCudaGraphStrategy=spec Set the CUDA graph strategy. spec ::= "disable"|"wholeGraph" (default = wholeGraph).
"""
PRINTED_10 = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=x
[11/20/2026-10:47:55] [I] === Trace details ===
[11/20/2026-10:47:55] [I] Average on 10 runs - GPU latency: 7.4 ms - Host latency: 7.5 ms (enqueue 0.1 ms)
[11/20/2026-10:47:59] [I] === Performance summary ===
[11/20/2026-10:47:59] [I] Throughput: 130.298 qps
[11/20/2026-10:47:59] [I] Latency: min = 5.38 ms, max = 13.3 ms, mean = 7.6 ms, median = 7.16 ms, percentile(90%) = 10.2 ms
[11/20/2026-10:47:59] [I] Enqueue Time: min = 2.72 ms, max = 15.0 ms, mean = 7.63 ms, median = 7.86 ms, percentile(90%) = 10.1 ms
[11/20/2026-10:47:59] [I] H2D Latency: min = 0.006 ms, max = 0.06 ms, mean = 0.012 ms, median = 0.008 ms, percentile(90%) = 0.02 ms
[11/20/2026-10:47:59] [I] GPU Compute Time: min = 5.34 ms, max = 13.3 ms, mean = 7.58 ms, median = 7.14 ms, percentile(90%) = 10.2 ms
[11/20/2026-10:47:59] [I] D2H Latency: min = 0.003 ms, max = 0.11 ms, mean = 0.010 ms, median = 0.004 ms, percentile(90%) = 0.02 ms
[11/20/2026-10:47:59] [I] Total Host Walltime: 3.00082 s
[11/20/2026-10:47:59] [I] Total GPU Compute Time: 2.96536 s
&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=x
"""
PRINTED_RTX = """[I] === Performance summary ===
[I] Throughput: 1.2e+03 qps
[I] Latency: min = 0.877 ms, max = 0.886 ms, mean = 0.881 ms, median = 0.8815 ms, percentile(90%) = 0.88 ms
[I] GPU Compute Time: min = 0.87 ms, max = 0.88 ms, mean = 0.88 ms, median = 0.879 ms, percentile(90%) = 0.88 ms
"""
FAILED = """[11/20/2026-10:47:59] [E] [TRT] IRuntime::deserializeCudaEngine: Error Code 1: Serialization
[11/20/2026-10:47:59] [E] Engine deserialization failed
&&&& FAILED TensorRT.trtexec [TensorRT v100300]
"""
PROFILE = [[1, 1, 1, 3], [1, 720, 1280, 3], [1, 4096, 4096, 3]]
ENTRY = {"file": "engines/x.plan", "runtime": "tensorrt", "version": "10.3.0.30", "sms": [87], "profile": PROFILE}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install("trtexec", help, printed, status)``: the only program on PATH; gives what it was called with."""

    def put(name, known=HELP_10, printed=PRINTED_10, status=0):
        folder, log = tmp_path / "bin", tmp_path / f"{name}.log"
        folder.mkdir(exist_ok=True)
        text = FAKE.format(python=sys.executable, help=known, printed=printed, log=str(log), status=status)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return put


@pytest.fixture
def bundle(red_bundle, tmp_path):
    """``bundle(pixels="nv12", …)``: as ``red_bundle``, with another manifest."""

    def make(**changes):
        manifest = replace(red_bundle.manifest, **changes)
        return Bundle.write(tmp_path / "bundle", manifest, {PROGRAM_NAME: red_bundle.program_path.read_bytes()})

    return make


@pytest.fixture
def place(tmp_path, bundle):
    """A clip of 5 frames of 64 × 96, a bundle for 32 × 48, and a network of a few weights as a checkpoint."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (96, 64))
    for index in range(5):
        image = np.full((64, 96, 3), 40, np.uint8)
        image[16:48, 20 + 2 * index : 60 + 2 * index] = (30, 30, 230)
        writer.write(image)
    writer.release()
    torch.manual_seed(0)
    torch.save(UNet(3, 1, False, base_width=4).state_dict(), tmp_path / "tiny.pth")
    bundle(model="tiny", network_size_hw=(32, 48))
    return tmp_path


def job_of(place, **changes):
    made = Bundle.read(place / "bundle")
    made = Bundle(made.folder, replace(made.manifest, **changes))
    return Job(place / "clip.mp4", 3, (64, 96), Fraction(25), made, place / "tiny.pth", place)


def asked(place, only, rounds=1):
    result = place / "result.json"
    given = {"--clip": place / "clip.mp4", "--model": place / "bundle", "--network": place / "tiny.pth", "--only": only}
    options = {**given, "--frames": 3, "--rounds": rounds, "--json": result}
    assert main(["peers", *(str(part) for pair in options.items() for part in pair)]) == 0
    return json.loads(result.read_text())


def with_gpu(monkeypatch, answers=None):
    """As on a machine with a GPU: the driver is there; processes of their own are this one, some of them with an answer."""
    for module in (peers_gpu, peers_trtexec):
        monkeypatch.setattr(module, "require_driver", lambda: None)
        monkeypatch.setattr(module, "require_plan", lambda *_: None)
        monkeypatch.setattr(
            module, "in_its_own_process", lambda call, *given: (answers or {}).get(call.__name__, call)(*given)
        )


def test_trtexec_gets_the_plan_and_the_frames_of_the_clip_and_is_compared_with_ours(
    place, install, monkeypatch, capsys
):
    calls = install("trtexec")
    ours = iter([(260.0, 65.0), (130.0, 13.0), (130.298, 130.298)])
    answers = {
        "_plan_here": lambda *_: (PlanEntry.from_dict(ENTRY), "10.3.0.30"),
        "our_rates": lambda *_: Rates(*next(ours), "TensorRT"),
    }
    with_gpu(monkeypatch, answers)
    entries = asked(place, "trtexec", rounds=3)
    plan = f"--loadEngine={place / 'bundle' / 'engines' / 'x.plan'}"
    assert calls() == [[plan, "--shapes=frames:1x64x96x3", "--useCudaGraph", "--useSpinWait"]] * 3
    (row,) = entries["engines"]
    assert (row["fps"], row["latency_ms"], row["compute_ms"]) == (130.298, 7.16, 7.14)
    assert (row["engine_fps"], row["pipeline_fps"], row["version"]) == (130.298, 65.0, "10.3.0.30")
    assert entries["ratios"] == {"fps_over_trtexec": 1.0, "pipeline_fps_over_trtexec": round(65 / 130.298, 4)}
    assert entries["table"] == []
    printed = capsys.readouterr().out
    assert "nothing decoded, drawn or written" in printed
    assert "| trtexec 10.3.0.30 | 130.30 | 7.140 | 7.160 | 130.30 | 1.000 | 65.00 | 0.499 |" in printed


def test_our_rates_are_those_of_the_engine_and_of_the_pipeline(place):
    rates = peers_trtexec.our_rates(job_of(place), "onnxruntime", 0.05)
    assert rates.alone_hz > 0
    assert rates.pipeline_hz > 0
    assert rates.engine.startswith("ONNX Runtime")


def test_frames_go_to_a_program_of_nv12_as_nv12(place, red_bundle):
    ends = [np.array([value], np.int64) for value in (0, 64, 1)]
    names = ("from", "to", "axis")
    graph = helper.make_graph(
        [helper.make_node("Slice", ["frames", *names], ["masks"])],  # its luma
        "luma",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 96, 96])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", 64, 96])],
        initializer=[numpy_helper.from_array(end, name) for end, name in zip(ends, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    manifest = replace(red_bundle.manifest, pixels="nv12", frame_size_hw=(64, 96))
    luma = Bundle.write(place / "luma", manifest, {PROGRAM_NAME: model.SerializeToString()})
    job = replace(job_of(place), bundle=luma)
    assert peers_trtexec.our_rates(job, "onnxruntime", 0.05).pipeline_hz > 0
    with open_engine(luma, "onnxruntime") as engine:
        run = run_with(engine, job, place, "overlay", "video.mp4")
    assert [mask.shape for mask in run.masks] == [(64, 96)] * 3
    assert len(np.unique(run.masks[0])) > 1


def test_tensorrt_rtx_is_told_to_copy_and_its_summary_is_read(install, bundle):
    calls = install("tensorrt_rtx", HELP_RTX, PRINTED_RTX)
    arguments = command(find_program("tensorrt_rtx"), bundle(), PlanEntry.from_dict(ENTRY), (720, 1280))
    summary = measured_by(arguments)
    (call,) = calls()
    assert call[1:] == ["--shapes=frames:1x720x1280x3", "--rtxCudaGraphStrategy=wholeGraph", "--includeDataTransfers"]
    assert (summary.fps, summary.compute_ms, summary.latency_ms) == (1200.0, 0.879, 0.8815)


@pytest.mark.parametrize(
    ("manifest", "entry", "expected"),
    [
        ({"pixels": "nv12"}, {}, ["--shapes=frames:1x96x96"]),
        ({"frame_size_hw": (64, 96)}, {"profile": [[1, 64, 96, 3]] * 3}, []),
        ({}, {"version_compatible": True}, ["--shapes=frames:1x64x96x3", "--versionCompatible"]),
        ({}, {"dla_core": 0}, ["--shapes=frames:1x64x96x3", "--useDLACore=0"]),
    ],
)
def test_a_plan_is_loaded_as_it_was_built(install, bundle, manifest, entry, expected):
    install("trtexec", known="")
    assert (
        command(find_program("trtexec"), bundle(**manifest), PlanEntry.from_dict({**ENTRY, **entry}), (64, 96))[2:]
        == expected
    )


def test_a_plan_that_composes_is_not_compared(install, bundle):
    install("trtexec")
    with pytest.raises(BackendUnavailableError, match="got one of --compose device"):
        command(find_program("trtexec"), bundle(composes=True), PlanEntry.from_dict(ENTRY), (64, 96))


@pytest.mark.parametrize(
    ("printed", "status", "message"),
    [
        (
            FAILED,
            1,
            "expected it to run, got [TRT] IRuntime::deserializeCudaEngine: Error Code 1: Serialization | "
            "Engine deserialization failed",
        ),
        ("", 9, "expected it to run, got exit status 9"),
        ("[I] Throughput: 3 qps", 0, "expected throughput, latency and compute time"),
    ],
)
def test_a_program_that_fails_is_told(install, bundle, printed, status, message):
    install("trtexec", printed=printed, status=status)
    with pytest.raises(BackendUnavailableError, match=re.escape(f"trtexec: {message}")):
        measured_by(command(find_program("trtexec"), bundle(), PlanEntry.from_dict(ENTRY), (64, 96)))


def test_a_program_is_found_where_jetpack_puts_it_and_one_that_is_not_here_is_told(
    tmp_path, install, monkeypatch, place, capsys
):
    install("trtexec")
    monkeypatch.setenv("PATH", "")
    tool = replace(peers_trtexec.TOOLS["trtexec"], places=(str(tmp_path / "nowhere"), str(tmp_path / "bin")))
    monkeypatch.setitem(peers_trtexec.TOOLS, "trtexec", tool)
    assert find_program("trtexec") == tmp_path / "bin" / "trtexec"
    entries = asked(place, "trtexec,tensorrt_rtx")
    missing = [row["missing"] for row in entries["engines"]]
    assert missing[0].startswith("not here: the bundle has no plan for TensorRT: build one with: python -m compile")
    assert missing[1].startswith("not here: no tensorrt_rtx on PATH: install")
    assert entries["ratios"] == {}
    assert missing[1] in capsys.readouterr().out


def fake_torch_tensorrt(asked_for):
    """What is called of it; the network stays PyTorch's."""

    def compile_it(exported, arg_inputs, **options):
        asked_for.append((arg_inputs[0], options))
        return exported.module()

    return SimpleNamespace(
        __version__="2.13.0",
        Input=lambda shape, dtype: (shape, dtype),
        Device=lambda gpu_id: f"GPU {gpu_id}",
        dynamo=SimpleNamespace(compile=compile_it),
    )


@pytest.fixture
def compilers(monkeypatch):
    """Both compilers, which leave the network as it is; gives what Torch-TensorRT was asked for."""
    asked_for = []
    monkeypatch.setattr(peers_torch, "load_torch_tensorrt", lambda: fake_torch_tensorrt(asked_for))
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    return asked_for


@pytest.mark.parametrize("compiler", ["torch.compile", "torch-tensorrt"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_pytorch_has_the_precision_of_the_bundle(place, compilers, compiler, precision, dtype):
    network = UNet(3, 1, False, base_width=4)
    network.load_state_dict(torch.load(place / "tiny.pth"))
    blob = np.random.default_rng(0).normal(size=(1, 3, 32, 48)).astype(np.float32)
    with torch.no_grad():
        expected = torch.sigmoid(network.eval().logits(torch.from_numpy(blob))).numpy()
    forward = peers_torch.compiled_network(job_of(place, precision=precision), compiler, torch.device("cpu"))
    got = forward(blob)
    assert got.dtype == np.float32
    tolerance = 1e-5 if precision == "fp32" else 0.01
    assert np.abs(got - expected).max() < tolerance
    assert (np.abs(got - expected).max() > 1e-6) == (precision == "fp16")
    if compiler == "torch-tensorrt":
        ((shape_and_dtype, options),) = compilers
        assert shape_and_dtype == ((1, 3, 32, 48), dtype)
        assert options["min_block_size"] == 1


def test_loops_of_pytorch_stand_beside_ours_on_a_gpu(place, compilers, monkeypatch):
    def on_cpu(job, folder, compiler):
        network = peers_torch.compiled_network(job, compiler, torch.device("cpu"))
        return peers_torch.run_loop(job, folder, network, peers_torch.numpy_overlay)

    with_gpu(monkeypatch)
    monkeypatch.setattr(peers_torch, "torch_loop", on_cpu)
    monkeypatch.setattr(peers_gpu, "open_gpu_engine", lambda bundle: open_engine(bundle, "onnxruntime"))
    entries = asked(place, "torch_tensorrt,torch_compile")
    rows = {row["tool"]: row for row in entries["table"]}
    assert list(rows) == ["edgemask_video_gpu", "torch_tensorrt", "torch_compile"]
    assert rows["torch_tensorrt"]["iou_mean"] == rows["torch_compile"]["iou_mean"]  # it is the same network
    assert rows["torch_compile"]["version"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert set(entries["ratios"]) == {
        f"{rate}_over_{key}" for rate in ("fps", "running_fps", "cpu") for key in ("torch_tensorrt", "torch_compile")
    }
    assert rows["edgemask_video_gpu"]["written_bytes"] > 0


def test_without_ours_on_a_gpu_nothing_is_compared(place, compilers, monkeypatch):
    monkeypatch.setattr(peers_gpu, "require_driver", lambda: None)
    done = SimpleNamespace(masks=[np.zeros((64, 96), np.uint8)] * 3)
    short = SimpleNamespace(masks=done.masks[:2])
    monkeypatch.setattr(peers_gpu, "in_its_own_process", lambda call, job, *_: short if job.frames == 2 else done)
    rows = {row["tool"]: row for row in asked(place, "torch_compile")["table"]}
    assert rows["torch_compile"]["missing"] == "not compared: ours on a GPU is not here"
    assert "the bundle has no plan for a GPU" in rows["edgemask_video_gpu"]["missing"]


@pytest.mark.parametrize(
    ("changes", "network", "message"),
    [
        ({"precision": "int8"}, "tiny.pth", "expected a bundle in fp32 or fp16, got int8"),
        ({}, "other.pth", "got a file with weight"),
    ],
)
def test_what_pytorch_cannot_run_is_told(place, compilers, changes, network, message):
    torch.save({"weight": torch.zeros(3)}, place / "other.pth")
    job = replace(job_of(place, **changes), network=place / network)
    with pytest.raises(BackendUnavailableError, match=message):
        peers_torch.compiled_network(job, "torch.compile", torch.device("cpu"))


def test_pytorch_without_a_gpu_is_told(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="expected an NVIDIA GPU, got none"):
        peers_gpu._torch_run(job_of(place), place, "torch.compile")


def test_an_error_of_cuda_is_told_in_its_row(place, monkeypatch):
    def fail(job, compiler, device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(peers_torch, "compiled_network", fail)
    with pytest.raises(BackendUnavailableError, match=r"^PyTorch .+: CUDA out of memory\.$"):
        peers_torch.torch_loop(job_of(place), place, "torch.compile")


def test_a_bundle_whose_plans_do_not_run_here_says_of_each_why(red_bundle, tmp_path):
    engines = tuple(
        PlanEntry.from_dict({**ENTRY, "runtime": name, "sms": [10], "size_bytes": 4})
        for name in ("tensorrt", "tensorrt-rtx")
    )
    files = {PROGRAM_NAME: red_bundle.program_path.read_bytes(), ENTRY["file"]: b"plan"}
    planned = Bundle.write(tmp_path / "planned", replace(red_bundle.manifest, engines=engines), files)
    require_plan(planned)
    require_plan(planned, "tensorrt-rtx")
    with pytest.raises(
        BackendUnavailableError, match="has no plan for Torch-TensorRT: build one with: python -m compile"
    ):
        require_plan(planned, "torch-tensorrt")
    with pytest.raises(BackendUnavailableError, match=r"not here: .+; .+"):
        open_gpu_engine(planned)


def test_a_process_of_its_own_gives_its_result_its_error_or_that_it_crashed(place, capfd):
    assert in_its_own_process(os.getpid) != os.getpid()
    with pytest.raises(BackendUnavailableError, match="the bundle has no plan for a GPU"):
        in_its_own_process(peers_gpu.our_gpu_run, job_of(place), place)
    in_its_own_process(print, "said by a library")
    with pytest.raises(BackendUnavailableError, match="its process ended before it was done"):
        in_its_own_process(os._exit, 3)
    out, err = capfd.readouterr()
    assert "said by a library" not in out
    assert "said by a library" in err
