# What is inside a bundle: counted against torch and by hand, told of damaged and hostile ones, and of plans as their runtime sees them.

import copy
import dataclasses
import json
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calibration.inference_form import fold_norms
from compile.inspect.engine_layers import EngineLayer, read_layers, with_times
from compile.inspect.program import read_program
from compile.networks.contract import Contract
from compile.program.onnx_export import export_program
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import MANIFEST_NAME, PROGRAM_NAME, Bundle, Manifest
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.errors import CompileError, PlanError

PLAN = "engines/tensorrt-10.3-sm87-fp16.plan"
ENTRY = {
    "file": PLAN,
    "runtime": "tensorrt",
    "version": "10.3.0.30",
    "sms": [87],
    "hardware": "same",
    "version_compatible": False,
    "device": "Orin",
    "profile": [[1, 64, 64, 3], [1, 720, 1280, 3], [4, 2160, 3840, 3]],
    "dla_core": None,
    "gpu_layers": [],
    "float_scales": False,
    "size_bytes": 4,
}


@pytest.fixture
def look(run):
    """``look(DIR, …)``: what is printed, which fits its width."""

    def look(*arguments):
        status, said, errors = run(*arguments)
        assert (status, errors) == (0, "")
        assert max(len(line) for line in said.splitlines()) <= 110
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
        return said

    return look


@pytest.fixture
def read(run):
    """``read(DIR, …)``: the JSON, which is all that is printed."""

    def read(*arguments):
        status, said, errors = run(*arguments, "--json")
        assert (status, errors) == (0, "")
        return json.loads(said)

    return read


@pytest.fixture
def with_plan(tmp_path, red_bundle):
    """``with_plan(version="…", …)``: the folder of a bundle with a plan that has this entry."""

    def add(**changed):
        manifest = dataclasses.replace(red_bundle.manifest, engines=(PlanEntry.from_dict({**ENTRY, **changed}),))
        files = {PROGRAM_NAME: red_bundle.program_path.read_bytes(), PLAN: b"plan"}
        return Bundle.write(tmp_path / "planned", manifest, files).folder

    return add


@pytest.fixture
def copied(tmp_path, red_bundle):
    """``copied({"name": b"content"})``: the folder of a bundle with these files beside the program, or in its place."""

    def make(files=None, **manifest):
        content = {PROGRAM_NAME: red_bundle.program_path.read_bytes(), **(files or {})}
        changed = dataclasses.replace(red_bundle.manifest, **manifest)
        return Bundle.write(tmp_path / "copied", changed, content).folder

    return make


def model(nodes, inputs, outputs, weights=(), values=()):
    """An ONNX program as bytes; ``inputs`` and the others: (name, type, shape), weights: arrays by name."""
    infos = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs, values)]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights]
    graph = helper.make_graph(nodes, "test", infos[0], infos[1], tensors, value_info=infos[2])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10).SerializeToString()


def layer_of(content, operation="Conv"):
    (layer,) = [layer for layer in read_program(content).layers if layer.operation == operation]
    return layer


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


# --- the program


def work_of(network, height, width):
    """Multiply-accumulates by layer, as torch runs it."""
    work, handles = {}, []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):

            def count(module, inputs, output, name=name):
                used = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
                work[name] = used.numel() * module.weight[0].numel()

            handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        network.logits(torch.zeros(1, 3, height, width))
    for handle in handles:
        handle.remove()
    return work


KEPT = "up1.conv.double_conv.0"


@pytest.fixture(scope="module")
def half_bundle(tiny_unet, tmp_path_factory):
    """A bundle of ``tiny_unet(2)`` in FP16 with one layer kept in FP32."""
    program = FrameProgram(copy.deepcopy(tiny_unet(2)), Contract("stream", (32, 48)), half=True, keep=(KEPT,))
    verification = {"iou_mean": 0.99912, "iou_worst": 0.98, "worst_frame": "0145", "mae": 0.0001, "frames": 4}
    told = {"source": "frames of pictures/*.jpg", "against": "the trained network", "runtime": "CPU"}
    manifest = Manifest(
        model="unet",
        task="classes",
        classes=("background", "road"),
        network_size_hw=(32, 48),
        precision="fp16",
        contract={"name": "stream"},
        weights={"file": "unet.pth", "sha256": "ab" * 32, "family": "unet", "architecture": "unet"},
        tools={"torch": "2"},
        created="2026-01-01T00:00:00+00:00",
        layers={KEPT: "fp32"},
        verification={**verification, **told},
    )
    folder = tmp_path_factory.mktemp("bundles") / "half"
    return Bundle.write(folder, manifest, {PROGRAM_NAME: export_program(program).SerializeToString()})


def test_a_program_has_the_numbers_that_torch_counts(half_bundle, tiny_unet):
    network = tiny_unet(2)
    work, folded = work_of(network, 32, 48), fold_norms(copy.deepcopy(network))
    program = read_program(half_bundle.program_path.read_bytes())
    weighted = {layer.name: layer for layer in program.layers if layer.parameters}
    assert {name: layer.multiply_accumulates for name, layer in weighted.items()} == work
    assert {layer.operation for layer in weighted.values()} == {"Conv", "ConvTranspose"}
    for name, layer in weighted.items():
        count = sum(parameter.numel() for parameter in folded.get_submodule(name).parameters())
        precision, size_bytes = ("fp32", 4) if name == KEPT else ("fp16", 2)
        assert (layer.parameters, layer.weight_bytes, layer.precision) == (count, size_bytes * count, precision), name
    total = program.total
    assert (total.layers, total.unknown) == (len(program.layers), 0)
    assert total.multiply_accumulates == sum(work.values())
    assert total.parameters == sum(parameter.numel() for parameter in folded.parameters())
    for shares in (program.operations, program.precisions):
        assert sum(share.multiply_accumulates for share in shares) == total.multiply_accumulates
        assert sum(share.weight_bytes for share in shares) == total.weight_bytes
        assert sum(share.layers for share in shares) == total.layers
    assert (program.opset, program.batch, program.external) == (18, "N", 0)
    assert ("N", "H", "W") in {layer.output_shape for layer in program.layers}


def test_a_bundle_of_two_precisions_as_it_is_shown(look, half_bundle):
    said = look(half_bundle.folder)
    assert "weights     unet.pth (unet, unet) abababababab…\n" in said
    assert f"precision   fp16; fp32 in 1 layer: {KEPT}\n" in said
    assert "IoU 0.9991, worst 0.9800 (0145), MAE 0.00010 on 4 frames of pictures/*.jpg" in said
    assert re.search(r"multiply-accumulates for a frame: \d\d\.\d % in fp16, \d+\.\d % in fp32", said)
    assert "The 10 with the most work" in said
    assert re.search(rf"\n  {re.escape(KEPT)} +Conv +fp32 +N×\d+×4×6 +", look(half_bundle.folder, "--layers"))
    assert "f(H)" in look(half_bundle.folder, "--layers")


@pytest.mark.network
def test_the_published_network_has_the_published_numbers(u2netp_bundle):
    program = read_program(u2netp_bundle.program_path.read_bytes())
    (convolutions,) = [share for share in program.operations if share.parameters]
    assert (convolutions.name, convolutions.layers) == ("Conv", 119)
    # Published with a bias for each normalised channel, which is the convolution's own now.
    makers = {layer.node: layer for layer in program.layers}
    model = onnx.load(u2netp_bundle.program_path)
    before = {output: node.name for node in model.graph.node for output in node.output}
    normalised = [makers[before[node.input[0]]] for node in model.graph.node if node.op_type == "Relu"]
    assert program.total.parameters + sum(layer.output_shape[1] for layer in normalised) == 1_128_333
    assert program.total.multiply_accumulates == 19_756_089_600


# --- the program: by hand


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("how", ["stored", "in the graph", "cast after"])
def test_a_convolution_of_quantized_values_is_int8(how, half):
    dtype = np.float16 if half and how != "cast after" else np.float32
    output_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weights = [("scale", np.array(0.5, dtype)), ("zero", np.array(0, np.int8))]
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
    ]
    if how == "in the graph":
        weights.append(("w", ones(4, 3, 3, 3, dtype=dtype)))
        nodes.append(helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["wq"]))
    else:
        weights.append(("wq", ones(4, 3, 3, 3, dtype=np.int8)))
    nodes.append(helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wd"]))
    used = ["xd", "wd"]
    if how == "cast after":
        nodes += [helper.make_node("Cast", [name], [f"{name}c"], to=output_type) for name in used]
        used = [f"{name}c" for name in used]
    nodes.append(helper.make_node("Conv", used, ["masks"], pads=[1, 1, 1, 1]))
    frames = ("frames", TensorProto.UINT8, ["N", 3, 8, 8])
    layer = layer_of(model(nodes, [frames], [("masks", output_type, None)], weights))
    assert (layer.precision, layer.parameters, layer.multiply_accumulates) == ("int8", 108, 64 * 108)
    assert layer.weight_bytes == 108 * (np.dtype(dtype).itemsize if how == "in the graph" else 1)


def test_a_convolution_with_weights_alone_in_int8_is_not():
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "scale"], ["wd"]),
        helper.make_node("Conv", ["x", "wd"], ["y"]),
    ]
    weights = [("wq", ones(4, 3, 1, 1, dtype=np.int8)), ("scale", np.array(0.5, np.float32))]
    layer = layer_of(
        model(nodes, [("x", TensorProto.FLOAT, ["N", 3, 8, 8])], [("y", TensorProto.FLOAT, None)], weights)
    )
    assert (layer.precision, layer.weight_bytes) == ("fp32", 12)


X = ("x", TensorProto.FLOAT, ["N", 6, 5, 7])


@pytest.mark.parametrize(
    ("node", "weights", "parameters", "work"),
    [
        (("Conv", {"group": 3}), [("w", ones(12, 2, 3, 3)), ("b", ones(12))], 228, 12 * 3 * 5 * 2 * 9),
        (("ConvTranspose", {"group": 2, "strides": [2, 2]}), [("w", ones(6, 4, 2, 2))], 96, 6 * 5 * 7 * 4 * 4),
        (("MatMul", {}), [("w", ones(7, 11))], 77, 6 * 5 * 11 * 7),
        (("Add", {}), [("w", ones(6, 1, 1))], 6, 0),
        (("Add", {}), [("w", ones(1))], 0, 0),  # a number of the program's own
        (("PRelu", {}), [("w", ones(6, 1, 1))], 6, 0),
        (("Sub", {}), [("w", ones(6, 1, 1))], 0, 0),  # the contract's mean
    ],
)
def test_numbers_of_an_operation(node, weights, parameters, work):
    name, attributes = node
    made = helper.make_node(name, ["x", *(weight for weight, _ in weights)], ["y"], **attributes)
    layer = layer_of(model([made], [X], [("y", TensorProto.FLOAT, None)], weights), name)
    assert (layer.parameters, layer.multiply_accumulates, layer.weight_bytes) == (parameters, work, 4 * parameters)


@pytest.mark.parametrize("transposed", [0, 1])
def test_work_of_a_matrix_product_that_may_be_transposed(transposed):
    made = helper.make_node("Gemm", ["a", "w"], ["y"], transA=transposed, transB=1)
    a = ("a", TensorProto.FLOAT, [5, 3] if transposed else [3, 5])
    layer = layer_of(model([made], [a], [("y", TensorProto.FLOAT, None)], [("w", ones(7, 5))]), "Gemm")
    assert (layer.output_shape, layer.multiply_accumulates) == ((3, 7), 3 * 5 * 7)


def test_work_on_a_length_that_nobody_knows_is_unknown(look, copied):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="first")]
    x = ("x", TensorProto.FLOAT, ["N", 3, "2*Max(1, H//2)", None])
    content = model(nodes, [x], [("y", TensorProto.FLOAT, None)], [("w", ones(4, 3, 1, 1))])
    program = read_program(content)
    assert program.layers[0].multiply_accumulates is None
    assert (program.total.multiply_accumulates, program.total.unknown) == (0, 1)
    said = look(copied({PROGRAM_NAME: content}))
    assert "no multiply-accumulates for a frame; and those of 1 layer of unknown size" in said
    assert re.search(r"w +Conv +fp32 +N×4×\?×\? +12 +48 B +\? +–\n", said)


def test_weights_that_two_layers_share_are_counted_once():
    nodes = [helper.make_node("Conv", [name, "w"], [after]) for name, after in (("x", "y"), ("y", "z"))]
    content = model(nodes, [X], [("z", TensorProto.FLOAT, None)], [("w", ones(6, 6, 1, 1))])
    program = read_program(content)
    assert [layer.parameters for layer in program.layers] == [36, 36]
    assert (program.total.parameters, program.total.weight_bytes) == (36, 144)


def test_weights_in_constants_and_in_branches_are_found():
    def branch(name):
        constant = helper.make_node(
            "Constant", [], [f"{name}_w"], value=numpy_helper.from_array(ones(6, 6, 20, 20), "value")
        )
        conv = helper.make_node("Conv", ["x", f"{name}_w"], [name], name=name, pads=[10, 10, 9, 9])
        return helper.make_graph([constant, conv], name, [], [helper.make_tensor_value_info(name, 1, None)])

    node = helper.make_node("If", ["which"], ["y"], then_branch=branch("yes"), else_branch=branch("no"))
    content = model([node], [X, ("which", TensorProto.BOOL, [])], [("y", TensorProto.FLOAT, None)])
    program = read_program(content)
    assert [(layer.operation, layer.parameters) for layer in program.layers] == [
        ("If", 0),
        ("Conv", 14400),
        ("Conv", 14400),
    ]
    assert program.layers[1].multiply_accumulates == 14400 * 5 * 7


def test_weights_in_other_files_are_told_and_left_alone(look, copied):
    content = onnx.ModelProto.FromString(
        model([helper.make_node("Conv", ["x", "w"], ["y"])], [X], [("y", TensorProto.FLOAT, None)])
    )
    tensor = content.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[6, 6, 1, 1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/dev/zero")
    program = read_program(content.SerializeToString())
    assert (program.external, program.total.parameters) == (1, 36)
    assert "WARNING     1 tensor in other files, which nothing checks" in look(
        copied({PROGRAM_NAME: content.SerializeToString()})
    )


def test_a_custom_operation_and_a_function_are_named_and_not_followed():
    nodes = [helper.make_node("Magic", ["x"], ["y"], domain="mine")]
    content = onnx.ModelProto.FromString(model(nodes, [X], [("y", TensorProto.FLOAT, None)]))
    content.opset_import.append(helper.make_opsetid("mine", 1))
    endless = helper.make_node("Magic", ["a"], ["b"], domain="mine")
    content.functions.append(
        helper.make_function("mine", "Magic", ["a"], ["b"], [endless], [helper.make_opsetid("mine", 1)])
    )
    (layer,) = read_program(content.SerializeToString()).layers
    assert (layer.operation, layer.precision, layer.output_shape) == ("mine::Magic", "fp32", None)


@pytest.mark.parametrize("content", [b"", b"no ONNX at all", b"\x00" * 100])
def test_what_is_no_program_is_told(look, read, copied, content):
    with pytest.raises(CompileError, match="expected an ONNX program, got"):
        read_program(content)
    folder = copied({PROGRAM_NAME: content})
    assert re.search(r"layers +not shown:\s", look(folder))  # a long path goes to the next line
    assert read(folder)["program"] is None


# --- the bundle and its files


def test_a_sound_bundle(look, class_bundle):
    said = look(class_bundle.folder)
    assert said.startswith(f"Bundle {class_bundle.folder}\n")
    assert "3 classes: background, road, car\n" in said
    assert "any size; 1×1 inside the network (height × width)\n" in said
    assert re.search(r"program\.onnx +\d+ B +fits its sha256\n", said)
    assert "agreement   not checked\n" in said
    assert "Gather×1" in said
    assert "Plan" not in said


def test_json_has_the_same_keys_always(read, class_bundle, with_plan):
    report = read(class_bundle.folder)
    assert list(report) == ["folder", "manifest", "files", "program", "program_problem", "int8", "plans"]
    assert report["manifest"]["classes"] == ["background", "road", "car"]
    assert list(report["files"][0]) == ["name", "state", "size_bytes", "expected", "sha256"]
    assert report["files"][0]["sha256"] == report["manifest"]["files"][PROGRAM_NAME]
    program = report["program"]
    keys = ["opset", "producer", "batch", "layers", "total", "operations", "precisions", "external"]
    assert list(program) == keys
    numbers = ["parameters", "weight_bytes", "multiply_accumulates"]
    assert list(program["layers"][0]) == ["name", "node", "operation", "precision", "output_shape", *numbers]
    assert list(program["total"]) == ["name", "layers", *numbers, "unknown"]
    assert program["layers"][-1]["output_shape"] == ["N", "H", "W"]
    (plan,) = read(with_plan())["plans"]
    assert list(plan) == ["file", "entry", "engine", "problem"]
    assert plan["entry"] == ENTRY


def test_damaged_missing_and_other_files_are_told_with_status_0(look, read, copied):
    folder = copied({"engines/a.plan": b"a", "engines/b.plan": b"b"})
    (folder / "engines" / "a.plan").write_bytes(b"changed")
    (folder / "engines" / "b.plan").unlink()
    (folder / "engines" / "a.plan.sm89.cache").write_bytes(b"cache")
    os.mkfifo(folder / "pipe")
    (folder / PROGRAM_NAME).write_bytes((folder / PROGRAM_NAME).read_bytes() + b"\x08\x0a")
    states = {file["name"]: file["state"] for file in read(folder)["files"]}
    assert states == {
        PROGRAM_NAME: "damaged",
        "engines/a.plan": "damaged",
        "engines/b.plan": "missing",
        MANIFEST_NAME: "unlisted",
        "pipe": "unreadable",
        "engines/a.plan.sm89.cache": "unlisted",
    }
    said = look(folder)
    assert re.search(r"engines/a\.plan +7 B +DAMAGED: expected sha256 ca978112ca1b…, got \w{12}…\n", said)
    assert re.search(r"engines/b\.plan +– +MISSING\n", said)
    assert re.search(r"manifest\.json +\d+ B +–\n", said)
    assert "not in the manifest\n" in said


def edit(folder, change):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    change(manifest)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\x00b", "a\ud800b", "x" * 5000, "engines", ""])
def test_names_that_no_file_of_a_bundle_has_are_not_read(look, read, copied, name):
    folder = copied({"engines/a.plan": b"a"})
    (folder.parent / "secret").write_bytes(b"secret")
    edit(folder, lambda manifest: manifest["files"].update({name: "0" * 64}))
    (file,) = [file for file in read(folder)["files"] if file["name"] == name]
    assert file["state"] in ("outside", "unreadable")
    assert file["sha256"] is None
    assert ("OUTSIDE the bundle, not read" in look(folder)) is (file["state"] == "outside")


def test_a_bundle_that_gives_orders_to_the_terminal_is_only_shown(look, read, copied):
    orders = "\x1b]0;owned\x07\x9b31m\r\n\u202ebackwards"
    node = helper.make_node("Gather", ["frames", "red"], ["masks"], name=orders, axis=3)
    frames = ("frames", TensorProto.UINT8, ["N", "H", orders, 3])
    content = model([node], [frames], [("masks", TensorProto.UINT8, None)], [("red", np.array(2))])
    damaged = {"runtime": orders, "file": orders, "device": orders, "gpu_layers": 7, "dla_core": orders}
    folder = copied(
        {PROGRAM_NAME: content},
        model=orders,
        classes=(orders,),
        layers={orders: orders},
        weights={"file": orders, "sha256": 3},
        verification={"iou_mean": orders, "mae": [orders]},
        tools={orders: orders},
        engines=(PlanEntry.from_dict(damaged),),
    )
    said = look(folder)
    assert "backwards" in said
    assert "\u202e" not in said
    report = read(folder)
    assert report["manifest"]["model"] == orders
    assert report["manifest"]["engines"] == [damaged]


def test_what_is_no_bundle_is_refused_in_one_line(run, tmp_path, copied):
    file = tmp_path / "file"
    file.write_text("text")
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (tmp_path / "nothing", file, empty):
        status, said, errors = run(place)
        assert (status, said) == (2, "")
        assert re.fullmatch(
            r"error: .*: expected a bundle, a folder with manifest\.json, cannot read it \(.*\n", errors
        )
    folder = copied()
    (folder / MANIFEST_NAME).write_text("{")
    assert re.fullmatch(r"error: .*manifest\.json: expected JSON.*\n", run(folder)[2])
    (folder / MANIFEST_NAME).write_text(" " * (1 << 21))
    assert re.fullmatch(r"error: .*manifest\.json: expected at most 1048576 bytes, got more.*\n", run(folder)[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: DIR"),
        (["a", "b"], "unrecognized arguments: b"),
        (["a", "--bogus"], "unrecognized arguments: --bogus"),
        (["a", "--times"], "--times: expected one argument"),
        (["a", "--times", "-1"], "--times: expected one argument|--times: expected a number"),
        (["a", "--times", "ten"], "--times: expected a number from 0 to 10000, got 'ten'"),
        (["a", "--times", "10001"], "--times: expected a number from 0 to 10000, got '10001'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(run, arguments, message):
    status, said, errors = run(*arguments)
    assert (status, said) == (2, "")
    assert re.fullmatch(r"error: .*\n", errors)
    assert re.search(message, errors)


def test_without_onnx_it_says_what_to_install(run, monkeypatch, red_bundle):
    for name in [name for name in sys.modules if name.startswith("compile.inspect.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, said, errors = run(red_bundle.folder)
    assert (status, said) == (2, "")
    assert re.fullmatch(r"error: .*onnx.*: install them with: pip install 'edgemask\[compile\]'\n", errors)


def test_as_a_module_without_torch(cli, red_bundle, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('a Jetson has none')")
    path = os.pathsep.join((str(tmp_path), os.getcwd()))
    done = cli("compile.inspect", red_bundle.folder, "--json", env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["manifest"]["model"] == "red"


# --- plans


def test_a_plan_that_cannot_be_loaded_here_is_told_with_the_reason(look, read, with_plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pipeline.engines.tensorrt", raising=False)
    monkeypatch.delitem(sys.modules, "pipeline.engines.cuda_device", raising=False)
    folder = with_plan(hardware="ampere+", version_compatible=True, float_scales=True)
    said = look(folder)
    assert f"Plan {PLAN}\n" in said
    assert "TensorRT 10.3.0.30, or a later one, on GPUs of compute capability 8.7 and any from 8.0 on\n" in said
    assert "built on    Orin\n" in said
    assert "1 of 64×64 to 4 of 2160×3840, usually 1 of 720×1280\n" in said
    assert "size        4 B, fits its sha256\n" in said
    assert "INT8 scales FP32" in said
    assert "agreement   not checked on a GPU\n" in said
    assert re.search(r"not shown: backend 'tensorrt' cannot be loaded here \(.*pycuda", said)
    (plan,) = read(folder)["plans"]
    assert plan["engine"] is None
    assert "\n" not in plan["problem"]


def test_a_plan_of_an_accelerator_that_was_checked(look, with_plan):
    folder = with_plan(
        profile=[[1, 720, 1280, 3]] * 3,
        dla_core=1,
        gpu_layers=[f"resize {number}" for number in range(10)],
        verification={"iou_mean": 0.9987, "runtime": "TensorRT 10.3.0.30, Orin (8.7)"},
    )
    (folder / PLAN).write_bytes(b"other")
    said = look(folder)
    assert "1 of 720×1280 alone\n" in said
    assert "core 1, 10 layers left to the GPU: resize 0, " in said
    assert "resize 7 and 2 more\n" in said
    assert "agreement   IoU 0.9987" in said
    assert "size        4 B, DAMAGED: expected sha256 " in said


def test_frames_of_nv12_are_told_by_their_size(look, with_plan):
    said = look(with_plan(profile=[[1, 3, 2], [1, 1080, 1280], [4, 3240, 3840]]))
    assert "1 of 2×2 to 4 of 2160×3840, usually 1 of 720×1280\n" in said


def test_layers_of_a_torch_program_are_not_shown(look, with_plan):
    said = look(with_plan(runtime="torch-tensorrt"))
    assert "runs with   Torch-TensorRT 10.3.0.30" in said
    assert "not shown: layers are shown of plans for TensorRT and TensorRT-RTX, not for Torch-TensorRT" in said


# As TensorRT 10 writes it: format and type in one text, control characters as they are, names of frames' tensors at the end.
LAYERS_10_3 = """{"Layers": [{
  "Name": "Reformatting CopyNode for Input Tensor 0 to conv1 + relu1",
  "LayerType": "Reformat",
  "Inputs": [{"Name": "frames", "Location": "Device",
    "Dimensions": [1,720,1280,3], "Format/Datatype": "Row major UINT8"}],
  "Outputs": [{"Name": "x", "Location": "Device",
    "Dimensions": [1,3,64,64], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
  "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x00000000000003e8", "StreamId": 0, "Metadata": ""
},{
  "Name": "conv1 + relu1",
  "LayerType": "CaskConvolution",
  "Inputs": [{"Name": "x", "Location": "Device",
    "Dimensions": [1,3,64,64], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "Outputs": [{"Name": "y", "Location": "Device",
    "Dimensions": [1,8,64,64], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
  "ParameterType": "Convolution", "Kernel": [3,3], "Weights": {"Type": "Int8", "Count": 216}, "Bias": {"Type": "Float", "Count": 8},
  "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8f16", "TacticValue": "0x11bde0e1d9f2f35d", "StreamId": 0,
  "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"
},{
  "Name": "PWN(PWN(sigmoid), mul)",
  "LayerType": "PointWiseV2",
  "Inputs": [{"Name": "y", "Location": "Device",
    "Dimensions": [-1,8,64,64], "Format/Datatype": "N/A due to dynamic shapes"}],
  "Outputs": [{"Name": "masks", "Location": "Device",
    "Dimensions": [-1,64,64], "Format/Datatype": "Row major linear FP32"}],
  "TacticValue": "0x0000000000000002"
}],
"Bindings": ["frames", "masks"]
}"""
# As TensorRT 11 writes it: format and type apart, and more about frames' tensors.
LAYERS_11 = """{"Layers": [{
  "Name": "__myl_ConvRelu_myl0_1", "LayerType": "conv",
  "Inputs": [{"Name": "x", "Dimensions": [1,3,64,64], "DataType": "Half", "Format": "Row major linear FP16 format (kLINEAR)"}],
  "Outputs": [{"Name": "y", "Dimensions": [1,8,64,64], "DataType": "Float", "Format": "Row major linear FP32 format (kLINEAR)"}],
  "TacticName": "sm90_xmma_fprop", "StreamId": 0, "Metadata": "[ONNX Layer: conv1]\\u001e[ONNX Layer: relu1]\\u001e[ONNX Layer: conv1]"
}],
"I/O Tensors": [{"Name": "frames", "IOMode": "Input", "DataType": "UInt8", "Dimensions": [1,-1,-1,3], "Location": "Device",
  "IsShapeInferenceIO": false, "ProfileInfo": [{"MinShape": [1,64,64,3], "OptShape": [1,720,1280,3], "MaxShape": [1,2160,3840,3]}]}]
}"""
# As TensorRT-RTX writes it: kernels of its compiler alone.
LAYERS_RTX = """{"Layers": [
  {"Name": "__myl_Fc_myl1_2", "LayerType": "kgen", "Inputs": [{"Name": "y", "Dimensions": [1,8], "Format/Datatype": "Half"}],
   "Outputs": [{"Name": "z", "Dimensions": [1,8], "Format/Datatype": "Half"}],
   "TacticName": "__myl_Fc_0x1", "Metadata": "[ONNX Layer: mul]"},
  {"Name": "shape_call", "LayerType": "shape_call",
   "Inputs": [], "Outputs": [{"Name": "n", "Dimensions": [1], "Format/Datatype": "Int64"}]}
], "Bindings": ["frames", "masks"]}"""
NODES = {"conv1", "relu1", "sigmoid", "mul"}


def test_layers_of_tensorrt_10():
    reformat, convolution, pointwise = read_layers(LAYERS_10_3, NODES)
    assert (reformat.type, reformat.nodes, reformat.precision) == ("Reformat", (), "uint8")
    assert reformat.outputs[0].precision == "fp16"
    assert (convolution.type, convolution.nodes) == ("CaskConvolution", ("conv1", "relu1"))
    assert (convolution.precision, convolution.outputs[0].precision) == ("int8", "fp16")
    assert convolution.inputs[0].format == "Thirty-two wide channel vectorized row major Int8 format"
    assert convolution.inputs[0].shape == (1, 3, 64, 64)
    assert convolution.tactic == "sm80_xmma_fprop_implicit_gemm_interleaved_i8f16"
    assert (pointwise.nodes, pointwise.precision, pointwise.tactic) == (
        ("sigmoid", "mul"),
        "fp32",
        "0x0000000000000002",
    )
    assert (pointwise.inputs[0].precision, pointwise.inputs[0].shape) == (None, (-1, 8, 64, 64))


def test_layers_of_tensorrt_11_and_rtx():
    (convolution,) = read_layers(LAYERS_11, NODES)
    assert (convolution.nodes, convolution.precision) == (("conv1", "relu1"), "fp16")
    assert convolution.outputs[0].precision == "fp32"
    assert convolution.outputs[0].format == "Row major linear FP32 format (kLINEAR)"
    kernel, sizes = read_layers(LAYERS_RTX, NODES)
    assert (kernel.type, kernel.nodes, kernel.precision) == ("kgen", ("mul",), "fp16")
    assert (sizes.nodes, sizes.precision, sizes.tactic) == ((), "int64", None)


def test_layers_of_a_plan_that_was_built_without_details():
    layers = read_layers(
        '{"Layers": ["Reformatting CopyNode for conv1", "conv1 + relu1", "other"], "Bindings": []}', NODES
    )
    assert [(layer.name, layer.nodes, layer.type, layer.precision) for layer in layers] == [
        ("Reformatting CopyNode for conv1", (), None, None),
        ("conv1 + relu1", ("conv1", "relu1"), None, None),
        ("other", (), None, None),
    ]


def test_layers_in_words_that_nobody_knows_are_still_layers():
    text = (
        '{"Layers": [{}, 7, {"Name": 3, "Inputs": "x", "Outputs": 4, "Weights": "w", "Metadata": null},'
        ' {"Inputs": [5, {"Dimensions": "?", "Format": null}]}]}'
    )
    assert [layer.precision for layer in read_layers(text, NODES)] == [None] * 4


@pytest.mark.parametrize("text", ["", "Layers:", "[]", '{"Layers": 3}', "[" * 100_000])
def test_what_is_no_list_of_layers_is_told(text):
    with pytest.raises(CompileError, match="TensorRT's inspector: expected"):
        read_layers(text, NODES)


def test_times_belong_to_layers_by_name():
    layers = [EngineLayer("a"), EngineLayer("b"), EngineLayer("a")]
    timed = with_times(layers, {"a": [1.0, 2.0], "new": [0.25, 0.25, 0.25, 0.25]}, 2)
    assert [(layer.name, layer.mean_ms, layer.time_share) for layer in timed] == [
        ("a", 1.5, 0.75),
        ("b", None, None),
        ("a", None, None),
        ("new", 0.5, 0.25),
    ]
    assert with_times(layers, {"a": [0.0]}, 1)[0].time_share is None


class LoadedEngine:
    """An engine that loaded its plan."""

    description = "TensorRT 10.3.0.30, Orin (8.7)"
    layers_json = LAYERS_10_3

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def inspect(self):
        return SimpleNamespace(layers_json=self.layers_json, weights_bytes=None, activation_bytes=2_500_000)

    def profile_layers(self, runs):
        return {"conv1 + relu1": [3.0] * runs, "PWN(PWN(sigmoid), mul)": [1.0] * runs}


@pytest.fixture
def loaded(monkeypatch, with_plan):
    """A bundle with a plan that this machine can load."""

    def open_it(bundle, runtime):
        assert [entry.runtime for entry in bundle.manifest.engines] == [runtime]
        return LoadedEngine()

    monkeypatch.setattr("compile.inspect.report.open_engine", open_it)
    return with_plan()


def test_a_plan_that_was_loaded(look, read, loaded):
    said = look(loaded)
    assert "loaded by   TensorRT 10.3.0.30, Orin (8.7)\n" in said
    assert "GPU memory  2.5 MB between layers\n" in said
    assert "3 layers for 2 of the program's 3; 1 of them for more than one\n" in said
    assert "1 layer in uint8, 1 layer in int8, 1 layer in fp32\n" in said
    assert re.search(r"conv1 \+ relu1 +CaskConvolution +int8→fp16 +2 +sm80_xm\S+…\S+i8f16\n", said)
    assert "uint8→fp16" in said
    assert " ms" not in said
    (plan,) = read(loaded)["plans"]
    assert plan["problem"] is None
    assert [layer["mean_ms"] for layer in plan["engine"]["layers"]] == [None] * 3
    assert (plan["engine"]["runs"], plan["engine"]["total_ms"]) == (0, None)


def test_times_of_a_plan_slowest_first(look, read, loaded):
    said = look(loaded, "--times", "5")
    assert "4.000 ms, mean of 5 frames of the usual size" in said
    assert "1 layer in int8 (75.0 % of the time)" in said
    assert re.search(
        r"\n  conv1 \+ relu1 .* 3\.0000 +75\.0 %\n  PWN\(.* 1\.0000 +25\.0 %\n  Reformatti….* – +–\n", said
    )
    in_order = look(loaded, "--times", "5", "--layers")
    assert in_order.index("Reformatti…") < in_order.index("conv1 + relu1  ") < in_order.index("PWN(")
    (plan,) = read(loaded, "--times", "5")["plans"]
    assert (plan["engine"]["runs"], plan["engine"]["total_ms"]) == (5, 4.0)
    assert plan["engine"]["layers"][1]["time_share"] == 0.75


def test_an_inspector_that_cannot_be_understood_is_told_beside_the_plan(look, loaded, monkeypatch):
    monkeypatch.setattr(LoadedEngine, "layers_json", "nothing known")
    assert "not shown: TensorRT's inspector: expected JSON" in look(loaded)


def test_each_plan_is_opened_alone_and_refused_for_its_own_reason(look, with_plan, monkeypatch):
    def refuse(bundle, runtime):
        (entry,) = bundle.manifest.engines
        raise PlanError(f"expected {runtime}, got {entry.version}")

    monkeypatch.setattr("compile.inspect.report.open_engine", refuse)
    folder = with_plan()
    second = {**ENTRY, "runtime": "tensorrt-rtx", "version": "1.7", "file": "engines/other.plan"}
    edit(folder, lambda manifest: manifest["engines"].append(second))
    said = look(folder)
    assert "not shown: expected tensorrt, got 10.3.0.30\n" in said
    assert "not shown: expected tensorrt-rtx, got 1.7\n" in said
    assert "not in the manifest's list of files\n" in said
