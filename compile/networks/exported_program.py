"""A network in PyTorch, in memory or as ``torch.export.save`` wrote it (``.pt2``), in the one form of networks.

``torch.export.load`` is not safe for a stranger's file: it unpickles what the file says is pickled, loads compiled code that lies in
it, evaluates texts as expressions, and looks up the names of functions anywhere below ``torch``. So the file is read here first, once,
and what is handed on is a new archive in memory, with what was looked at and nothing else.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from compile.networks.layered import LayeredNetwork, check_elements, layered, safe_name, take_into
from pipeline.errors import CompileError, NotConvertibleError

MOST_BYTES = 2**31 - 1

# Of a text, whose objects take many times its bytes; and of parts of the archive.
_MOST_TEXT = 64 << 20
_MOST_PARTS = 100_000

_MODEL, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PLAIN = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/version|version|\.data/serialization_id|"
    r"data/weights/weight_\d+|data/constants/tensor_\d+)"
)
# ATen's operators, and Python's on numbers of a shape; "torch.ops.aten.conv2d.default".
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge)"
)
_EXPRESSION = re.compile(r"[\w+\-*/%(), .<>=]{1,200}")
_SYMBOL = re.compile(r"Symbol\('([su]\d+)'(, (positive|nonnegative|integer)=(True|False))*\)")
_NAMES = re.compile(r"[A-Za-z_]\w*")
_KNOWN_NAMES = re.compile(
    r"[su]\d+|Integer|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv|FloatTrueDiv|ModularIndexing|"
    r"oo|int_oo|true|false|True|False"
)


# For how many pictures at once a network is exported, at most.
_MOST_PICTURES = 64


def exported_network(path: str | Path, output: str | None = None) -> LayeredNetwork:
    """Read a ``.pt2`` file and make modules of its convolutions and linear layers.

    Args:
        path: as ``torch.export.save`` writes it; the network takes one tensor.
        output: as for ``with_layers``.

    Raises:
        CompileError: it is damaged, or carries what would be run when it is loaded.
        NotConvertibleError: it takes or gives something else.
    """
    path = Path(path)
    try:
        program = torch.export.load(io.BytesIO(_cleaned(path)))
        network = program.module(check_guards=False)
    except CompileError:
        raise
    except Exception as error:  # zip, JSON and PyTorch's loader share no exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CompileError(
            f"{path}: expected a file of torch.export.save, got one that is damaged ({reason})"
        ) from error
    if not isinstance(network, fx.GraphModule):
        raise NotConvertibleError(f"{path}: expected a graph, got {type(network).__name__}")
    return with_layers(network, str(path), output)


def layered_module(
    network: nn.Module,
    shape_chw: tuple[int, int, int],
    what: str,
    output: str | None = None,
    *,
    run: Callable[[Tensor], Any] | None = None,
) -> LayeredNetwork:
    """Follow a module through PyTorch, and make modules of its convolutions and linear layers, by their names in its state dict.

    Args:
        network: in evaluation mode, float32, on the CPU; takes (N, C, h, w), for any N; not changed.
        shape_chw: channels, height and width of its input.
        what: its name in messages.
        output: as for ``with_layers``.
        run: a method of it that gives what is wanted; None: the network itself.

    Raises:
        CompileError: it does not take such pictures, or cannot be followed.
        NotConvertibleError: it gives no tensor.
    """
    batch = {0: torch.export.Dim("N", min=1, max=_MOST_PICTURES)}
    whole = _Tensors(network, run or network.__call__)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own inside
            program = torch.export.export(whole, (torch.zeros(2, *shape_chw),), dynamic_shapes=(batch,))
        graph: Any = program.module(check_guards=False)
    except Exception as error:  # the network's own, or any of the exporter's
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        shape = "×".join(map(str, shape_chw))
        raise CompileError(
            f"{what}: expected a network that torch.export follows for pictures of {shape} (channels, height, width), any number at "
            f"once, got {type(error).__name__}: {reason}"
        ) from error
    made = with_layers(graph, what, output, inside="network.")
    x = torch.rand(1, *shape_chw)
    with torch.inference_mode():
        found, given = made(x), pytree.tree_leaves(whole(x))
    if not any(one.shape == found.shape and _agree(found, one) for one in given):
        raise NotConvertibleError(f"{what}: expected layers that give what the network gives, got others")
    return made


def _agree(found: Tensor, expected: Tensor) -> bool:
    finite = expected[torch.isfinite(expected)].float()
    return torch.allclose(
        found.float(), expected.float(), 0.0, 1e-3 * float(finite.abs().max()) if finite.numel() else 0.0, True
    )


class _Tensors(nn.Module):
    """A network that gives the tensors in what it gives by their names, whatever holds them."""

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self._run = network, run

    def forward(self, x: Tensor) -> Any:
        result = self._run(x)
        return result if isinstance(result, Tensor) else dict(_named(result, ""))


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif hasattr(value, "_asdict"):  # a named tuple
        items = value._asdict().items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif hasattr(value, "__dict__"):
        items = vars(value).items()
    for key, item in items:
        yield from _named(item, f"{name}.{key}" if name else str(key))


def with_layers(network: fx.GraphModule, what: str, output: str | None = None, *, inside: str = "") -> LayeredNetwork:
    """A graph of ATen's operators with its convolutions and linear layers as modules.

    Args:
        network: its weights are attributes.
        what: its name in messages.
        output: key or index of what is taken of several outputs, with dots where they are nested; None: the first that has the
            input's height and width, or both by one factor.
        inside: what is taken off the beginning of layers' names.

    Raises:
        NotConvertibleError: it takes more than one picture, or gives no tensor.
        CompileError: it has no such output.
    """
    root, graph = fx.GraphModule({}, fx.Graph()), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    pictures = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(pictures) != 1:
        raise NotConvertibleError(f"{what}: expected a network with one input, got {len(pictures)}")
    result: Any = None
    for node in network.graph.nodes:
        if node.op == "output":
            result = _scores(network, node, what, output)
        elif node.op == "call_module":
            continue  # checks of the input's size, which is always the same here
        elif node.op == "get_attr":
            if any(_weight_of(user, node) is None for user in node.users):
                name = f"_constant_{len(copied)}"
                root.register_buffer(name, _tensor(network, node))
                copied[node] = graph.get_attr(name)
        elif not _norm(node, network, root, copied):
            copied[node] = _layer(node, network, root, copied, inside) or graph.node_copy(node, copied.__getitem__)
    if result not in copied:
        raise NotConvertibleError(f"{what}: expected a network that gives a tensor, got one that gives none")
    graph.output(copied[result])
    return layered(root, graph)


def _scores(network: fx.GraphModule, end: fx.Node, what: str, wanted: str | None) -> fx.Node | None:
    """Which of the outputs is taken; None if there is none."""
    spec = getattr(getattr(network.graph._codegen, "pytree_info", None), "out_spec", None)
    flat: Any = end.args[0] if isinstance(end.args[0], (list, tuple)) else [end.args[0]]
    names = [str(place) for place in range(len(flat))]
    if spec is not None and spec.num_leaves == len(flat):
        paths = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(len(flat)), spec))[0]
        names = [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]
    outputs = {name: node for name, node in zip(names, flat, strict=True) if isinstance(node, fx.Node)}
    if wanted is not None:
        if wanted not in outputs:
            there = ", ".join(outputs) if [*outputs] != [""] else "one tensor without a name: leave it out"
            raise CompileError(f"{what}: contract: output: expected one of its outputs ({there}), got {wanted!r}")
        return outputs[wanted]
    picture = next(_shape(node) for node in network.graph.nodes if node.op == "placeholder")
    fitting = (node for node in outputs.values() if _has_places(_shape(node), picture))
    return next(fitting, None) or next(iter(outputs.values()), None)


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Without the batch; empty if it is not known."""
    value = node.meta.get("val")
    return tuple(int(side) for side in value.shape[1:]) if isinstance(value, Tensor) else ()


def _has_places(shape: tuple[int, ...], picture: tuple[int, ...]) -> bool:
    """Whether an output has the picture's height and width, or both smaller by one factor, on two axes in a row."""
    if len(picture) != 3:
        return False
    height, width = picture[1:]
    pairs = {2: [shape], 3: [shape[1:], shape[:2]]}.get(len(shape), [])
    return any(
        min(rows, columns) > 1 and abs(rows * width - columns * height) < max(height, width) for rows, columns in pairs
    )


def check_sizes(network: LayeredNetwork, x: Tensor) -> None:
    """Run a network with shapes alone, and refuse values that are larger than a network's.

    Args:
        network: as ``exported_network`` gives it.
        x: a picture for it.

    Raises:
        NotConvertibleError: one is too large.
        RuntimeError: it does not take such a picture.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        _Sizes(network).run(mode.from_tensor(x))


class _Sizes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            check_elements(value.shape)
        return value


_ATEN = torch.ops.aten
_LAYERS = {
    _ATEN.conv2d.default: "input weight bias stride padding dilation groups",
    _ATEN.conv2d.padding: "input weight bias stride padding dilation groups",
    _ATEN.conv_transpose2d.input: "input weight bias stride padding output_padding groups dilation",
    _ATEN.linear.default: "input weight bias",
}
_NORM = "input weight bias running_mean running_var training momentum eps cudnn_enabled"


def _arguments(node: fx.Node, names: str) -> dict[str, Any]:
    return dict(zip(names.split(), node.args, strict=False)) | node.kwargs


def _weight_of(user: fx.Node, weight: fx.Node) -> fx.Node | None:
    """The layer that takes a weight in; None if it stays a value of its own."""
    names = _LAYERS.get(user.target)  # type: ignore[call-overload]
    if names is not None:
        given = _arguments(user, names)
        return user if weight in (given["weight"], given.get("bias")) and _is_held(given) else None
    return user if user.target is _ATEN.batch_norm.default and _layer_before(user) is not None else None


def _is_held(given: dict[str, Any]) -> bool:
    parts = (given["weight"], given.get("bias"))
    return all(part is None or (isinstance(part, fx.Node) and part.op == "get_attr") for part in parts)


def _layer(
    node: fx.Node, network: fx.GraphModule, root: fx.GraphModule, copied: dict[fx.Node, fx.Node], inside: str
) -> fx.Node | None:
    """The node as a module; None if it is no layer with weights of its own."""
    names = _LAYERS.get(node.target)  # type: ignore[call-overload]
    if names is None or not _is_held(given := _arguments(node, names)):
        return None
    weight, bias = _tensor(network, given.pop("weight")), given.pop("bias", None)
    name = str(_arguments(node, names)["weight"].target).removesuffix(".weight").removeprefix(inside)
    name, read = safe_name(name), given.pop("input")
    module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    if node.target is _ATEN.linear.default:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        sizes: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in given.items()}
        kernel, groups = tuple(weight.shape[2:]), sizes.get("groups", 1)
        sizes["padding"] = _padding(sizes.get("padding", 0), kernel, sizes.get("dilation", (1, 1)))
        if node.target is _ATEN.conv_transpose2d.input:
            channels, of_module = (weight.shape[0], weight.shape[1] * groups), nn.ConvTranspose2d
        else:
            channels, of_module = (weight.shape[1] * groups, weight.shape[0]), nn.Conv2d  # type: ignore[assignment]
        module = of_module(*channels, kernel, bias=bias is not None, device="meta", **sizes)  # type: ignore[arg-type]
    module.weight = nn.Parameter(weight.clone())
    if bias is not None:
        module.bias = nn.Parameter(_tensor(network, bias).clone())
    free, count = name, 1
    while free in {other for other, _ in root.named_modules()}:  # a layer that runs twice
        count += 1
        free = f"{name}_{count}"
    root.add_submodule(free, module)
    return copied[read].graph.call_module(free, (copied[read],))


def _padding(given: Any, kernel: Sequence[int], dilation: Sequence[int]) -> Any:
    """Padding by its name as numbers, where both sides have the same: what looks at layers reads numbers."""
    totals = [apart * (side - 1) for side, apart in zip(kernel, dilation, strict=True)]
    if given == "same" and not any(total % 2 for total in totals):
        return tuple(total // 2 for total in totals)
    return (0, 0) if given == "valid" else given


def _layer_before(norm: fx.Node) -> fx.Node | None:
    """The layer whose output a batch normalization alone reads."""
    given = _arguments(norm, _NORM)
    before = given["input"]
    names = _LAYERS.get(before.target)
    fits = names is not None and names != "input weight bias" and _is_held(_arguments(before, names))
    return before if fits and len(before.users) == 1 and not given["training"] else None


def _norm(node: fx.Node, network: fx.GraphModule, root: fx.GraphModule, copied: dict[fx.Node, fx.Node]) -> bool:
    """Take a batch normalization into the layer before it; whether it was one that can be."""
    if node.target is not _ATEN.batch_norm.default or (before := _layer_before(node)) is None:
        return False
    given = _arguments(node, _NORM)
    mean, variance = (_tensor(network, given[name]).double() for name in ("running_mean", "running_var"))
    scale, bias = (
        None if given[name] is None else _tensor(network, given[name]).double() for name in ("weight", "bias")
    )
    factor = torch.rsqrt(variance + given["eps"]) * (1.0 if scale is None else scale)
    layer: Any = root.get_submodule(str(copied[before].target))
    take_into(layer, factor, (0.0 if bias is None else bias) - mean * factor)
    copied[node] = copied[before]
    return True


def _tensor(network: fx.GraphModule, node: fx.Node) -> Tensor:
    found: Any = network
    for part in str(node.target).split("."):
        found = getattr(found, part)
    tensor: Tensor = found.detach()
    return tensor


def _cleaned(path: Path) -> bytes:
    """The archive with what was looked at, and nothing else."""
    try:
        content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
    except OSError as error:
        raise CompileError(f"{path}: expected a file of torch.export.save, got {error.strerror}") from error
    if content is None:
        raise CompileError(f"{path}: expected a file below 2 GiB, got a larger one")
    if content.count(b"PK\x01\x02") > _MOST_PARTS:
        raise CompileError(f"{path}: expected an archive of at most {_MOST_PARTS} parts, got more")
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        names = [entry.filename for entry in old.infolist()]
        if len(set(names)) != len(names) or not any(name.endswith(f"/{_MODEL}") for name in names):
            raise CompileError(
                f"{path}: expected a file of torch.export.save of PyTorch 2.8 or newer, got another: save the program again"
            )
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            if name.startswith("extra/"):
                continue
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CompileError(f"{path}: {name}: expected it as torch.export.save writes it, got it compressed")
            if name.endswith(".json") and entry.file_size > _MOST_TEXT:
                raise CompileError(f"{path}: {name}: expected at most 64 MiB of text, got {entry.file_size >> 20} MiB")
            if name == _SAMPLES:
                data = b""  # pickled
            elif name == _MODEL:
                data = json.dumps(_checked(json.loads(old.read(entry)), path)).encode()
            elif name in _CONFIGS:
                data = json.dumps(_checked_config(json.loads(old.read(entry)), path)).encode()
            elif _PLAIN.fullmatch(name):
                data = old.read(entry)
            else:
                raise CompileError(
                    f"{path}: expected weights and a graph alone, got {name}, which is not opened: it may run code when it is loaded"
                )
            new.writestr(zipfile.ZipInfo(entry.filename), data)
    return made.getvalue()


def _checked_config(config: Any, path: Path) -> Any:
    """A list of tensors, none of which is pickled or larger than a weight can be."""
    for name, entry in config["config"].items():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise CompileError(f"{path}: {name}: expected plain numbers, got a pickled object, which is not opened")
        check_elements([side["as_int"] for side in entry["tensor_meta"]["sizes"]])
    return config


def _checked(model: Any, path: Path) -> Any:
    """The program without what is only told, and with nothing that is evaluated."""
    model["guards_code"] = []
    for item in _objects(model):
        if "metadata" in item:
            item["metadata"] = {}
        target = item.get("target")
        # Beside steps, weights have a target: their own name.
        if isinstance(target, str) and "inputs" in item and not _TARGET.fullmatch(target):
            raise NotConvertibleError(f"{path}: expected ATen's operators alone, got {target}")
        for text in (item.get("expr_str"), *(item.get("range_constraints") or {})):
            if text is not None and not _is_harmless(text):
                raise CompileError(f"{path}: expected sizes as expressions of numbers and symbols, got {text!r}")
        for key in ("in_spec", "out_spec"):
            types = re.findall(r'"type": ?"([^"]*)"', item.get(key) or "")
            if not set(types) <= {"builtins.tuple", "builtins.list", "builtins.dict"}:
                raise NotConvertibleError(f"{path}: expected tensors in tuples, lists or dictionaries, got {types}")
    if model["graph_module"]["graph"].get("custom_obj_values"):
        raise CompileError(f"{path}: expected tensors, got objects of other kinds, which are not opened")
    return model


def _is_harmless(text: Any) -> bool:
    """Whether a text can be evaluated as an expression: numbers, symbols of sizes and known functions alone."""
    if not isinstance(text, str):
        return False
    text = _SYMBOL.sub(r"\1", text)
    return (
        _EXPRESSION.fullmatch(text) is not None
        and "**" not in text
        and re.search(r"[A-Za-z_)\d]\.[A-Za-z_]|\._|__", text) is None
        and all(_KNOWN_NAMES.fullmatch(name) for name in _NAMES.findall(text))
    )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)
