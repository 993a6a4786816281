# Files that attack: each ends in one line, in a process that may have little memory, and soon.

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compile.networks import onnx_bounds
from compile.networks.onnx_file import read_whole
from compile.networks.onnx_runtime import LimitedSession
from compile.program.open_network import open_network
from pipeline.errors import CompileError, EdgemaskError

SIDE = 16
WEIGHT = np.ones((1, 3, 1, 1), np.float32)
ROOT = Path(__file__).parents[3]
CONV = helper.make_node("Conv", ["x", "w"], ["c"])
MINE = helper.make_opsetid("mine", 1)


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs, outputs, **attributes)


def value(name, kind=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, tensors=None, functions=(), last="c"):
    some = {"w": WEIGHT, **(tensors or {})}
    graph = helper.make_graph(
        [CONV, *nodes, node("Identity", [last], ["y"])],
        "network",
        [value("x", shape=[1, 3, SIDE, SIDE])],
        [value("y", shape=[1, 1, SIDE, SIDE])],
        initializer=[numpy_helper.from_array(np.asarray(array), name) for name, array in some.items()],
    )
    opsets = [helper.make_opsetid("", 18), MINE]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def saved(path, model):
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(path, model, message):
    with pytest.raises(EdgemaskError, match=message) as caught:
        read_whole(saved(path, model))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


@pytest.fixture
def path(tmp_path):
    return tmp_path / "n.onnx"


def functions_that_grow(count, first="Relu"):
    opset = helper.make_opsetid("", 18)
    made = [helper.make_function("mine", "f0", ["a"], ["b"], [node(first, ["a"], ["b"])], [opset])]
    for number in range(1, count):
        calls = [node(f"f{number - 1}", [a], [b], domain="mine") for a, b in (("a", "t"), ("t", "b"))]
        made.append(helper.make_function("mine", f"f{number}", ["a"], ["b"], calls, [opset, MINE]))
    return made


@pytest.mark.parametrize("last", ["c", "z"], ids=["unused", "used"])
def test_functions_that_double(path, last):
    model = model_of([node("f24", ["c"], ["z"], domain="mine")], functions=functions_that_grow(25), last=last)
    refused(path, model, "at most 50000 nodes with functions written out")
    deep = model_of([node("f59", ["c"], ["z"], domain="mine")], functions=functions_that_grow(60), last=last)
    refused(path, deep, "expected functions")


def test_a_function_that_calls_itself(path):
    opsets = [helper.make_opsetid("", 18), MINE]
    function = helper.make_function("mine", "f", ["a"], ["b"], [node("f", ["a"], ["b"], domain="mine")], opsets)
    refused(path, model_of([node("f", ["c"], ["z"], domain="mine")], functions=[function]), "expected functions")


def test_functions_as_exporters_write_them_are_read(path):
    read_whole(
        saved(path, model_of([node("f3", ["c"], ["z"], domain="mine")], functions=functions_that_grow(4), last="z"))
    )


def with_empty_nodes(count):
    """A model as bytes, with so many nodes of two bytes each."""
    body, length = b"\x0a\x00" * count, bytearray()
    size = len(body)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return model_of([]).SerializeToString() + b"\x3a" + bytes(length) + body


def test_a_million_nodes(path):
    refused(path, with_empty_nodes(10**6), "expected at most 50000 nodes")


def test_thirty_million_nodes_are_not_parsed_here(path):
    """What they take is taken in a process that may not have it; this one stays small."""
    saved(path, with_empty_nodes(30 * 10**6))
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom compile.networks.onnx_file import read_whole\n"
        "from pipeline.errors import CompileError\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, resource.RLIM_INFINITY))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_whole(Path(sys.argv[1]))\nexcept CompileError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=300, cwd=ROOT, check=True
    )
    said, grown_kib = done.stdout.splitlines()
    assert "far more memory than its weights" in said or "expected at most 50000 nodes" in said
    assert int(grown_kib) < 200 << 10 or "50000" in said


def test_a_large_file_of_weights_is_read(path):
    read_whole(saved(path, model_of([], {"large": np.zeros((1 << 21,), np.float32)})))
    assert path.stat().st_size > onnx_bounds._SMALL


@pytest.mark.parametrize(
    "name", ["a\nb", "red\x1b[31m", "q" * 2000, "e" * (8 << 20)], ids=["line", "color", "long", "huge"]
)
@pytest.mark.parametrize("place", ["op_type", "node", "output", "function"])
def test_names_that_are_none(path, name, place):
    model = model_of([node("Relu", ["c"], ["z"])], functions=functions_that_grow(1))
    if place == "op_type":
        model.graph.node[1].op_type = name
    elif place == "node":
        model.graph.node[1].name = name
    elif place == "function":
        model.functions[0].node[0].op_type = name
    else:
        model.graph.node[1].output[0] = name
        model.graph.output.append(value(name))
    refused(path, model, "expected names of at most 1000 printable letters")


def test_names_that_are_no_text(path):
    content = model_of([node("Relu", ["c"], ["z"], name="QQQQ")]).SerializeToString()
    refused(path, content.replace(b"QQQQ", b"\xff\xfe\xfd\xfc"), "printable")


def test_branches_in_branches(path):
    inner = node("Identity", ["c"], ["d"])
    for depth in range(onnx_bounds.MOST_DEPTH + 1):
        branch = helper.make_graph([inner], f"b{depth}", [], [value(inner.output[0])])
        inner = node("If", ["yes"], [f"i{depth}"], then_branch=branch, else_branch=branch)
    refused(path, model_of([inner], {"yes": np.array(True)}), "at most 8 branches and loops in each other")


@pytest.mark.parametrize("where", ["graph", "attribute", "branch"])
def test_sparse_weights(path, where):
    sparse = onnx.SparseTensorProto(dims=[2**20, 2**20])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0]), "i"))
    model = model_of([])
    if where == "graph":
        model.graph.sparse_initializer.append(sparse)
    elif where == "attribute":
        model.graph.node.insert(1, node("Constant", [], ["s"], sparse_value=sparse))
    else:
        branch = helper.make_graph([node("Identity", ["c"], ["d"])], "b", [], [value("d")])
        branch.sparse_initializer.append(sparse)
        model.graph.node.insert(1, node("If", ["yes"], ["i"], then_branch=branch, else_branch=branch))
    refused(path, model, "expected dense weights, got sparse ones")


@pytest.mark.parametrize("lie", ["type", "axes", "zero", "huge", "ints"])
def test_tensors_that_lie(path, lie):
    model = model_of([node("Relu", ["c"], ["z"])])
    tensor = model.graph.initializer.add(name="q", data_type=1, dims=[1], raw_data=b"\0\0\0\0")
    message = "weights 'q': expected"
    if lie == "type":
        tensor.data_type = 99
    elif lie == "axes":
        tensor.dims.extend([1] * 100_000)
    elif lie == "zero":
        tensor.dims[:] = [0, 2**62, 2**62]
    elif lie == "huge":
        tensor.dims[:] = [2**40]
    else:
        model.graph.node[1].attribute.add(name="axes", type=onnx.AttributeProto.INTS, ints=[1] * 100_000)
        message = "attributes of at most"
    refused(path, model, message)


def test_a_type_of_input_that_is_none(path):
    model = model_of([])
    model.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(CompileError, match="got type 99"):
        open_network(saved(path, model), str(contract(path)))


def contract(path):
    (path.parent / "c.yaml").write_text(f"imgsz: {SIDE}\n")
    return path.parent / "c.yaml"


def test_weights_that_training_names_elsewhere_are_not_looked_at(path):
    model = model_of([])
    tensor = model.training_info.add().initialization.initializer.add(name="e", data_type=1, dims=[10], data_location=1)
    tensor.external_data.add(key="location", value="/etc/passwd")
    read, beside = read_whole(saved(path, model))
    assert (beside, len(read.training_info)) == ((), 0)


# --- what is only known when it runs


def computed(op_type):
    """A shape that no weight says: it is the product of two."""
    tensors = {
        "a": np.array([1, 1, 2**20, 1]),
        "b": np.array([1, 1, 1, 2**20]),
        "one": np.ones((1, 1, 1, 1), np.float32),
    }
    tensors |= {"zeros": np.zeros(4, np.int64), "end": np.array(2**40), "from": np.array(0), "by": np.array(1)}
    nodes = [node("Mul", ["a", "b"], ["s"])]
    nodes += {
        "ConstantOfShape": [node("ConstantOfShape", ["s"], ["big"])],
        "Expand": [node("Expand", ["one", "s"], ["big"])],
        "Tile": [node("Tile", ["one", "s"], ["big"])],
        "Resize": [node("Resize", ["one", "", "", "s"], ["big"])],
        "Pad": [node("Concat", ["zeros", "s"], ["p"], axis=0), node("Pad", ["one", "p"], ["big"])],
        "Range": [node("Range", ["from", "end", "by"], ["r"]), node("Cast", ["r"], ["big"], to=TensorProto.FLOAT)],
    }[op_type]
    nodes += [node("ReduceMean", ["big"], ["m"], keepdims=0), node("Add", ["c", "m"], ["z"])]
    return model_of(nodes, tensors, last="z")


@pytest.mark.parametrize("op_type", ["ConstantOfShape", "Expand", "Tile", "Resize", "Pad", "Range"])
def test_a_terabyte_that_is_computed(path, op_type):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EdgemaskError, match=op_type) as caught:
        open_network(saved(path, computed(op_type)), str(contract(path)))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


def looping(times):
    """A network that loops as often as a number says that is computed of the picture."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["goes"]), node("Identity", ["v"], ["w2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", shape=[])],
        [value("goes", TensorProto.BOOL, []), value("w2", shape=[])],
    )
    nodes = [
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Equal", ["most", "zero"], ["is_black"]),
        node("Where", ["is_black", "many", "few"], ["trip"]),
        node("Loop", ["trip", "yes", "zero"], ["v_end"], body=body),
        node("Add", ["c", "v_end"], ["z"]),
    ]
    tensors = {"zero": np.float32(0), "many": np.array(times), "few": np.array(1), "yes": np.array(True)}
    return model_of(nodes, tensors, last="z")


def test_a_loop_that_only_some_pictures_start(path):
    model = looping(2**62)
    picture, black = (np.full((1, 3, SIDE, SIDE), level, np.float32) for level in (0.5, 0.0))
    session = LimitedSession(model.SerializeToString(), "n.onnx", seconds=8)
    (scores,) = session.run(None, {"x": picture})
    np.testing.assert_allclose(scores, picture.sum(1, keepdims=True))
    with pytest.raises(CompileError, match=r"n\.onnx: expected ONNX Runtime to be done with it in 8 s, got no end"):
        session.run(None, {"x": black})
    with pytest.raises(CompileError, match=r"n\.onnx: "):
        session.run(None, {"x": picture})  # it has ended
    with pytest.raises(CompileError, match="cannot run it"):
        LimitedSession(model.SerializeToString(), "n.onnx").run(["nothing"], {"x": picture})
    with pytest.raises(CompileError, match="cannot run it"):
        LimitedSession(b"no model", "n.onnx")


def test_memory_that_only_some_pictures_ask_for(path):
    nodes = [
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Equal", ["most", "zero"], ["is_black"]),
        node("Where", ["is_black", "large", "small"], ["s"]),
        node("Expand", ["most", "s"], ["big"]),
        node("ReduceMean", ["big"], ["m"], keepdims=0),
        node("Add", ["c", "m"], ["z"]),
    ]
    tensors = {"zero": np.float32(0), "large": np.array([2**15, 2**16]), "small": np.array([1, 1])}
    model = model_of(nodes, tensors, last="z").SerializeToString()
    session = LimitedSession(model, "n.onnx", memory=4 << 30)
    session.run(None, {"x": np.ones((1, 3, SIDE, SIDE), np.float32)})
    with pytest.raises(CompileError, match=r"n\.onnx: ONNX Runtime cannot run it"):
        session.run(None, {"x": np.zeros((1, 3, SIDE, SIDE), np.float32)})
