# The command in this process; what costs seconds, the export, is real in the first tests and stands aside in the others.

import json
import os
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compile.__main__ import main
from compile.networks.contract import Contract
from compile.program.network import Network
from compile.proof.verify import Expected
from pipeline.bundles.bundle import DRIFT_NAME, MANIFEST_NAME, PROGRAM_NAME, WORST_NAME, Bundle, file_sha256
from pipeline.errors import CompileError

ONLY_BUNDLE = {MANIFEST_NAME, PROGRAM_NAME, WORST_NAME, DRIFT_NAME}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_unet, tiny_u2net):
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"state_dict": tiny_unet(1).state_dict(), "epoch": 3}, folder / "unet.pth")
    torch.save(tiny_unet(3, bilinear=True).state_dict(), folder / "roads.pt")
    torch.save(tiny_u2net().state_dict(), folder / "u2net.pth")
    return folder


@pytest.fixture
def place(tmp_path):
    """An empty folder, beside which nothing may be left either."""
    place = tmp_path / "place"
    place.mkdir()
    return place


@pytest.fixture
def run(capsys):
    """``run("--weights", FILE, …)``: exit status, standard output, standard error."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    yield run
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(run):
    """``refused(MESSAGE, …)``: status 2, one line on standard error that matches."""

    def refused(message, *arguments):
        status, _, said = run(*arguments)
        assert status == 2
        assert re.match(r"error: .*\n\Z", said), said
        assert re.search(message, said), said

    return refused


class RedNetwork(Network):
    """Its program gives the frame's red channel; ``judge`` says what is expected."""

    def __init__(self, program, judge):
        super().__init__("unet", "unet", Contract("stream", (1, 1)), 1)
        self.program, self.judge = program, judge

    def reference(self, frames_nhwc):
        return Expected(self.judge(frames_nhwc))

    def export(self, precision, frame_size_hw, keep):
        return self.program


@pytest.fixture
def red_network(monkeypatch, red_bundle):
    """Whatever the weights, the program gives the frame's red channel."""

    def install(reference=lambda frames: frames[..., 2]):
        found = RedNetwork(onnx.load(red_bundle.program_path), reference)
        monkeypatch.setattr("compile.steps.open_network", lambda *_, **__: found)
        return found

    install()
    return install


# --- bundles


def test_unet_to_a_bundle(run, weights, place, pictures, tiny_unet):
    output = place / "new" / "bundle"
    status, said, errors = run("-w", weights / "unet.pth", "--imgsz", "48x64", "-o", output)
    assert (status, errors) == (0, "")
    assert "unet.pth: unet (unet), 1 class(es), 48×64\n" in said
    assert re.search(
        r"agrees with the trained network in FP32 on 32 photographs of the package: mean IoU 1\.0000", said
    )
    assert {path.name for path in output.iterdir()} == ONLY_BUNDLE
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]
    bundle = Bundle.read(output)
    manifest = bundle.manifest
    assert (manifest.model, manifest.task, manifest.classes) == ("unet", "binary", ("subject",))
    assert (manifest.network_size_hw, manifest.frame_size_hw, manifest.precision) == ((48, 64), None, "fp32")
    assert manifest.contract["name"] == "stream"
    assert manifest.contract["imgsz"] == [48, 64]
    assert manifest.weights == {
        "file": "unet.pth",
        "sha256": file_sha256(weights / "unet.pth"),
        "family": "unet",
        "architecture": "unet",
    }
    assert manifest.verification["frames"] == len(manifest.verification["per_frame"]) == 32
    assert manifest.verification["iou_mean"] > 0.999
    assert manifest.verification["source"] == "photographs of the package"
    worst = cv2.imdecode(np.frombuffer((output / WORST_NAME).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert worst.shape[0] > 500  # five rows
    assert manifest.tools["torch"] == torch.__version__
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest.created)
    assert str(weights) not in (output / MANIFEST_NAME).read_text()
    # And the program gives what the network gives, by another road.
    (frame,) = pictures(1, 48, 64)
    session = onnxruntime.InferenceSession(bundle.program_path, providers=["CPUExecutionProvider"])
    (masks,) = session.run(["masks"], {"frames": frame[None]})
    x = torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = torch.sigmoid(tiny_unet(1)(x))[0, 0] * 255
    assert np.abs(masks[0] - expected.numpy()).max() <= 1


def test_u2net_as_published_in_half_precision(run, weights, place):
    output = place / "bundle"
    arguments = ("--imgsz", "64", "--precision", "fp16", "--contract", "official", "--model", "mine", "--quiet")
    # So narrow a network feels FP16 more than a real one.
    arguments += ("--min-iou", "0.9")
    assert run("-w", weights / "u2net.pth", "-o", output, *arguments) == (0, "", "")
    manifest = Bundle.read(output).manifest
    assert (manifest.model, manifest.precision, manifest.network_size_hw) == ("mine", "fp16", (64, 64))
    assert (manifest.weights["family"], manifest.weights["architecture"]) == ("u2net", "u2net")
    program = onnx.load(output / PROGRAM_NAME)
    weights_inside = {tensor.data_type for tensor in program.graph.initializer if len(tensor.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in weights_inside
    assert manifest.contract["name"] == "official"
    assert manifest.contract["mean"] == [0.485, 0.456, 0.406]
    assert manifest.verification["iou_mean"] >= 0.9


def test_classes_a_contract_file_a_frame_size_and_a_bundle_to_replace(run, weights, place):
    contract, output = place.parent / "roads.yaml", place / "bundle"
    contract.write_text("channels: bgr\nclasses: [background, road, car]\n")
    output.mkdir()
    (output / MANIFEST_NAME).write_text('{"schema": 0, "files": {"program.onnx": "of another version"}}')
    (output / "engines").mkdir()
    status, _, errors = run(
        *("-w", weights / "roads.pt", "-o", output, "--contract", contract, "--imgsz", "32", "--frame", "48X64"),
        *("--classes", "3", "--smooth", "--verify", "test://?size=80x60&frames=2"),
    )
    assert (status, errors) == (0, "")
    # Of two frames nothing is usual.
    assert {path.name for path in output.iterdir()} == ONLY_BUNDLE - {DRIFT_NAME}
    assert [path.name for path in place.iterdir()] == ["bundle"]
    manifest = Bundle.read(output).manifest
    assert (manifest.task, manifest.classes) == ("classes", ("background", "road", "car"))
    assert (manifest.network_size_hw, manifest.frame_size_hw) == ((32, 32), (48, 64))
    assert (manifest.contract["name"], manifest.contract["channels"]) == ("roads", "bgr")
    assert (manifest.verification["frames"], manifest.verification["source"]) == (
        2,
        "frames of test://?size=80x60&frames=2",
    )
    graph = onnx.load(output / PROGRAM_NAME).graph
    assert [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim] == [0, 48, 64, 3]
    enlarged = [attribute.s for node in graph.node for attribute in node.attribute if attribute.name == "mode"]
    assert set(enlarged) == {b"linear"}  # smooth: scores, not indices


def test_quiet_says_nothing(run, red_network, weights, place):
    assert run("-w", weights / "unet.pth", "-o", place / "bundle", "-q") == (0, "", "")
    Bundle.read(place / "bundle")


@pytest.mark.parametrize(
    ("text", "size_hw"),
    [("320", (320, 320)), ("320x640", (320, 640)), ("320X640", (320, 640)), ("320×640", (320, 640)), ("8,9", (8, 9))],
)
def test_forms_of_a_size(run, red_network, monkeypatch, weights, place, text, size_hw):
    seen, found = {}, red_network()
    monkeypatch.setattr("compile.steps.open_network", lambda *_, **options: (seen.update(options), found)[1])
    assert run("-w", weights / "unet.pth", "-o", place / "bundle", "--imgsz", text)[0] == 0
    assert seen["imgsz"] == size_hw


# --- refused: one line, status 2, and nothing left behind


@pytest.fixture(autouse=True)
def _nothing_left_in(request, tmp_path):
    yield
    if "refused" in request.fixturenames and "place" in request.fixturenames:
        place = tmp_path / "place"
        assert not list(place.iterdir()) if place.is_dir() else not place.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--imgsz", "abc"], r"--imgsz: expected a size such as 320 or 720x1280 \(height × width\), got 'abc'"),
        (["--imgsz", "0"], "--imgsz: expected a size such as .* got '0'"),
        (["--imgsz", "-320"], "--imgsz: expected"),
        (["--imgsz", "320.5"], "--imgsz: expected a size such as .* got '320.5'"),
        (["--imgsz", "1x2x3"], "--imgsz: expected a size such as .* got '1x2x3'"),
        (["--imgsz", "3_2"], "--imgsz: expected a size such as .* got '3_2'"),
        (["--imgsz", ""], "--imgsz: expected a size such as .* got ''"),
        (["--imgsz", "9000"], "imgsz: expected height and width from 1 to 8192"),
        (["--imgsz", "15"], "--imgsz: expected at least 16×16 for this network, got 15×15"),
        (["--frame", "99999"], "--frame: expected a size such as .* got '99999'"),
        (["--precision", "int9"], "--precision: invalid choice: 'int9'"),
        (["--target", "coffee"], "--target: invalid choice: 'coffee'"),
        (["--classes", "two"], "--classes: invalid int value: 'two'"),
        (["--classes", "2"], r"unet\.pth: expected 2 classes, got 1 in outc\.conv\.weight: ask for 1"),
        (["--sm", "86"], "--sm: expected --target tensorrt-rtx beside it, got onnx"),
        (["--sm", "86", "--target", "tensorrt"], "--sm: expected --target tensorrt-rtx beside it, got tensorrt"),
        (
            ["--batch", "2"],
            "--batch: expected --target tensorrt or tensorrt-rtx or torch-tensorrt or triton beside it, got onnx",
        ),
        (["--dla", "0", "--target", "tensorrt-rtx"], "--dla: expected --target tensorrt beside it, got tensorrt-rtx"),
        (
            ["--dla", "0", "--target", "tensorrt"],
            "--dla: expected --frame HxW and --precision fp16, .*, got any size and fp32",
        ),
        (
            ["--target", "openvino", "--precision", "fp16"],
            "--target openvino: expected --precision fp32, which OpenVINO computes in BF16 where that agrees, got fp16",
        ),
        (["--version-compatible"], "--version-compatible: expected --target tensorrt beside it, got onnx"),
        (
            ["--workspace", "0", "--target", "tensorrt"],
            "--workspace: expected a number of GiB from 0.001 to 1024, got '0'",
        ),
        (["--timing-cache", "x"], "--timing-cache: expected --target tensorrt beside it, got onnx"),
        (["--target", "tensorrt"], r"the GPU cannot be asked .*|no GPU that CUDA can use: |TensorRT is not here"),
        (
            ["--target", "torch-tensorrt", "--imgsz", "64"],
            "expected an NVIDIA GPU to build for, got none|packages are not here",
        ),
        (["--batch", "0", "--target", "tensorrt-rtx"], "--batch: expected a number from 1 to 64, got '0'"),
        (["--min-iou", "1.5"], "--min-iou: expected a number from 0 to 1, got 1.5"),
        (["--min-iou", "nan"], "--min-iou: expected a number from 0 to 1, got nan"),
        (["--min-iou", "high"], "--min-iou: expected a number from 0 to 1, got high"),
        (["--contract", "strem"], "--contract: expected stream, official or a YAML file, got 'strem': no such file"),
        (["--contract", "x" * 300], "--contract: expected stream, official or a YAML file"),
        (["--verify", "none.mp4"], r"none\.mp4: "),
        (["--verify", "test://?size=huge"], "expected a form such as test://"),
        (["--pixels", "yuv"], "--pixels: invalid choice: 'yuv'"),
        (["--pixels", "nv12", "--frame", "721x1280"], "--frame: expected even sides for frames of NV12, got 721x1280"),
        (["--pixels", "nv12", "--frame", "333"], "--frame: expected even sides for frames of NV12, got 333x333"),
        (
            ["--pixels", "nv12", "--target", "torch-tensorrt"],
            "--pixels nv12: expected another --target, got torch-tensorrt",
        ),
        (["--impossible"], "unrecognized arguments: --impossible"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_wrong_options(refused, weights, place, options, message):
    refused(message, "-w", weights / "unet.pth", "-o", place / "bundle", *options)


def test_neither_model_nor_weights(refused, place):
    refused(
        "expected --model .*u2netp.*, --weights FILE, --network .*or --bundle DIR, got none of them",
        "-o",
        place / "bundle",
    )


def test_no_output(refused, weights, place):
    refused("expected --output DIR, the bundle's folder, got none", "-w", weights / "unet.pth")


def test_an_unknown_published_network(refused, place):
    refused("expected one of u2netp, .*, got 'u2netq': did you mean 'u2net", "-m", "u2netq", "-o", place / "bundle")


def test_missing_weights(refused, place):
    message = r"none\.pth: expected a file of weights, got no such file"
    refused(message, "-w", place / "none.pth", "-o", place / "bundle")


def test_weights_of_another_network(refused, place, tmp_path):
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.weight": torch.zeros(10, 8)}, tmp_path / "resnet.pth")
    message = r"resnet\.pth: expected U-Net .*, got a file with conv1\.weight, fc\.weight"
    refused(message, "-w", tmp_path / "resnet.pth", "-o", place / "bundle")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_weights_that_carry_code(refused, place, tmp_path, tiny_unet):
    torch.save({**tiny_unet(1).state_dict(), "trap": Trap(str(tmp_path / "sprung"))}, tmp_path / "trap.pth")
    message = r"trap\.pth: expected weights only, got a pickle that calls .*mkdir, which is not loaded"
    refused(message, "-w", tmp_path / "trap.pth", "-o", place / "bundle")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("channels: grey", "expected 3 channels as the network has, got grey"),
        ("activation: none", "activation: expected sigmoid or softmax for this network, got 'none'"),
        ("activation: softmax", "activation: expected sigmoid, or none .*, got softmax: it has one class"),
        ("layout: nhwc", "layout, output: expected neither for unet, whose are known, got nhwc"),
        ("output: mask", "layout, output: expected neither for unet, whose are known, got nchw, mask"),
        ("classes: [a, b]", "classes: expected 1 name as the network has classes, got 2"),
        ("meen: [0, 0, 0]", "unknown key 'meen': did you mean 'mean'"),
        ("!!python/object/apply:os.mkdir [sprung]", "expected YAML, got: could not determine a constructor"),
    ],
)
def test_contract_files_that_do_not_fit(refused, weights, place, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    refused(message, "-w", weights / "unet.pth", "-o", place / "bundle", "--contract", tmp_path / "mine.yaml")


def test_u2net_at_a_size_that_it_would_round_differently(refused, weights, place):
    message = "--imgsz: expected multiples of 32 for this network, got 48×64: take 64×64"
    refused(message, "-w", weights / "u2net.pth", "-o", place / "bundle", "--imgsz", "48x64")


def test_a_program_that_does_not_agree(refused, run, red_network, weights, place):
    red_network(lambda frames: 255 - frames[..., 2])
    arguments = ("-w", weights / "unet.pth", "-o", place / "bundle", "-q")
    refused(r"does not agree with the trained network in FP32 on 32 photographs .*0\.9900", *arguments)
    assert not list(place.iterdir())
    allowed = place.parent / "allowed"
    synthetic = ("--verify", "test://?size=640x360&frames=4&step=37")
    assert run(*arguments[:3], allowed, "--min-iou", "0", *synthetic)[0] == 0
    assert Bundle.read(allowed).manifest.verification["iou_mean"] < 0.1


def test_what_was_there_stays_when_the_new_one_fails(refused, run, red_network, weights, place):
    output = place.parent / "kept"
    assert run("-w", weights / "unet.pth", "-o", output, "--model", "first")[0] == 0
    red_network(lambda frames: 255 - frames[..., 2])
    refused("does not agree", "-w", weights / "unet.pth", "-o", output, "-q")
    assert Bundle.read(output).manifest.model == "first"
    assert {path.name for path in place.parent.iterdir()} == {"kept", "place"}


@pytest.mark.parametrize("kind", ["file", "folder with other files", "below a file"])
def test_destinations_that_are_refused_before_any_work(refused, monkeypatch, weights, tmp_path, kind):
    monkeypatch.setattr("compile.steps.open_network", lambda *_, **__: pytest.fail("work was done"))
    output = tmp_path / "place" if kind != "below a file" else tmp_path / "file" / "bundle"
    if kind == "folder with other files":
        output.mkdir()
        (output / "thesis.tex").write_text("years of work")
        message = "expected a new folder or a bundle to replace, got a folder with other files"
    else:
        (tmp_path / ("place" if kind == "file" else "file")).write_text("something")
        message = "expected a folder for the bundle, got a file" if kind == "file" else "cannot be written"
    before = sorted(tmp_path.rglob("*"))
    refused(message, "-w", weights / "unet.pth", "-o", output)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk(refused, red_network, monkeypatch, weights, place):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"cannot be written \(No space left on device\)"
    refused(message, "-w", weights / "unet.pth", "-o", place / "bundle", "-q")


def test_an_export_that_fails(refused, red_network, monkeypatch, weights, place):
    def export(*_):
        raise CompileError("the network cannot be exported to ONNX")

    monkeypatch.setattr(RedNetwork, "export", export)
    refused("cannot be exported", "-w", weights / "unet.pth", "-o", place / "bundle", "-q")


def test_ended_by_a_signal(run, red_network, weights, place):
    def reference(frames):
        os.kill(os.getpid(), signal.SIGTERM)
        return frames[..., 2]

    red_network(reference)
    assert run("-w", weights / "unet.pth", "-o", place / "bundle", "-q") == (143, "", "")
    assert not list(place.iterdir())


def test_a_bug_is_not_taken_for_a_mistake(run, monkeypatch, weights, place):
    def bug(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("compile.steps.open_network", bug)
    with pytest.raises(ZeroDivisionError):
        run("-w", weights / "unet.pth", "-o", place / "bundle")


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_told_with_the_command_that_installs_them(cli, weights, place, tmp_path, package):
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / f"{package}.py").write_text(f'raise ImportError("No module named {package!r}")')
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(tmp_path / "stubs"), str(root)))
    done = cli("compile", "-w", weights / "unet.pth", "-o", place / "bundle", env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: compiling needs packages that are not here (No module named '{package}'): "
        "install them with: pip install 'edgemask[compile]'\n"
    )
    assert not list(place.iterdir())


def test_the_manifest_is_plain_json(run, red_network, weights, place):
    assert run("-w", weights / "unet.pth", "-o", place / "bundle")[0] == 0

    def constant(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads((place / "bundle" / MANIFEST_NAME).read_text(), parse_constant=constant)
