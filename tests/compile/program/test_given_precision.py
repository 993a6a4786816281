# Networks that another tool quantized or halved: what they are is told, and a reference in FP32 judges them.

import copy
import json
import warnings

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from compile.__main__ import main
from compile.networks.onnx_file import nodes_of, tensors_of
from compile.networks.onnx_precision import precision_of
from compile.options import BuildOptions
from compile.program.batch import takes_batch
from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.errors import CompileError, OptionError, ShapeError

SIZE = 48


class Redness(nn.Module):
    """Where red is more than green, seen through a few convolutions that keep it."""

    def __init__(self, sharpness=40.0):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.mix, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 1, 1),
        )
        with torch.no_grad():
            for layer in (self.wide, self.mix):
                layer.weight.mul_(0.05), layer.bias.zero_()
            self.wide.weight[0, 0], self.wide.weight[1, 1] = 1 / 9, 1 / 9
            self.mix.weight[0, 0, 1, 1] = self.mix.weight[1, 1, 1, 1] = 1.0
            self.head.weight.zero_(), self.head.bias.zero_()
            self.head.weight[0, 0], self.head.weight[0, 1] = sharpness, -sharpness

    def forward(self, x):
        return self.head(self.mix(self.wide(x).relu()).relu())


class Alone(nn.Module):
    """The same with shapes that hold for one picture: its rows are one long line in between."""

    def __init__(self):
        super().__init__()
        self.network = Redness()

    def forward(self, x):
        y = self.network(x)[0]
        return y.reshape(1, 1, SIZE, SIZE) + 0 * x.mean()


def exported(network, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.randn(1, 3, SIZE, SIZE),)
        torch.onnx.export(network.eval(), example, str(path), dynamo=False, opset_version=17, **options)
    return path


def quantized(source, target, pictures, **options):
    class Reader(CalibrationDataReader):
        def __init__(self):
            images = torch.from_numpy(pictures(8, SIZE, SIZE, seed=5)[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
            name = onnx.load(source).graph.input[0].name
            self._left = iter([{name: image[None].numpy()} for image in images])

        def get_next(self):
            return next(self._left, None)

    quantize_static(str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, **options)
    return target


@pytest.fixture(scope="module")
def place(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    exported(Redness(), folder / "fp32.onnx", input_names=["picture"], dynamic_axes={"picture": {0: "n"}})
    exported(Redness(-40.0), folder / "other.onnx")
    exported(Alone(), folder / "alone.onnx")
    quantized(folder / "fp32.onnx", folder / "int8.onnx", pictures, weight_type=QuantType.QInt8, per_channel=True)
    onnx.save(convert_float_to_float16(onnx.load(folder / "fp32.onnx")), folder / "fp16.onnx")
    torch.export.save(torch.export.export(Redness().eval(), (torch.randn(1, 3, SIZE, SIZE),)), folder / "fp32.pt2")
    (folder / "judged").mkdir()
    for index, picture in enumerate(pictures(8, 60, 80, seed=2)):
        cv2.imwrite(str(folder / "judged" / f"{index}.png"), picture)
    (folder / "mine.yaml").write_text(f"imgsz: {SIZE}\nfilter: bilinear\nactivation: sigmoid\n")
    return folder


@pytest.fixture
def compiled(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))

    def run(name, *options, status=0):
        arguments = ["-w", place / name, "-o", tmp_path / "bundle", "--contract", place / "mine.yaml"]
        arguments += ["--verify", place / "judged", *options]
        assert main([str(argument) for argument in arguments]) == status
        said = capsys.readouterr()
        return (Bundle.read(tmp_path / "bundle") if status == 0 else None), said.out + said.err

    return run


def masks_of(bundle, frames):
    session = onnxruntime.InferenceSession(str(bundle.program_path), providers=["CPUExecutionProvider"])
    return session.run(["masks"], {"frames": frames})[0]


def expected_masks(frames, sharpness=40.0):
    x = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        scores = Redness(sharpness).eval()(F.interpolate(x, (SIZE, SIZE), mode="bilinear") / 255).sigmoid()
    return (F.interpolate(scores, frames.shape[1:3], mode="bilinear")[:, 0] * 255).round().numpy()


def iou(one, other):
    one, other = one > 127, other > 127
    return (one & other).sum() / (one | other).sum()


# --- INT8


def test_int8_goes_through_as_it_is(compiled, pictures):
    bundle, said = compiled("int8.onnx")
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.verification["against"] == "itself, the INT8 network of int8.onnx"
    assert "int8 compared with itself" in said
    assert "nothing was proven: give the network in FP32 with --reference" in said
    assert "agrees" not in said
    assert "slower" not in said  # whether it is, who quantized it knows
    types = {node.op_type for node in onnx.load(bundle.program_path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types
    frames = pictures(6, 60, 80, seed=3)
    expected = expected_masks(frames)
    assert 0.2 < (expected > 127).mean() < 0.8
    assert iou(masks_of(bundle, frames), expected) > 0.95
    assert takes_batch(onnx.load(bundle.program_path))


@pytest.mark.parametrize("reference", ["fp32.onnx", "fp32.pt2"])
def test_a_reference_judges_it(place, compiled, reference):
    bundle, said = compiled("int8.onnx", "--reference", place / reference, "--min-iou", "0.9")
    assert bundle.manifest.verification["against"] == f"{reference} in FP32"
    assert f"int8 agrees with {reference} in FP32 on 8 frames" in said
    assert 0.9 < bundle.manifest.verification["iou_mean"] < 1.0  # what was compared is not the same network


def test_a_reference_that_sees_something_else(place, compiled):
    _, said = compiled("int8.onnx", "--reference", place / "other.onnx", status=2)
    (line,) = [line for line in said.splitlines() if "does not agree" in line]
    assert "other.onnx in FP32" in line
    assert "compile the network in FP32, with --precision int8, or allow it with" in line


@pytest.mark.parametrize("precision", ["fp16", "auto"])
def test_another_precision_of_int8_is_refused(compiled, precision):
    _, said = compiled("int8.onnx", "--precision", precision, status=2)
    assert "--precision: expected none for" in said
    assert f"which is INT8 already, got {precision}: leave it out" in said


def test_int8_of_int8_is_refused(place, compiled):
    _, said = compiled("int8.onnx", "--precision", "int8", "--calib", place / "judged", status=2)
    assert "which is INT8 already, got int8" in said


def test_a_reference_is_fp32(place, compiled):
    _, said = compiled("int8.onnx", "--reference", place / "int8.onnx", status=2)
    assert "--reference: expected a network in FP32, got INT8 in" in said
    _, said = compiled("int8.onnx", "--reference", place / "nothing.onnx", status=2)
    assert "nothing.onnx: expected" in said
    with pytest.raises(OptionError, match="--bundle: expected no --reference"):
        BuildOptions(bundle="b", target="tensorrt", reference="x.onnx")


def test_dynamic_quantization_with_operators_of_integers(place, compiled, tmp_path, pictures):
    quantize_dynamic(str(place / "fp32.onnx"), str(place / "dynamic.onnx"), op_types_to_quantize=["Conv"])
    bundle, _ = compiled("dynamic.onnx", "--reference", place / "fp32.onnx", "--min-iou", "0.8")
    assert bundle.manifest.precision == "int8"
    assert "ConvInteger" in {node.op_type for node in onnx.load(bundle.program_path).graph.node}
    # Its scale is that of all that it gets: in a batch each picture would depend on the others.
    assert not takes_batch(onnx.load(bundle.program_path))
    frames = pictures(1, 60, 80, seed=3)
    assert iou(masks_of(bundle, frames), expected_masks(frames)) > 0.9


def test_fp8_has_no_word(place):
    model = onnx.load(place / "fp32.onnx")
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [1], [0.0]))
    with pytest.raises(CompileError, match="n: expected a network in FP32, FP16 or INT8, got weights of FLOAT8E4M3FN"):
        precision_of(nodes_of(model), tensors_of(model), "n")


def test_weights_of_int8_alone_are_int8(place):
    model = onnx.load(place / "fp32.onnx")
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight)
    step = np.float32(np.abs(values).max() / 127)
    levels = np.round(values / step).astype(np.int8)
    model.graph.initializer.extend([numpy_helper.from_array(levels, "levels"), numpy_helper.from_array(step, "step")])
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["levels", "step"], [weight.name]))
    model.graph.initializer.remove(weight)
    assert precision_of(nodes_of(model), tensors_of(model), "n.onnx") == "int8"


# --- FP16


def test_fp16_stays_fp16(compiled, pictures, place):
    bundle, said = compiled("fp16.onnx")
    assert bundle.manifest.precision == "fp16"
    assert "fp16 compared with itself, the FP16 network of fp16.onnx" in said
    frames = pictures(6, 60, 80, seed=3)
    assert iou(masks_of(bundle, frames), expected_masks(frames)) > 0.99
    weights = [t for t in onnx.load(bundle.program_path).graph.initializer if np.prod(t.dims) > 50]
    assert weights
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}
    bundle, said = compiled("fp16.onnx", "--reference", place / "fp32.onnx")
    assert "fp16 agrees with fp32.onnx in FP32" in said


def test_fp16_for_a_cpu_is_computed_in_fp32(compiled):
    bundle, said = compiled("fp16.onnx", "--target", "onnxruntime")
    assert bundle.manifest.precision == "fp32"
    assert "fp32 compared with itself" in said  # its weights are what somebody halved


def test_fp16_can_be_quantized(place, compiled):
    options = ["--precision", "int8", "--calib", place / "judged", "--verify", place / "judged"]
    bundle, said = compiled("fp16.onnx", *options, "--reference", place / "fp32.onnx", "--min-iou", "0.9")
    assert bundle.manifest.precision in ("int8", "fp16")
    assert "agrees with fp32.onnx in FP32" in said


# --- one picture at a time


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_for_one_picture_has_a_program_for_one_frame(compiled, pictures, precision):
    options = ["--pixels", "nv12"] if precision == "fp16" else []
    bundle, said = compiled("alone.onnx", "--precision", precision, *options, "--compose", "device")
    assert bundle.manifest.precision == precision
    assert "takes one picture at a time" in said
    program = onnx.load(bundle.program_path)
    assert not takes_batch(program)
    assert {value.type.tensor_type.shape.dim[0].dim_value for value in program.graph.output} == {1}
    if precision == "fp32":
        frames = pictures(1, 60, 80, seed=3)
        session = onnxruntime.InferenceSession(str(bundle.program_path))
        (mask,) = session.run(["masks"], {"frames": frames, "look": np.zeros(6, np.float32)})
        assert np.abs(mask.astype(int) - expected_masks(frames)).max() <= 1
        with open_engine(bundle, "onnxruntime") as engine:
            assert engine(frames).shape == (1, 60, 80)
            with pytest.raises(ShapeError, match=r"expected one at a time, .* got 3"):
                engine(np.repeat(frames, 3, axis=0))


def test_a_batch_of_a_network_for_one_picture_is_refused(place, compiled):
    options = BuildOptions(
        weights=place / "alone.onnx", output="b", contract=str(place / "mine.yaml"), target="torch-tensorrt", batch=4
    )
    from compile.steps import open_trained

    with pytest.raises(OptionError, match=r"--batch: expected 1, for the network of .*alone.onnx takes one .* got 4"):
        open_trained(options)


def test_as_it_is_a_baked_batch_is_found(place, compiled):
    """A network that cannot be brought into layers, in whose shapes one picture is written."""
    for name, source in (("one", "alone.onnx"), ("many", "fp32.onnx")):
        model = copy.deepcopy(onnx.load(place / source))
        (end,) = [node for node in model.graph.node if model.graph.output[0].name in node.output]
        end.output[0] = "scores"
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zeros"))
        picture = model.graph.input[0]
        model.graph.node.extend(
            [
                helper.make_node("Det", [picture.name], ["det"]),
                helper.make_node("ReduceMean", ["det"], ["mean"], keepdims=0),
                helper.make_node("Mul", ["mean", "zeros"], ["nothing"]),
                helper.make_node("Add", ["scores", "nothing"], [model.graph.output[0].name]),
            ]
        )
        picture.type.tensor_type.shape.dim[0].dim_value = 1  # what the file says is not what its nodes ask for
        onnx.save(model, place / f"det_{name}.onnx")
        bundle, said = compiled(f"det_{name}.onnx")
        assert "FP32 alone" in said
        assert takes_batch(onnx.load(bundle.program_path)) == (name == "many")
        frames = np.full((1, 60, 80, 3), 90, np.uint8)
        assert masks_of(bundle, frames).shape == (1, 60, 80)


def test_exported_programs_of_one_picture(place, compiled):
    bundle, said = compiled("fp32.pt2", "--precision", "fp16")
    assert bundle.manifest.precision == "fp16"
    program = onnx.load(bundle.program_path)
    # Nothing in it asks for one picture; where something does, it is told.
    assert takes_batch(program) or "takes one picture at a time" in said


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.parametrize("says_so", [True, False])
def test_a_batch_for_a_bundle_of_one_picture_is_refused(compiled, tmp_path, capsys, says_so):
    bundle, _ = compiled("alone.onnx")
    if not says_so:  # as programs of old did not
        model = onnx.load(bundle.program_path)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        manifest = json.loads((bundle.folder / "manifest.json").read_text())
        Bundle.write(bundle.folder, Bundle.read(bundle.folder).manifest, {"program.onnx": model.SerializeToString()})
        assert manifest["model"] == "alone"
    arguments = ["--bundle", str(bundle.folder), "--target", "tensorrt-rtx", "--sm", "86", "--batch", "4"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "--batch: expected 1, for the network of" in said
    assert "got 4" in said
    assert not Bundle.read(bundle.folder).manifest.engines


def test_int8_needs_an_end(place, monkeypatch):
    """A quantized network is run within limits before it is trusted."""
    from compile.networks import onnx_graph
    from compile.program.open_network import open_network

    called = []
    real = onnx_graph.compute
    monkeypatch.setattr(onnx_graph, "compute", lambda *a, **k: called.append(a) or real(*a, **k))
    open_network(place / "int8.onnx", str(place / "mine.yaml"))
    assert len(called) == 1
    with pytest.raises(CompileError):
        open_network(place / "int8.onnx", str(place / "nothing.yaml"))


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_a_plan_of_int8_as_onnx_runtime_writes_it(place, compiled, pictures):
    """Biases are INT32 there, which TensorRT does not dequantize: the program has them in FP32, and gives the same."""
    options = {"ActivationSymmetric": True, "WeightSymmetric": True}
    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantized(place / "fp32.onnx", place / "symmetric.onnx", pictures, extra_options=options, **kinds)
    held = {tensor.name: tensor.data_type for tensor in onnx.load(place / "symmetric.onnx").graph.initializer}
    assert TensorProto.INT32 in held.values()
    bundle, _ = compiled("symmetric.onnx", "--target", "tensorrt-rtx", "--sm", "86", "--frame", "60x80")
    assert bundle.manifest.verification["mae"] < 1e-4
    assert [entry.runtime for entry in bundle.manifest.engines] == ["tensorrt-rtx"]
    program = onnx.load(bundle.program_path).graph
    constants = {tensor.name: tensor.data_type for tensor in program.initializer}
    read = [constants.get(node.input[0]) for node in program.node if node.op_type == "DequantizeLinear"]
    assert TensorProto.INT8 in read
    assert TensorProto.INT32 not in read
