"""What a network does when it is run: on photographs of the package, and up to its first layers on plain colors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from calibration.sets.photographs import PhotographSource
from compile.contract.scaling import BYTES, IMAGENET, scaled
from compile.contract.traits import Traits
from compile.networks.contract import Contract
from compile.networks.ends import ActivationKind, final_activation, first_layers
from compile.networks.exported_program import exported_network
from compile.networks.onnx_file import OnnxFile, read_onnx
from compile.networks.onnx_graph import convert
from compile.networks.onnx_runtime import compute
from compile.program.program import FrameToInput
from compile.proof.verify import open_session
from pipeline.errors import CompileError, NotConvertibleError

Run = Callable[[NDArray[np.float32]], NDArray[Any]]
"""(1, C, h, w) as ``FrameToInput`` gives it without a layout, to the output with its channels on axis 1: (1, C, h, w)."""

# Stages of a network below this size say nothing of its stride: pooling to a fixed size gives them.
_LEAST_STAGE = 4
# Probabilities may leave 0 to 1, and their sum 1, by rounding.
_SLACK = 1e-3
# Values of three channels for colors that are not on one line.
_COLORS = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.25, 0.5, 0.75))
_OPERATORS: dict[str, ActivationKind] = {
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "ArgMax": "argmax",
}
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast")


@dataclass(frozen=True)
class Inside:
    """What the graph does with the picture before its first layer, channel by channel: picture × factor + offset.

    Attributes:
        factor: one number for each channel of the layer's input.
        offset: the same.
        flipped: whether it turns the order of the channels round.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]
    flipped: bool

    @property
    def is_nothing(self) -> bool:
        """Whether the picture goes in as it is."""
        return np.allclose(self.factor, 1, atol=1e-4) and np.allclose(self.offset, 0, atol=1e-4)


@dataclass(frozen=True)
class Trial:
    """What came out.

    Attributes:
        shape: of the output for one picture, channels on axis 1.
        raw_shape: as the network gives it.
        is_whole: whether it gives whole numbers: classes.
        ends: the activation that its graph ends in.
        low: its least value on photographs.
        high: its largest.
        sums_to_one: whether its values over the channels do.
        inside: what the graph does before its first layer; None if that cannot be told.
        stride: of its smallest stage; None if that cannot be told.
        run: runs it again.
    """

    shape: tuple[int, int, int, int]
    raw_shape: tuple[int, ...]
    is_whole: bool
    ends: ActivationKind | None
    low: float
    high: float
    sums_to_one: bool
    inside: Inside | None
    stride: int | None
    run: Run


def try_network(traits: Traits, contract: Contract) -> Trial:
    """Run a network of another family as a first contract says: its size, layout, channels and output must be right, the rest not.

    Raises:
        CompileError: it cannot be run so, or gives no masks.
    """
    # Two scales, for which of them it takes is not known yet: of probabilities both show that they are such.
    both = [scaled(contract, scaling) for scaling in (IMAGENET, BYTES)]
    inputs = [_photograph(replace(one, layout="nchw")) for one in both]
    if traits.input_dtype == np.uint8:
        inputs = [np.rint(x).clip(0, 255) for x in inputs]
    opened = (
        _open_program(traits, inputs) if traits.path.suffix.lower() == ".pt2" else _open_onnx(traits, contract, inputs)
    )
    raw_shape = opened.outputs[0].shape
    to_nchw = _to_nchw(raw_shape, contract)
    outputs = [to_nchw(output) for output in opened.outputs]
    shape = outputs[0].shape
    values = np.concatenate([output.astype(np.float64).reshape(*output.shape[:2], -1) for output in outputs], 2)
    finite = values[:, :, np.isfinite(values).all((0, 1))]
    empty = not finite.size
    sums = finite.sum(1) if not empty else np.zeros(1)
    module = opened.module
    return Trial(
        (int(shape[0]), int(shape[1]), int(shape[2]), int(shape[3])),
        tuple(raw_shape),
        opened.outputs[0].dtype.kind in "biu",
        opened.ends,
        0.0 if empty else float(finite.min()),
        0.0 if empty else float(finite.max()),
        bool(shape[1] > 1 and not empty and np.abs(sums - 1).max() < _SLACK and finite.min() >= -_SLACK),
        None if module is None else _inside(module, inputs[0].shape),
        None if module is None else _stride(module, inputs[0].shape),
        lambda x: to_nchw(opened.run(x)),
    )


def _photograph(contract: Contract) -> NDArray[np.float32]:
    """A photograph of the package as a contract has it go in, (1, C, h, w)."""
    with PhotographSource() as source, torch.inference_mode():
        frame = np.ascontiguousarray(next(iter(source)).image[None])
        x: NDArray[np.float32] = FrameToInput(contract).eval()(torch.from_numpy(frame)).numpy()
    return x


@dataclass(frozen=True)
class _Opened:
    """A network with what it gives for the trial's pictures; ``module`` is None where it cannot be brought into layers."""

    outputs: Sequence[NDArray[Any]]
    module: fx.GraphModule | None
    ends: ActivationKind | None
    run: Run


def _open_onnx(traits: Traits, contract: Contract, inputs: Sequence[NDArray[np.float32]]) -> _Opened:
    file = read_onnx(
        traits.path, contract.imgsz, layout=contract.layout, channels=len(contract.mean), output=contract.output
    )

    def arranged(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if contract.layout == "nhwc" else x

    computed = compute(file.original, file.single, [arranged(x) for x in inputs], str(traits.path))
    try:
        module: fx.GraphModule | None = convert(
            computed.folded, inputs[0].shape, contract.layout, contract.layout, str(traits.path)
        ).module
    except NotConvertibleError:
        module = None
    ends = _last_operator(file) if module is None else _ends(module)
    sessions: list[Any] = []

    def run(x: NDArray[np.float32]) -> NDArray[Any]:
        if not sessions:
            sessions.append(open_session(file.original.SerializeToString(), str(traits.path)))
        (entry,) = sessions[0].get_inputs()
        x = np.rint(x).clip(0, 255) if file.dtype == np.uint8 else x
        return np.asarray(sessions[0].run(None, {entry.name: arranged(x).astype(file.dtype)})[0])

    return _Opened(computed.outputs, module, ends, run)


def _open_program(traits: Traits, inputs: Sequence[NDArray[np.float32]]) -> _Opened:
    module = exported_network(traits.path)

    def run(x: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            y: Tensor = module(torch.from_numpy(x))
        return y.numpy()

    try:
        outputs = [run(x) for x in inputs]
    except Exception as error:  # whatever PyTorch's functions say of a picture that does not fit
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(
            f"{traits.path}: expected a network for pictures of {'×'.join(map(str, inputs[0].shape[2:]))}, got one that does "
            f"not take them ({lines[0]}): say their size with imgsz in a --contract"
        ) from error
    return _Opened(outputs, module, _ends(module), run)


def _ends(module: fx.GraphModule) -> ActivationKind | None:
    activation = final_activation(module)
    return None if activation is None else activation.kind


def _last_operator(file: OnnxFile) -> ActivationKind | None:
    """The activation that a graph ends in which cannot be brought into layers."""
    made = {name: node for node in file.original.graph.node for name in node.output}
    node = made.get(file.original.graph.output[0].name)
    while node is not None and node.op_type in _MOVES:
        node = made.get(node.input[0])
    return None if node is None else _OPERATORS.get(node.op_type)


def _to_nchw(shape: Sequence[int], contract: Contract) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """What brings an output into (1, C, h, w).

    Raises:
        CompileError: it is no mask: boxes, one number for each class, or something else.
    """
    height, width = contract.imgsz

    def in_ratio(rows: int, columns: int) -> bool:
        # Scores may be smaller than the input, by a factor that need not divide it.
        return abs(rows * width - columns * height) < max(height, width)

    if len(shape) == 3 and in_ratio(*shape[1:]):
        return lambda y: y[:, None]
    if len(shape) == 4:
        fits = [in_ratio(*shape[2:]), in_ratio(*shape[1:3])]
        if any(fits):
            last = fits[1] and (contract.layout == "nhwc" or not fits[0])
            return (lambda y: y.transpose(0, 3, 1, 2)) if last else (lambda y: y)
    raise CompileError(
        f"output: expected a class or a probability for each pixel, on two axes as {height}×{width} or in their ratio, got "
        f"{'×'.join(map(str, shape))}, as detectors, classifiers and readers of text give: name another output in a --contract, or "
        "compile a segmentation network"
    )


class _ReachedError(Exception):
    """Carries what the first layer reads out of a network that need not run on."""


def _inside(module: fx.GraphModule, shape: Sequence[int]) -> Inside | None:
    """What stands between the picture and the first layer, told by what plain colors become."""
    names = first_layers(module)
    channels = shape[1]
    if not names or channels not in (1, 3):
        return None
    layer = module.get_submodule(names[0])
    if not isinstance(layer, nn.Conv2d) or layer.in_channels != channels:
        return None

    read = []
    for color in _COLORS:
        got = _read_by(layer, module, color[:channels], shape)
        if got is None:
            return None
        read.append(got)
    matrix = np.stack([one - read[0] for one in read[1 : channels + 1]], 1) / 100
    predicted = matrix @ (100 * np.array(_COLORS[4][:channels])) + read[0]
    straight = np.allclose(predicted, read[4], rtol=1e-3, atol=1e-3)
    for flipped in (False, True):
        diagonal = np.diag(matrix[:, ::-1] if flipped else matrix)
        rest = (matrix[:, ::-1] if flipped else matrix) - np.diag(diagonal)
        if straight and np.abs(rest).max() <= 1e-4 * np.abs(diagonal).max() and (diagonal > 0).all():
            order = slice(None, None, -1) if flipped else slice(None)  # as the picture has its channels
            return Inside(tuple(diagonal[order].tolist()), tuple(read[0][order].tolist()), flipped)
    return None


def _read_by(
    layer: nn.Module, module: fx.GraphModule, color: Sequence[float], shape: Sequence[int]
) -> NDArray[np.float64] | None:
    """What a layer reads in the middle of a picture of one color × 100, one number for each channel."""

    def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _ReachedError(given[0])

    hook = layer.register_forward_pre_hook(stop)
    x = torch.tensor(color).view(1, -1, 1, 1).expand(tuple(shape)).contiguous() * 100
    try:
        with torch.inference_mode():
            module(x)
    except _ReachedError as reached:
        (given,) = reached.args
        middle: NDArray[np.float64] = given[0, :, given.shape[2] // 2, given.shape[3] // 2].double().numpy()
        return middle
    finally:
        hook.remove()
    return None


def _stride(module: fx.GraphModule, shape: Sequence[int]) -> int | None:
    """How many pixels of the picture are one of the smallest stage, by the shapes that convolutions read."""
    sides: list[tuple[int, int]] = []

    def seen(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].ndim == 4:
            sides.append((int(given[0].shape[2]), int(given[0].shape[3])))

    try:
        without_numbers = copy.deepcopy(module).to("meta")
        for layer in without_numbers.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(seen)
        without_numbers(torch.empty(tuple(shape), device="meta"))
    except Exception:  # noqa: BLE001  a step that asks for numbers: what was seen before it counts
        pass
    strides = [
        shape[2] // height
        for height, width in sides
        if min(height, width) >= _LEAST_STAGE and shape[2] % height == 0 and shape[2] * width == shape[3] * height
    ]
    return max((stride for stride in strides if stride & (stride - 1) == 0), default=None)
