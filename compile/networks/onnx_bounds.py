"""What a stranger's ONNX file may hold: it is parsed in a process with limits first, and what no network has is refused.

A few bytes may be a hundred million nodes, functions that call each other twice and so grow without end, or names of a hundred
megabytes. Whoever walks through the model afterwards may rely on what is checked here.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto

from pipeline.errors import CompileError, NotConvertibleError
from pipeline.own_process import module_command

MOST_NODES = 50_000
"""Of a file, functions written out: the largest networks of this kind have a third of it."""

MOST_DEPTH = 8
"""Of branches and loops in each other."""

MOST_LETTERS = 1000
"""Of a name."""

_MOST_SIDES = 32
_MOST_NUMBERS = 1 << 16
# Files that cannot hold more than a machine has, however they are written.
_SMALL = 4 << 20
_SECONDS = 120
_SPARE = 2 << 30  # the interpreter and its libraries


def check_parses(path: Path) -> None:
    """Parse a large file in a process that has memory for weights, but not for a hundred million nodes.

    Raises:
        CompileError: it does not fit.
    """
    size = path.stat().st_size
    if size <= _SMALL:
        return
    command = [*module_command(__name__), str(path), str(_SPARE + 6 * size)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise CompileError(
            f"{path}: expected an ONNX network, got a damaged file, or one that takes far more memory than its weights"
        )


def check_bounds(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that holds what no network has; what is not looked at is removed from it.

    Raises:
        NotConvertibleError: sparse weights.
        CompileError: too many nodes, too deep, names that are none, types that are unknown.
    """
    model.ClearField("training_info")
    left = MOST_NODES
    for graph in (model.graph, *model.functions):
        left -= _count(graph.node, left, 0, path)
    _check_functions(model, path)
    for text in (*_texts(model.graph.node, model.graph), *(t for f in model.functions for t in _texts(f.node, f))):
        if not isinstance(text, str) or len(text) > MOST_LETTERS or not text.isprintable():
            shown = repr(text[:40])
            raise CompileError(
                f"{path}: expected names of at most {MOST_LETTERS} printable letters, got one of {len(text)}: {shown}"
            )


def check_tensor(tensor: TensorProto, path: Path) -> None:
    """Refuse a tensor of an unknown type, or of more axes than there are.

    Raises:
        CompileError: it is so.
    """
    if tensor.data_type not in TensorProto.DataType.values() or len(tensor.dims) > _MOST_SIDES:
        raise CompileError(
            f"{path}: weights {tensor.name!r}: expected numbers of at most {_MOST_SIDES} axes, got type {tensor.data_type} with "
            f"{len(tensor.dims)}"
        )
    if any(not 0 <= side < 1 << 40 for side in tensor.dims):
        raise CompileError(f"{path}: weights {tensor.name!r}: expected sides of 0 or more, got {list(tensor.dims)}")


def attribute_graphs(attribute: AttributeProto) -> Sequence[onnx.GraphProto]:
    """The branches and bodies that an attribute holds."""
    return [attribute.g, *attribute.graphs] if attribute.HasField("g") else list(attribute.graphs)


def _count(nodes: Sequence[onnx.NodeProto], left: int, depth: int, path: Path) -> int:
    """How many nodes there are, in branches and loops too; those are also checked one by one."""
    count = len(nodes)
    if count > left:
        raise CompileError(f"{path}: expected at most {MOST_NODES} nodes, got more")
    if depth > MOST_DEPTH:
        raise CompileError(f"{path}: expected at most {MOST_DEPTH} branches and loops in each other, got more")
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise NotConvertibleError(f"{path}: {node.name[:80]!r}: expected dense weights, got sparse ones")
            if max(len(attribute.ints), len(attribute.floats), len(attribute.strings)) > _MOST_NUMBERS:
                raise CompileError(
                    f"{path}: {node.name[:80]!r}: expected attributes of at most {_MOST_NUMBERS} numbers, got more"
                )
            for graph in attribute_graphs(attribute):
                if graph.sparse_initializer:
                    raise NotConvertibleError(f"{path}: {node.name[:80]!r}: expected dense weights, got sparse ones")
                count += _count(graph.node, left - count, depth + 1, path)
    return count


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, or that are too large when they are written out."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    if not functions:
        return

    def size(nodes: Sequence[onnx.NodeProto], above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in above or len(above) > MOST_DEPTH * 4:
                raise CompileError(
                    f"{path}: expected functions that end, got {node.op_type[:80]!r}, which calls itself"
                )
            if key in functions:
                if key not in sizes:
                    sizes[key] = size(functions[key].node, (*above, key))
                total += sizes[key]
            total += 1 + sum(size(graph.node, above) for one in node.attribute for graph in attribute_graphs(one))
            if total > MOST_NODES:
                raise CompileError(f"{path}: expected at most {MOST_NODES} nodes with functions written out, got more")
        return total

    size(model.graph.node, ())


def _texts(nodes: Sequence[onnx.NodeProto], holder: onnx.GraphProto | onnx.FunctionProto) -> Iterator[str]:
    yield holder.name
    if isinstance(holder, onnx.GraphProto):
        yield from (value.name for value in (*holder.input, *holder.output))
        yield from (tensor.name for tensor in holder.initializer)
    else:
        yield from (*holder.input, *holder.output)
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for graph in attribute_graphs(attribute):
                yield from _texts(graph.node, graph)


def _main(arguments: Sequence[str]) -> int:
    memory = int(arguments[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        onnx.load_model(arguments[0], load_external_data=False)
    except Exception:  # noqa: BLE001  the parent tells it
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
