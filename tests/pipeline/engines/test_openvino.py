"""OpenVINO's own ways; ``test_contract`` has what every backend must do."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.engines.onnxruntime import OnnxRuntimeEngine
from pipeline.errors import BackendUnavailableError, BundleError

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("openvino")


@pytest.fixture
def kinds(openvino):
    """The module of the backend."""
    import pipeline.engines.openvino

    return pipeline.engines.openvino


@pytest.fixture
def needs_bf16(kinds):
    if "BF16" not in kinds._CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no BF16")


def frames(count, height=8, width=12):
    return [np.full((1, height, width, 3), (10, 20, 5 * index), np.uint8) for index in range(count)]


def test_as_many_are_in_flight_as_it_asks_for_and_one_that_waits(red_bundle, kinds):
    with kinds.OpenVinoEngine(red_bundle, at_once=2) as engine:
        (requests,) = engine._compiled.values()
        assert requests.compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT"
        assert engine.in_flight == requests.count + 1 > 1
        given = frames(4 * engine.in_flight)
        for one in given[: engine.in_flight - 1]:
            engine.submit(one)
        for index, one in enumerate(given[engine.in_flight - 1 :]):
            engine.submit(one)
            np.testing.assert_array_equal(engine.collect(), given[index][..., 2])
    with kinds.OpenVinoEngine(red_bundle) as engine:
        (requests,) = engine._compiled.values()
        assert requests.compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
        assert engine.in_flight == 1


def test_what_is_not_collected_does_not_keep_it_from_ending(red_bundle, kinds):
    engine = kinds.OpenVinoEngine(red_bundle, at_once=2)
    for one in frames(engine.in_flight):
        engine.submit(one)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.collect()


def test_sizes_are_compiled_once_and_the_oldest_is_forgotten(red_bundle, kinds, monkeypatch):
    monkeypatch.setattr(kinds.OpenVinoEngine, "one_size", True)
    with kinds.OpenVinoEngine(red_bundle) as engine:
        for height in (4, 5, 6, 7, 8, 8, 7):
            (given,) = frames(1, height)
            np.testing.assert_array_equal(engine(given), given[..., 2])
        assert [shape for shape, _ in engine._compiled] == [(1, height, 12, 3) for height in (5, 6, 7, 8)]


def test_masks_of_a_real_network_are_those_of_onnx_runtime(u2netp_bundle, kinds):
    given = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), np.uint8).repeat(9, 1).repeat(9, 2)
    with OnnxRuntimeEngine(u2netp_bundle) as reference, kinds.OpenVinoEngine(u2netp_bundle) as engine:
        expected = reference(given)
        assert np.abs(engine(given).astype(int) - expected).max() <= 2
        assert engine.description.endswith(", CPU, FP32")
        assert engine._compiled[None, False].compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_what_it_compiled_is_found_again(red_bundle, kinds):
    def loaded():
        with kinds.OpenVinoEngine(red_bundle) as engine:
            return engine._compiled[None, False].compiled.get_property("LOADED_FROM_CACHE")

    assert not loaded()
    assert loaded()
    blobs = list((Path(os.environ["EDGEMASK_CACHE"]) / "openvino").glob("*.blob"))
    for blob in blobs:  # damage is no error
        blob.chmod(0o600)
        blob.write_bytes(blob.read_bytes()[:100])
    assert blobs
    assert not loaded()


def test_a_cache_that_cannot_be_written_is_done_without(red_bundle, kinds, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "file"))
    with kinds.OpenVinoEngine(red_bundle) as engine:
        (given,) = frames(1)
        np.testing.assert_array_equal(engine(given), given[..., 2])


@pytest.mark.parametrize("backend", ["openvino-gpu", "openvino-npu"])
def test_a_device_that_is_not_here_is_told(red_bundle, kinds, backend):
    device = backend[-3:].upper()
    if any(name.startswith(device) for name in kinds._CORE.available_devices):
        pytest.skip(f"an Intel {device} is here")
    with pytest.raises(BackendUnavailableError, match=rf"expected an Intel {device} and its driver, got CPU"):
        open_engine(red_bundle, backend)


def test_a_precision_that_the_processor_has_not_is_told(red_bundle, kinds):
    core = kinds._CORE
    if "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor computes in FP16")
    with pytest.raises(BackendUnavailableError, match="expected a CPU that computes in FP16, got one for"):
        kinds.OpenVinoEngine(red_bundle, precision="f16")


@pytest.fixture
def summing_bundle(red_bundle, tmp_path):
    """A recurrent bundle: masks are the sum of red of all frames so far."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "third"], ["red"], axis=3),
        helper.make_node("Add", ["red", "state/sum"], ["next/sum"]),
        helper.make_node("Cast", ["next/sum"], ["masks"], to=TensorProto.UINT8),
    ]
    state, following = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 12]) for name in ("state/sum", "next/sum")
    )
    graph = helper.make_graph(
        nodes,
        "summing",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, 8, 12, 3]), state],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, [1, 8, 12]), following],
        initializer=[helper.make_tensor("third", TensorProto.INT64, [], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    manifest = dataclasses.replace(red_bundle.manifest, contract={"state": {"sum": "sum2"}})
    return Bundle.write(tmp_path / "summing", manifest, {PROGRAM_NAME: model.SerializeToString()})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_each_source_has_its_own_state(summing_bundle, backend):
    with open_engine(summing_bundle, backend, overlap=True) as engine:
        assert (engine.keeps_state, engine.one_at_a_time, engine.in_flight) == (True, True, 1)
        states = engine.new_state(), engine.new_state()
        for number in range(1, 5):
            for factor, state in enumerate(states, 1):
                engine.submit(np.full((1, 8, 12, 3), factor, np.uint8), None, state)
                assert (engine.collect() == factor * number).all()


def test_a_state_without_its_pair_is_refused(summing_bundle, red_bundle, tmp_path):
    wrong = dataclasses.replace(summing_bundle.manifest, contract={})
    bundle = Bundle.write(tmp_path / "wrong", wrong, {PROGRAM_NAME: summing_bundle.program_path.read_bytes()})
    with pytest.raises(BundleError, match="expected an input and an output of one size for each state"):
        open_engine(bundle, "openvino")


def test_it_reports_to_nobody(openvino, tmp_path):
    """Imported as it is, it writes down a number for this machine and sends a report."""
    home = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(openvino.__file__).parents[1]}",
    }
    # In the automatic runs of many services it holds still by itself.
    for name in ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "JENKINS_URL"):
        home.pop(name, None)
    ask = "import sys, pipeline.engines.openvino; print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    done = subprocess.run([sys.executable, "-c", ask], env=home, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert list(tmp_path.iterdir()) == []


def test_auto_finds_out_whether_it_is_the_fastest_and_keeps_that(red_bundle, said):
    """With the real ones; which of them it is, this machine says."""
    given = [np.full((1, 40, 60, 3), 0, np.uint8) for _ in range(90)]
    for number, frame in enumerate(given):
        frame[:, 5:25, 5 + number % 20 : 35 + number % 20, 2] = 255
    with open_engine(red_bundle, overlap=True, tune=True) as engine:
        for frame in given:
            np.testing.assert_array_equal(engine(frame), frame[..., 2])
        taken = engine.description
    (line,) = [line for line in said if line.startswith("--backend auto: a frame takes ")]
    assert "onnxruntime" in line
    assert "openvino f32" in line
    with open_engine(red_bundle, overlap=True) as engine:
        assert engine.description == taken


def layered(tmp_path, kept=()):
    """Four convolutions of one channel with a bias each, a resize before the third and a step beside it: their weights have names."""
    rng = np.random.default_rng(0)
    constants = {"three": np.array([3.0], np.float32), "sizes": np.array([1, 1, 16, 24], np.int64)}
    for index in range(4):
        constants[f"network.layer{index}.weight"] = rng.normal(size=(1, 3 if index == 0 else 1, 3, 3)).astype(
            np.float32
        )
        constants[f"network.layer{index}.bias"] = rng.normal(size=1).astype(np.float32)

    def layer(index, given, gives):
        names = [f"network.layer{index}.{kind}" for kind in ("weight", "bias")]
        return helper.make_node("Conv", [given, *names], [gives], f"layer{index}", pads=[1, 1, 1, 1])

    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["x"], perm=[0, 3, 1, 2]),
        layer(0, "x", "a"),
        helper.make_node("Relu", ["a"], ["b"], "relu0"),
        layer(1, "b", "c"),
        helper.make_node("Relu", ["c"], ["d"], "relu1"),
        helper.make_node("Resize", ["d", "", "", "sizes"], ["e"], "resize", mode="linear"),
        layer(2, "e", "f"),
        helper.make_node("Relu", ["f"], ["g"], "relu2"),
        layer(3, "g", "h"),
        helper.make_node("Squeeze", ["h", "one"], ["s"]),
        helper.make_node("Mul", ["s", "three"], ["t"], "scale"),
        helper.make_node("Clip", ["t", "zero", "most"], ["u"]),
        helper.make_node("Cast", ["u"], ["masks"], to=TensorProto.UINT8),
    ]
    constants |= {"one": np.array([1]), "zero": np.array(0, np.float32), "most": np.array(255, np.float32)}
    graph = helper.make_graph(
        nodes,
        "layered",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, 8, 12, 3])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, [1, 16, 24])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "layered.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def types_of(program):
    """In what each layer and each step that has a name is computed."""
    return {
        node.get_friendly_name().removesuffix("/WithoutBiases"): node.output(0).get_element_type().get_type_name()
        for node in program.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "Relu", "Interpolate", "Multiply")
    }


def test_in_bf16_the_ends_stay_fp32_and_what_the_bundle_names_with_what_it_takes(kinds, tmp_path):
    from pipeline.engines.openvino_bf16 import in_bf16

    path = layered(tmp_path)
    read = kinds._CORE.read_model
    everywhere = read(path)
    in_bf16(everywhere, ())
    single = {"layer0": "f32", "relu0": "bf16", "layer3": "f32", "scale": "f32", "relu2": "f32"}
    assert types_of(everywhere) == single | {"layer1": "bf16", "relu1": "bf16", "resize": "bf16", "layer2": "bf16"}
    kept = read(path)
    in_bf16(kept, ["layer2"])
    # What a layer takes must be as exact as what it computes.
    assert types_of(kept) == single | {"layer1": "bf16", "relu1": "f32", "resize": "f32", "layer2": "f32"}
    given = np.random.default_rng(1).integers(0, 256, (1, 8, 12, 3), np.uint8)
    exact, rounded, less = (
        next(iter(kinds._CORE.compile_model(one, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given).values())).astype(
            int
        )
        for one in (read(path), everywhere, kept)
    )
    assert np.ptp(exact) > 100
    assert np.abs(rounded - exact).mean() <= 2
    assert np.abs(less - exact).mean() <= np.abs(rounded - exact).mean()


def halved(path):
    """The same in FP16 but for its ends, as the build half writes it: each layer in a module that converts for it."""
    model = onnx.load(path)
    first = {"numbers": "half_numbers", "t": "single_t"}  # what is FP16 from here, and what is FP32 again
    for node in model.graph.node:
        if node.op_type != "Cast":
            node.input[:] = [first.get(name, name) for name in node.input]
        node.input[:] = [_in_module(name) for name in node.input]
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and tensor.name not in ("zero", "most"):
            value = value.astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, _in_module(tensor.name)))
    half = helper.make_node("Cast", ["numbers"], ["half_numbers"], to=TensorProto.FLOAT16)
    single = helper.make_node("Cast", ["t"], ["single_t"], to=TensorProto.FLOAT)
    model.graph.node.insert(1, half)
    names = [node.name for node in model.graph.node]
    model.graph.node.insert(names.index("scale") + 1, single)
    onnx.checker.check_model(model)
    onnx.save(model, path.with_name("halved.onnx"))
    return path.with_name("halved.onnx")


def _in_module(name):
    head, dot, kind = name.rpartition(".")
    return f"{head}.layer.{kind}" if dot else name


def test_a_program_of_fp16_is_bf16_where_that_of_fp32_is(kinds, tmp_path):
    from pipeline.engines.openvino_bf16 import in_bf16

    path = layered(tmp_path)
    programs = [kinds._CORE.read_model(one) for one in (path, halved(path))]
    assert types_of(programs[1])["layer2"] == "f16"
    for program in programs:
        in_bf16(program, ["layer2"])
    assert types_of(programs[0]) == types_of(programs[1])
    given = np.random.default_rng(1).integers(0, 256, (1, 8, 12, 3), np.uint8)
    one, other = (
        next(iter(kinds._CORE.compile_model(program, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given).values()))
        for program in programs
    )
    assert np.ptp(one.astype(int)) > 100
    assert np.abs(one.astype(int) - other).mean() <= 2


def test_a_bias_belongs_to_its_layer(kinds, tmp_path):
    """Rounded before a large bias is added, a layer would give values that are off by more."""
    from pipeline.engines.openvino_bf16 import in_bf16

    program = kinds._CORE.read_model(layered(tmp_path))
    in_bf16(program, ["layer2"])
    (bias,) = [node for node in program.get_ordered_ops() if node.get_friendly_name() == "layer1"]
    assert bias.get_type_name() == "Add"
    assert {source.get_element_type().get_type_name() for source in bias.input_values()} == {"bf16"}


@pytest.mark.parametrize("name", ["u2netp", "u2netp-fp16"])
def test_the_package_keeps_its_masks_in_bf16(kinds, needs_bf16, name):
    """Where OpenVINO would round everything, mean IoU with FP32 is 0.97."""
    from pipeline.builds.model_name import PUBLISHED
    from pipeline.engines.agreement import compare
    from pipeline.engines.photographs import photographs

    bundle = Bundle.read(PUBLISHED / name)
    assert bundle.manifest.layers
    with kinds.OpenVinoEngine(bundle) as exact, kinds.OpenVinoEngine(bundle, precision="bf16") as rounded:
        assert rounded.description.endswith("BF16")
        given = photographs(exact, 16)
        masks, expected = [[engine(one)[0] for one in given] for engine in (rounded, exact)]
        agreement = compare(masks, expected, "binary")
    assert agreement.problem({}, exact=False) == ""
    assert any((one != other).any() for one, other in zip(masks, expected, strict=True))
