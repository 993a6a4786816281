"""What exporters and training libraries wrote beside a network about its pictures and classes."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from compile.contract.found import Fact
from compile.contract.traits import Traits
from pipeline.errors import CompileError

# Ultralytics' tasks whose outputs are boxes, and not a class for each pixel.
_NOT_MASKS = {
    "detect": "boxes",
    "segment": "boxes with coefficients of prototype masks",
    "pose": "boxes with key points",
    "obb": "turned boxes",
    "classify": "one class for the whole picture",
}
# Outputs by which detectors are known, and networks that give queries.
_DETECTORS = ("boxes", "pred_boxes", "num_dets", "num_detections", "det_boxes", "dets", "detection_boxes")
_QUERIES = ("class_queries_logits", "masks_queries_logits", "pred_masks")
_LONGEST = 1 << 20


def refuse_other_tasks(traits: Traits) -> None:
    """Refuse a network that says itself that it gives something else than masks.

    Raises:
        CompileError: it does.
    """
    task = traits.metadata.get("task", "")
    got = _NOT_MASKS.get(task) if "names" in traits.metadata else None
    if got is not None:
        raise CompileError(
            f"{traits.path}: expected a network that gives a class or a probability for each pixel, got one of Ultralytics for "
            f"task {task}, which gives {got}: compile a semantic segmentation network"
        )
    for names, what in ((_DETECTORS, "boxes"), (_QUERIES, "queries with a mask each")):
        found = [name for name in traits.outputs if name.lower() in names]
        if found:
            raise CompileError(
                f"{traits.path}: expected a network that gives a class or a probability for each pixel, got one that gives {what} "
                f"({', '.join(traits.outputs)}): compile a semantic segmentation network"
            )


def of_ultralytics(traits: Traits) -> dict[str, Fact]:
    """What Ultralytics writes into an ONNX file: names, imgsz; its pictures are RGB from 0 to 1, in a letterbox."""
    if not {"names", "stride", "task"} <= traits.metadata.keys():
        return {}
    origin = "metadata of Ultralytics"
    facts = {
        "channels": Fact("rgb", origin),
        "divide_by": Fact(255.0, origin),
        "mean": Fact((0.0,) * 3, origin),
        "std": Fact((1.0,) * 3, origin),
        "fit": Fact("letterbox", f"{origin}: how it fits its pictures"),
        "pad": Fact(114.0, f"{origin}: how it fits its pictures"),
    }
    names, sides = (_literal(traits.metadata.get(key, "")) for key in ("names", "imgsz"))
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names)]
    if isinstance(names, list) and names:
        facts["classes"] = Fact(tuple(str(name) for name in names), origin)
    if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
        facts["imgsz"] = Fact(tuple(sides), origin)
    return facts


def of_transformers(traits: Traits) -> dict[str, Fact]:
    """What transformers writes beside a network: the preprocessor's scaling and size, the classes' names."""
    facts: dict[str, Fact] = {}
    names = traits.config.get("id2label")
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        order = sorted(names, key=lambda key: int(key))
        facts["classes"] = Fact(tuple(str(names[key]) for key in order), "config.json: id2label")
    given = traits.preprocessor
    if not given:
        return facts
    origin = "preprocessor_config.json"
    if given.get("do_rescale", True):
        factor = given.get("rescale_factor", 1 / 255)
        facts["divide_by"] = Fact(round(1 / factor, 6) if _is_above_zero(factor) else 255.0, origin)
    else:
        facts["divide_by"] = Fact(1.0, origin)
    mean, std = _numbers(given.get("image_mean")), _numbers(given.get("image_std"))
    if given.get("do_normalize", True) and mean and std and all(value > 0 for value in std):
        facts |= {"mean": Fact(mean, origin), "std": Fact(std, origin)}
    elif not given.get("do_normalize", True):
        facts |= {"mean": Fact((0.0,) * 3, origin), "std": Fact((1.0,) * 3, origin)}
    facts["channels"] = Fact("bgr" if given.get("do_flip_channel_order") else "rgb", origin)
    size = given.get("size")
    if isinstance(size, Mapping):
        sides = (size.get("height"), size.get("width"))
        sides = sides if all(sides) else (size.get("shortest_edge"),) * 2
    else:
        sides = (size, size)
    if all(type(side) is int and side > 0 for side in sides):
        facts["imgsz"] = Fact(sides, f"{origin}: size")
    return facts


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str) and all(type(one) in (int, float) for one in value):
        return tuple(float(one) for one in value)
    return ()


def _is_above_zero(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text) if len(text) <= _LONGEST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
