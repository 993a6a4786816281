"""The frame program: everything that happens to a frame between camera and mask, as one PyTorch module.

    frames (N, H, W, 3) uint8 BGR  ->  FrameToInput  ->  network  ->  ScoresToMask  ->  masks (N, H, W) uint8, not_finite (N,) int32

A NaN cannot be seen in a mask of 8 bits, so ``not_finite`` says how many of a frame's scores are NaN or infinite.
With ``--compose device`` one more output follows, ``Overlay``: views (N, H, W, 3) uint8 BGR (``compile.program.compose``). With
``--pixels nv12`` frames come as decoders give them, what makes them BGR goes before it (``compile.program.nv12``), and views are NV12.

This is the only definition of pre- and post-processing: it is exported and compiled as a whole, and calibration, verification,
benchmarks and the pipeline all run it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from calibration.inference_form import fold_norms
from compile.networks.contract import Contract
from compile.networks.ends import OuterActivation, channels_first
from compile.program.fit import Fit
from compile.program.outputs import Form
from pipeline.errors import CompileError

# ITU-R BT.601 luma, as OpenCV and Pillow make gray pictures, for BGR.
_LUMA_BGR = (0.114, 0.587, 0.299)


class FrameToInput(nn.Module):
    """Frames to the network's input: resize, channel order, scale, mean and standard deviation, which can be each frame's own.

    With the filter "area" large frames are averaged, not sampled: a bilinear resize from 1080p to 320 pixels looks at a tenth of the
    picture, and what it misses flickers. So the frame is resized to the nearest whole multiple of the network's size, and blocks of
    that many pixels are averaged. For frames of less than 1.5 times the network's size this is the plain bilinear resize, which the
    filter "bilinear" is for all.
    """

    mean: Tensor
    std: Tensor
    pad: Tensor
    luma_bgr: Tensor

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.size_hw = contract.imgsz
        self.fit = Fit(contract)
        self.channels = contract.channels
        self.divide_by = contract.divide_by
        self.layout = contract.layout
        self.filter = contract.filter
        self.pixels, self.zscore = contract.pixels, contract.zscore
        self.register_buffer("mean", torch.tensor(contract.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(contract.std).view(1, -1, 1, 1), persistent=False)
        pad = contract.pad if isinstance(contract.pad, tuple) else (contract.pad,) * len(contract.mean)
        self.register_buffer("pad", torch.tensor(pad, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("luma_bgr", torch.tensor(_LUMA_BGR).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames_nhwc: Tensor) -> Tensor:
        """Frames to (N, C, h, w) float32, or (N, h, w, C) if the contract says so.

        Args:
            frames_nhwc: (N, H, W, 3) uint8 BGR; for channels as in files (N, H, W, C) uint8, or int32 for 16 bits.
        """
        # Cast first: TensorRT takes uint8 only at the border of a network.
        x = self._resized(self.fit.seen(frames_nhwc.float().permute(0, 3, 1, 2)), _size_of(frames_nhwc))
        if self.channels == "rgb":
            x = x.flip(1)
        elif self.channels == "grey":
            x = (x * self.luma_bgr).sum(1, keepdim=True)
        # Bars are no part of the frame, of whose values they change none.
        divisor: Any = self.divide_by
        if divisor == "max":
            divisor = x.amax((1, 2, 3), keepdim=True).clamp(min=1.0)  # a black frame stays black
        mean, std = _own_mean_and_std(x / divisor) if self.zscore else (self.mean, self.std)
        x = self.fit.with_bars(x, _size_of(frames_nhwc), self.pad)
        x = (x.div(divisor) - mean) / std
        return x.permute(0, 2, 3, 1) if self.layout == "nhwc" else x

    def _resized(self, x: Tensor, frame_hw: tuple[int, int]) -> Tensor:
        height, width = self.fit.content_hw(frame_hw)
        if self.filter == "bilinear":
            return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        rows, columns = _blocks(x.shape[2], height), _blocks(x.shape[3], width)
        x = F.interpolate(x, (height * rows, width * columns), mode="bilinear", align_corners=False)
        return x.reshape(x.shape[0], x.shape[1], height, rows, width, columns).mean((3, 5))


class ScoresToMask(nn.Module):
    """The network's output to masks of the frames' size.

    One class, or one that the contract names: probability × 255. More classes: the index of the largest score, at the network's size
    and enlarged by nearest neighbor, or with ``upsample: scores`` after the scores were enlarged; of several labels, 0 where none
    reaches 0.5. Where scores are NaN the mask is wrong, and often 0: so they are counted.

    Args:
        contract: the network's.
        form: what its numbers are.
        ends_in: an activation that belongs to the network, cut off so that it is FP32: what it gives are the scores that the contract
            speaks of.
    """

    def __init__(self, contract: Contract, *, form: Form = "scores", ends_in: OuterActivation | None = None) -> None:
        super().__init__()
        self.activation = contract.activation
        self.form = form
        self.ends_in = ends_in
        self.stretch = contract.stretch
        self.layout = contract.output_layout or contract.layout
        self.upsamples_scores = contract.upsample == "scores"
        self.subject, self.multilabel = contract.subject, contract.multilabel
        self.fit = Fit(contract)

    def forward(self, scores: Tensor, frames_nhwc: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, such as (N, C, h, w), and the frames for their size, to masks (N, H, W) uint8 and ``not_finite`` (N,) int32."""
        masks, not_finite, _ = self.with_values(scores, frames_nhwc)
        return masks, not_finite

    def with_values(self, scores: Tensor, frames_nhwc: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``forward``, with what masks are made of.

        That is (N, 1, H, W) from 0 to 255 before it is rounded, or (N, C, h, w) of which the largest counts; None of class indices.
        """
        scores, frame_hw = channels_first(scores.float(), self.layout), _size_of(frames_nhwc)
        have_means = self.form not in ("indices", "decisions")
        on_frame, covered_hw = self.fit.on_frame(scores, frame_hw, "bilinear" if have_means else "nearest")
        values = self._values(on_frame, covered_hw) if have_means else None
        decided = self._decided(on_frame, covered_hw) if values is None else self._cut(values, covered_hw)
        masks = self.fit.whole(decided, frame_hw)
        # Cast last: TensorRT gives uint8 only at the border of a network.
        return masks.to(torch.uint8), _count_not_finite(scores), values

    def activated(self, scores: Tensor) -> Tensor:
        """(N, C, h, w) scores with the activation that belongs to the network."""
        if self.ends_in == "sigmoid":
            return torch.sigmoid(scores)
        if self.ends_in is None:
            return scores
        return (torch.softmax if self.ends_in == "softmax" else torch.log_softmax)(scores, 1)

    def _values(self, scores: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """What is cut to 8 bits, or of which the largest counts."""
        scores = self.activated(scores)
        if self.form == "bytes":
            scores = scores / 255.0
        if self._gives_classes(scores):
            return self._class_values(scores, size_hw)
        x = self._probability(scores)
        if self.stretch:
            low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
            # A flat map has nothing to stretch: it stays dark, where a division by zero would be NaN.
            x = (x - low) / (high - low).clamp(min=1e-6)
            # The authors cut the stretched mask to 8 bits before they enlarge it.
            x = (x * 255.0).floor() / 255.0
        return F.interpolate(x, size_hw, mode="bilinear", align_corners=False) * 255.0

    def _gives_classes(self, scores: Tensor) -> bool:
        return scores.shape[1] > 1 and self.subject is None

    def _cut(self, values: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Of values (N, 1, H, W) or (N, C, h, w), the mask (N, H, W) in whole numbers."""
        if not self._gives_classes(values):
            return values.round().clamp(0.0, 255.0)[:, 0]
        index = self._likeliest(values)
        return index[:, 0] if self.upsamples_scores else F.interpolate(index.float(), size_hw, mode="nearest")[:, 0]

    def _probability(self, scores: Tensor) -> Tensor:
        """(N, 1, h, w): of the one class, or of the subject among several."""
        if self.subject is not None and self.activation != "none" and not self.multilabel:
            return torch.softmax(scores, 1)[:, self.subject : self.subject + 1]
        x = scores if self.subject is None else scores[:, self.subject : self.subject + 1]
        return torch.sigmoid(x) if self.activation == "sigmoid" else x

    def _class_values(self, scores: Tensor, size_hw: tuple[int, int]) -> Tensor:
        if self.multilabel and self.activation == "sigmoid":
            scores = torch.sigmoid(scores)
        if self.upsamples_scores:
            scores = F.interpolate(scores, size_hw, mode="bilinear", align_corners=False)
        return scores

    def _likeliest(self, scores: Tensor) -> Tensor:
        index = scores.argmax(1, keepdim=True)
        if not self.multilabel:
            return index
        return torch.where(scores.amax(1, keepdim=True) >= 0.5, index + 1, torch.zeros_like(index))

    def _decided(self, x: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Of class indices, or of 0 and 1, to be taken as they are."""
        if self.form == "decisions":
            x = x * 255.0
        elif self.subject is not None:
            x = (x == float(self.subject)).float() * 255.0
        return F.interpolate(x, size_hw, mode="nearest")[:, 0]


class Overlay(nn.Module):
    """A color over the subject, as ``pipeline.render.overlay`` draws it in mode "overlay": a frame leaves the GPU as it is shown.

    The look is an input, so that it can change from frame to frame: ``pipeline.render.compose.look_values`` makes it. A soft edge is a
    clipped straight line, so two numbers hold it, and all operations are pointwise. A table of 256 weights would hold any edge, but
    looking masks up in it takes an index of 4 bytes for each pixel. Nothing is rounded before the end: the result is within 1 of
    255 of what the host draws.
    """

    def forward(self, frames_nhwc: Tensor, masks_nhw: Tensor, look: Tensor) -> Tensor:
        """Draw.

        Args:
            frames_nhwc: (N, H, W, 3) uint8 BGR.
            masks_nhw: (N, H, W) float32, 0 to 255, whole numbers: TensorRT hands no uint8 on.
            look: (6,) float32: slope and intercept of the soft edge over a mask's values, alpha, and the colour's b, g, r.

        Returns:
            (N, H, W, 3) float32 BGR, whole numbers from 0 to 255.
        """
        weights = (masks_nhw * look[0:1] + look[1:2]).clamp(0.0, 1.0) * look[2:3]
        x = frames_nhwc.float()
        return (x + (look[3:6] - x) * weights.unsqueeze(3)).round()


class FrameProgram(nn.Module):
    """The frame program around a network in PyTorch.

    Args:
        network: gives (N, classes, h, w) scores by its ``logits`` method.
        contract: as the network was trained.
        half: run the network in FP16, changed in place; what is before and after it stays FP32.
        keep: names of the network's layers that stay FP32 all the same.
        form: see ``ScoresToMask``.
        ends_in: see ``ScoresToMask``.

    Raises:
        CompileError: a weight does not fit FP16.
    """

    def __init__(
        self,
        network: nn.Module,
        contract: Contract,
        *,
        half: bool = False,
        keep: Collection[str] = (),
        form: Form = "scores",
        ends_in: OuterActivation | None = None,
    ) -> None:
        super().__init__()
        self.before = FrameToInput(contract)
        self.network = _halve(network, keep) if half else network
        self.after = ScoresToMask(contract, form=form, ends_in=ends_in)
        self.half_network = half
        # What FP16 leaves of a pixel between two whole numbers may be nearer to the other one.
        self._rounds_first = half and _rounds_pictures(network)

    def forward(self, frames_nhwc: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 BGR to masks (N, H, W) uint8, and how many of each frame's scores are not finite, (N,) int32."""
        x = self.before(frames_nhwc)
        x = x.round() if self._rounds_first else x
        scores = self.network.logits(x.half() if self.half_network else x)  # type: ignore[operator]
        masks, not_finite = self.after(scores, frames_nhwc)
        return masks, not_finite


class _Typed(nn.Module):
    """A layer with weights, in a type of its own; layers without weights take what comes."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.to(self.dtype))
        return y


class _Promoted:
    """A function of a graph that takes FP16 and FP32 at once, and computes in FP32 then, which not all of PyTorch's functions do."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = f"promoted_{getattr(function, '__name__', 'function')}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        types = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if _is_float(leaf)}
        if len(types) > 1:
            args, kwargs = tree_map(lambda leaf: leaf.float() if _is_float(leaf) else leaf, (args, kwargs))
        return self.function(*args, **kwargs)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _rounds_pictures(network: nn.Module) -> bool:
    """Whether a network takes whole numbers."""
    nodes = network.graph.nodes if isinstance(network, fx.GraphModule) else ()
    return any(user.target is torch.round for node in nodes if node.op == "placeholder" for user in node.users)


def _halve(network: nn.Module, keep: Collection[str]) -> nn.Module:
    # In FP32: running variances leave FP16's range at both ends where the folded weights do not.
    fold_norms(network)
    graph = network if isinstance(network, fx.GraphModule) else None
    constants = {} if graph is None else {n: c for n, c in graph.named_buffers(recurse=False) if _is_float(c)}
    for name, weight in (*network.named_parameters(), *constants.items()):
        finite = weight.detach()[torch.isfinite(weight)] if name in constants else weight.detach()
        if (name.rpartition(".")[0] not in keep or name in constants) and (
            largest := float(finite.abs().max()) if finite.numel() else 0.0
        ) > torch.finfo(torch.float16).max:
            raise CompileError(
                f"--precision: expected fp32, for FP16 ends at 65504, got fp16 and {largest:.3g} in {name}: take fp32"
            )
    if not keep and not any(getattr(layer, "typed", False) for layer in network.modules()):
        if graph is not None:
            _cast_to_half(graph)
        return network.half()
    layers = [(name, layer) for name, layer in network.named_modules() if layer._parameters]
    for name, layer in layers:
        network.set_submodule(name, _Typed(layer, torch.float32 if name in keep else torch.float16))
    if graph is not None:
        for name, constant in constants.items():
            setattr(graph, name, constant.half())
        for node in graph.graph.nodes:
            if node.op == "call_function":
                node.target = _Promoted(node.target)
        graph.recompile()
    return network


def _cast_to_half(graph: fx.GraphModule) -> None:
    """Let casts to FP32 give FP16, as what is around them."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is torch.Tensor.to:
            node.args = tuple(torch.float16 if part is torch.float32 else part for part in node.args)
    graph.recompile()


def _count_not_finite(scores: Tensor) -> Tensor:
    """(N, a, b, c) float32 to (N,) int32: how many values are NaN or infinite.

    As one comparison that is false for both. TensorRT reads the operator IsNaN as "not x == x", and an optimizer may take that for
    false, or turn a negated comparison round. Rows are summed in FP32, twice as fast on a CPU, and their sums as whole numbers, for
    FP32 counts to 2²⁴ alone.
    """
    return (1.0 - (scores.abs() < torch.inf).float()).sum(3).int().sum((1, 2), dtype=torch.int32)


def _own_mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each frame's channels, (N, C, 1, 1); a channel of one value all over becomes 0."""
    mean = x.mean((2, 3), keepdim=True)
    return mean, (x - mean).square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def _size_of(frames_nhwc: Tensor) -> tuple[int, int]:
    return frames_nhwc.shape[1], frames_nhwc.shape[2]


def _blocks(side: int, network_side: int) -> int:
    # The nearest whole number, halves up, of network sides in a frame's side; with integers only, so that it can be exported.
    blocks: int = torch.sym_max(1, (2 * side + network_side) // (2 * network_side))  # type: ignore[no-untyped-call]
    return blocks
