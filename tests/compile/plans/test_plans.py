"""Plans that go into bundles: options of TensorRT proper, bundles that are extended, and builds that end early."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compile.__main__ import main
from compile.networks.contract import Contract
from compile.options import BuildOptions
from compile.plans import plans, tensorrt_build
from compile.plans.tensorrt_build import PlanOptions, build_plan, check_options
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import Bundle
from pipeline.engines.gpu import Gpu, available_bytes
from pipeline.engines.tensorrt_library import load_tensorrt_rtx
from pipeline.errors import BackendUnavailableError, CompileError

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.needs("tensorrt_rtx_bindings"),
    # What TensorRT proper is there for, TensorRT-RTX takes and calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
GPU = Gpu("Orin", 87, 6 << 30)


@pytest.fixture(scope="module")
def program(tiny_unet):
    return export_program(FrameProgram(tiny_unet(1), Contract("x", (32, 32)))).SerializeToString()


@pytest.fixture
def proper(monkeypatch):
    """TensorRT-RTX in the place of TensorRT proper, which is nowhere without a GPU; what they share is most of it."""
    trt = load_tensorrt_rtx()
    monkeypatch.setattr(tensorrt_build, "load_tensorrt", lambda _: trt)
    return trt


# --- TensorRT proper


def test_a_plan_of_tensorrt_proper_is_for_the_gpu_that_is_here(proper, program):
    plan = build_plan(program, PlanOptions("tensorrt", gpu=GPU))
    version = ".".join(proper.__version__.split(".")[:2])
    assert plan.file_name("fp16") == f"engines/tensorrt-{version}-sm87-fp16.plan"
    entry = plan.entry("fp16")
    assert (entry.sms, entry.device, entry.hardware, entry.version_compatible) == (
        (87,),
        "Orin",
        "same",
        False,
    )


def test_a_hardware_compatible_plan_says_so(proper, program):
    plan = build_plan(program, PlanOptions("tensorrt", gpu=GPU, hardware_compatible=True, workspace_bytes=1 << 28))
    assert plan.entry("fp32").hardware == "ampere+"
    assert plan.file_name("fp32").endswith("-sm87+-fp32.plan")


def test_a_version_compatible_plan_is_asked_for(proper, program):
    # This library has no lean runtime to put in: its refusal shows that it was asked.
    with pytest.raises(CompileError, match=r"^TensorRT .* built no plan: .*libnvinfer_lean"):
        build_plan(program, PlanOptions("tensorrt", gpu=GPU, version_compatible=True))
    options = PlanOptions("tensorrt", gpu=GPU, version_compatible=True)
    assert (
        tensorrt_build.Plan(b"x", "10.3.0", (87,), options).file_name("fp16") == "engines/tensorrt-10.3+-sm87-fp16.plan"
    )


def test_the_timing_cache_is_kept_and_a_damaged_one_is_made_anew(proper, program, tmp_path):
    path = tmp_path / "new" / "times.cache"
    options = PlanOptions("tensorrt", gpu=GPU, timing_cache=path)
    build_plan(program, options)
    assert path.stat().st_size > 0
    assert [entry.name for entry in path.parent.iterdir()] == ["times.cache"]
    path.write_bytes(b"damaged" * 100)
    assert build_plan(program, options).content
    assert not path.read_bytes().startswith(b"damaged")
    with pytest.raises(CompileError, match=r"^--timing-cache .*new: cannot be read \(Is a directory\)"):
        build_plan(program, PlanOptions("tensorrt", gpu=GPU, timing_cache=tmp_path / "new"))


def test_tensorrt_proper_needs_the_gpu_here(proper):
    with pytest.raises(
        CompileError, match=r"^--target tensorrt: expected the GPU .* --bundle DIR .*--target tensorrt-rtx"
    ):
        check_options(PlanOptions("tensorrt"))


def test_an_accelerator_that_is_not_here(proper, program):
    options = PlanOptions("tensorrt", gpu=GPU, dla_core=0, frame_size_hw=(64, 64))
    with pytest.raises(
        CompileError, match=r"^--dla: expected a machine that has one, got core 0 of 0: leave --dla out$"
    ):
        build_plan(program, options)
    with pytest.raises(CompileError, match=r"^--dla: expected a core from 0 to 1, got core 2 of 2"):
        tensorrt_build._use_dla(proper, SimpleNamespace(num_DLA_cores=2), None, None, 2)


def test_what_an_accelerator_leaves_to_the_gpu_is_told(proper):
    layers = [SimpleNamespace(name=name) for name in ("conv", "resize", "relu")]
    network = SimpleNamespace(num_layers=3, get_layer=layers.__getitem__)
    flags = []
    config = SimpleNamespace(set_flag=flags.append, can_run_on_DLA=lambda layer: layer.name != "resize")
    left = tensorrt_build._use_dla(proper, SimpleNamespace(num_DLA_cores=2), network, config, 1)
    assert left == ("resize",)
    assert (config.default_device_type, config.DLA_core) == (proper.DeviceType.DLA, 1)
    assert flags == [proper.BuilderFlag.GPU_FALLBACK]
    plan = tensorrt_build.Plan(b"x", "10.3.0", (87,), PlanOptions("tensorrt", gpu=GPU, dla_core=1, batch=2), left)
    assert plan.file_name("fp16") == "engines/tensorrt-10.3-sm87-fp16-dla1.plan"
    assert plan.entry("fp16").gpu_layers == ("resize",)
    assert {shape[0] for shape in plan.options.profile} == {2}  # an accelerator takes one shape


def test_a_gpu_that_tensorrt_rtx_has_no_name_for_is_asked_itself(program):
    trt = load_tensorrt_rtx()
    assert tensorrt_build._capability(trt, 90, Gpu("H200", 90, 0)) == trt.ComputeCapability.CURRENT
    with pytest.raises(CompileError, match="got 90"):
        tensorrt_build._capability(trt, 90, GPU)


def test_a_jetsons_free_memory_is_what_the_system_would_give_back():
    assert available_bytes("MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable:    5000 kB\n") == 5000 * 1024
    assert available_bytes("") == 0


def test_without_pycuda_the_plan_is_for_the_usual_gpus(monkeypatch, caplog):
    def none():
        raise BackendUnavailableError("PyCUDA cannot be loaded")

    monkeypatch.setattr(plans, "find_gpu", none)
    caplog.set_level("INFO", "edgemask")
    assert plans.plan_options(options_of("tensorrt-rtx"), None, 1).sms == (86, 89, 120)
    assert caplog.messages == [
        "building for SM 86, 89, 120, for the GPU of this machine cannot be asked (PyCUDA cannot be loaded)"
    ]
    with pytest.raises(BackendUnavailableError, match="PyCUDA cannot be loaded"):
        plans.plan_options(options_of("tensorrt"), None, 1)


def options_of(target, **values):
    return BuildOptions(bundle="a bundle", target=target, **values)


def test_a_gpu_that_is_here_is_built_for(monkeypatch, proper, tmp_path):
    monkeypatch.setattr(plans, "find_gpu", lambda: Gpu("RTX 4090", 89, 20 << 30))
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path))
    assert plans.plan_options(options_of("tensorrt-rtx"), None, 1).sms == (89,)
    assert plans.plan_options(options_of("tensorrt-rtx", sm=(120,)), None, 1).sms == (120,)
    built = plans.plan_options(options_of("tensorrt"), (720, 1280), 4)
    assert (built.sms, built.gpu.name) == ((), "RTX 4090")
    assert built.timing_cache == tmp_path / "timing" / "tensorrt-sm89.cache"
    assert built.profile == ((1, 720, 1280, 3), (4, 720, 1280, 3), (4, 720, 1280, 3))


# --- bundles that are there


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, tiny_unet):
    folder = tmp_path_factory.mktemp("compiled")
    torch.save(tiny_unet(1).state_dict(), folder / "net.pth")
    arguments = ["-w", folder / "net.pth", "--imgsz", "32", "--precision", "fp16", "--min-iou", "0.9", "-q"]
    assert main([*map(str, arguments), "-o", str(folder / "bundle")]) == 0
    return folder / "bundle"


@pytest.fixture
def bundle(compiled, tmp_path):
    """A bundle of its own for each test, with a plan for SM 86."""
    folder = tmp_path / "place" / "my bundle"
    subprocess.run(["cp", "-r", compiled, tmp_path / "copy"], check=True)
    folder.parent.mkdir()
    (tmp_path / "copy").rename(folder)
    assert extend(folder, "--sm", "86") == 0
    return folder


def extend(folder, *options):
    return main(["--bundle", str(folder), "--target", "tensorrt-rtx", *options])


def content(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.parent.rglob("*"))
        if path.is_file()
    }


def test_a_bundle_gets_plans_one_for_each_gpu(bundle, capsys):
    before = Bundle.read(bundle).manifest
    assert extend(bundle, "--sm", "89", "--batch", "2") == 0
    after = Bundle.read(bundle).manifest
    assert [entry.sms for entry in after.engines] == [(86,), (89,)]
    assert after.engines[0] == before.engines[0]
    assert after.engines[1].profile[-1][0] == 2
    assert after.files["program.onnx"] == before.files["program.onnx"]
    assert (after.verification, after.created) == (before.verification, before.created)
    assert "not checked on a GPU, for none of those is here" in capsys.readouterr().out
    # The same GPU again: its plan is replaced, and takes as many frames at once as before.
    assert extend(bundle, "--sm", "89") == 0
    again = Bundle.read(bundle).manifest
    assert [entry.sms for entry in again.engines] == [(86,), (89,)]
    assert again.engines[1].profile[-1][0] == 2
    assert set(again.files) == {*before.files} - {before.engines[0].file} | {entry.file for entry in again.engines}


def test_a_plan_for_one_size_of_frames(bundle):
    assert extend(bundle, "--sm", "86", "--frame", "48x64") == 0
    manifest = Bundle.read(bundle).manifest
    assert manifest.frame_size_hw is None
    (entry,) = manifest.engines
    assert [shape[1:3] for shape in entry.profile] == [(48, 64)] * 3


def test_a_damaged_plan_is_left_out_and_told(bundle, capsys):
    (entry,) = Bundle.read(bundle).manifest.engines
    path = bundle / entry.file
    path.write_bytes(path.read_bytes()[:-1])
    assert extend(bundle, "--sm", "89") == 0
    assert [entry.sms for entry in Bundle.read(bundle).manifest.engines] == [(89,)]
    assert "left out, for it was changed or damaged" in capsys.readouterr().out
    assert not path.exists()


def test_a_damaged_program_is_not_built_from(bundle, capsys):
    (bundle / "program.onnx").write_bytes(b"x")
    assert extend(bundle) == 2
    assert "program.onnx: expected sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "x"], "--bundle: expected no --output beside it"),
        (["--model", "u2netp"], "--bundle: expected no --model beside it"),
        (["--precision", "fp16"], "--bundle: expected no --precision beside it"),
        (["--pixels", "nv12"], "--bundle: expected no --pixels beside it"),
        (
            ["--target", "onnx"],
            "--bundle: expected --target tensorrt or tensorrt-rtx or triton, which is built from a bundle's program",
        ),
        (["--target", "torch-tensorrt"], "got torch-tensorrt: compile the network itself, with --model or --weights"),
    ],
)
def test_options_that_belong_to_the_network(bundle, capsys, options, message):
    before = content(bundle)
    assert extend(bundle, *options) == 2
    assert message in capsys.readouterr().err
    assert content(bundle) == before


def test_no_bundle_to_extend(tmp_path, capsys):
    assert extend(tmp_path / "none") == 2
    assert "none: expected a bundle folder, got nothing" in capsys.readouterr().err


def test_a_device_without_pytorch_extends_bundles(bundle):
    code = (
        "import sys; sys.modules['torch'] = None; from compile.__main__ import main;"
        f"sys.exit(main(['--bundle', {str(bundle)!r}, '--target', 'tensorrt-rtx', '--sm', '120']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Bundle.read(bundle).manifest.engines) == 2


# --- builds that end early: the old bundle stays as it was, and nothing is left beside it


def test_a_build_that_fails(bundle, monkeypatch, capsys):
    def fails(*_, **__):
        raise CompileError("TensorRT-RTX 1.7.1 built no plan: Error Code 2: OutOfMemory (requested 3221225472 bytes)")

    before = content(bundle)
    monkeypatch.setattr(plans, "build_plan", fails)
    assert extend(bundle, "--sm", "89") == 2
    assert "built no plan: Error Code 2: OutOfMemory" in capsys.readouterr().err
    assert content(bundle) == before


def test_ctrl_c_in_the_middle_of_a_build(bundle, monkeypatch):
    steps = []

    class Interrupted:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, *step):
            if not steps:
                os.kill(os.getpid(), signal.SIGINT)
            steps.append(step)

    before = content(bundle)
    monkeypatch.setattr(plans, "BuildProgress", Interrupted)
    assert extend(bundle, "--sm", "89") == 130
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert steps
    assert content(bundle) == before


@pytest.mark.parametrize("limit_kib", [16, 200, 400], ids=lambda value: f"{value} KiB")
def test_a_disk_that_is_full(bundle, limit_kib):
    # A file that may not grow further is what a full disk is to a program.
    sizes_kib = sorted(path.stat().st_size // 1024 for path in bundle.rglob("*") if path.is_file())
    assert sizes_kib[-1] > limit_kib, sizes_kib
    before = content(bundle)
    command = (
        f"ulimit -f {limit_kib}; exec {sys.executable} -m compile --bundle '{bundle}' --target tensorrt-rtx --sm 89"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "my bundle: cannot be written (File too large)" in done.stderr
    assert content(bundle) == before


def test_the_manifest_is_json_with_all_of_the_plan(bundle):
    (entry,) = json.loads((bundle / "manifest.json").read_text())["engines"]
    assert set(entry) == {
        *("file", "runtime", "version", "sms", "hardware", "version_compatible", "device", "profile", "dla_core"),
        *("gpu_layers", "float_scales", "size_bytes"),
    }
