"""Compile networks that nobody here wrote, and compare their masks with what the networks' own code makes of real pictures.

    python -m tests.networks_of_others FOLDER --pictures ecssd --json benchmarks/results/networks.json
    python -m benchmarks.readme

``--pictures`` is a folder with images/ and masks/. What ``tests/others_made.py`` asks for has to be installed. Masks are compared with
NumPy, OpenCV and ONNX Runtime on the file as it is, by the network's own way of feeding it and reading it; the resize alone is the
program's.
"""

import argparse
import json
import logging
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
import yaml

from benchmarks.shared.environment import write_result
from compile.build import build
from compile.contract.infer import infer_contract
from pipeline.errors import EdgemaskError
from pipeline.model import Model
from tests.others_made import OTHERS, fed

LEAST = {"fp32": 0.999, "fp16": 0.995}
"""What a mask's agreement has to reach, in the mean of the pictures."""


def run_original(path):
    """``run(x)`` gives all outputs of the file as it is."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()

        def run(x):
            with torch.no_grad():
                return [module(torch.from_numpy(x)).numpy()]

        return run
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    kind = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(wanted.type, np.float32)

    def run(x):
        x = np.rint(x) if kind == np.uint8 else x
        return session.run(None, {wanted.name: x.astype(kind)})

    return run


def expected_mask(scores, way, imgsz, frame_hw):
    """(H, W) uint8 of a network's output for one picture."""
    axes = way.axes.replace("n", "")
    scores = scores[0][None] if axes == "hw" else scores[0].transpose([axes.index(axis) for axis in "chw"])
    is_whole = np.issubdtype(scores.dtype, np.integer)
    scores = scores.astype(np.float32)

    def enlarged(x_hw, how=cv2.INTER_LINEAR):
        return cv2.resize(x_hw, frame_hw[::-1], interpolation=how)

    if is_whole:
        return enlarged(scores[0].astype(np.uint8), cv2.INTER_NEAREST)
    if way.gives == "logits" and (way.multilabel or len(scores) == 1):
        scores = 1 / (1 + np.exp(-scores))
    elif way.gives == "logits" and way.subject is not None:
        scores = np.exp(scores - scores.max(0))
        scores = scores / scores.sum(0)
    if len(scores) == 1 or way.subject is not None:
        return np.rint(enlarged(scores[way.subject or 0]) * 255).clip(0, 255).astype(np.uint8)
    is_smaller = scores.shape[1] < imgsz[0] or scores.shape[2] < imgsz[1]
    if is_smaller:
        scores = np.stack([enlarged(one) for one in scores])
    index = scores.argmax(0)
    if way.multilabel:
        index = np.where(scores.max(0) >= 0.5, index + 1, 0)
    return index.astype(np.uint8) if is_smaller else enlarged(index.astype(np.uint8), cv2.INTER_NEAREST)


def agreement(mask, expected, task):
    """IoU at 0.5, or the share of pixels with the same class; of whole masks or of some pixels."""
    if task == "classes":
        return float((mask == expected).mean())
    one, other = mask >= 128, expected >= 128
    return float((one & other).sum() / max((one | other).sum(), 1)) if one.any() or other.any() else 1.0


def decided_pixels(scores, way, frame_hw):
    """(H, W) bool: where the network makes up its mind, of one class by less than 0.3 or more than 0.7, else by 0.4 to the second."""
    axes = way.axes.replace("n", "")
    if np.issubdtype(scores.dtype, np.integer):
        return np.ones(frame_hw, bool)
    scores = scores[0][None] if axes == "hw" else scores[0].transpose([axes.index(axis) for axis in "chw"])
    scores = torch.from_numpy(scores.astype(np.float32))
    if way.gives == "logits":
        scores = scores.sigmoid() if len(scores) == 1 or way.multilabel else scores.softmax(0)
    if len(scores) == 1:
        scores = torch.cat((scores, 1 - scores))
    elif way.multilabel:
        scores = torch.cat((torch.full_like(scores[:1], 0.5), scores * 2 - 0.5))
    first, second = scores.topk(2, 0).values
    return (
        cv2.resize(((first - second) >= 0.4).numpy().astype(np.uint8), frame_hw[::-1], interpolation=cv2.INTER_NEAREST)
        > 0
    )


def wrong_keys(contract, way):
    """Keys of a contract that was found that are not as the network's own code has it."""
    wrong = {
        key for key in ("channels", "layout", "subject", "multilabel") if getattr(contract, key) != getattr(way, key)
    }
    count = len(contract.mean)
    for key in ("mean", "std"):
        if not isinstance(contract.divide_by, (int, float)):
            wrong.add("divide_by")
        elif not np.allclose(
            np.multiply(getattr(contract, key), contract.divide_by),
            np.multiply(getattr(way, key), way.divide_by)[:count],
            atol=0.6,
        ):
            wrong.add(key)
    is_class_mask = way.subject is None and not way.multilabel and contract.activation in ("softmax", "none")
    if (contract.activation == "none") != (way.gives != "logits") and not is_class_mask:
        wrong.add("activation")
    return wrong


def judge_contract(path, way):
    """(right, right with doubts, told or wrong; keys that are not right; what was said to be not known; imgsz)."""
    found, _ = infer_contract(path)
    wrong = wrong_keys(found.contract, way)
    told = {key for key, fact in found.facts.items() if not fact.is_known}
    # The scaling is one thing: who doubts a part doubts it all.
    told |= {"mean", "std", "divide_by"} if told & {"mean", "std", "divide_by"} else set()
    verdict = "wrong" if wrong - told else "told" if wrong else "right, with doubts" if told else "right"
    return verdict, sorted(wrong), list(found.not_known), found.contract.imgsz


@contextmanager
def said():
    """The lines that the package tells while the body runs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("edgemask")
    log.addHandler(handler)
    before, log.level = log.level, logging.INFO
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.level = before


def contract_file(folder, other, imgsz):
    """The network's own way as a contract file."""
    way = other.way
    keys = {
        "imgsz": list(imgsz),
        "channels": way.channels,
        "divide_by": way.divide_by,
        "mean": list(way.mean),
        "std": list(way.std),
        "layout": way.layout,
        "activation": "none" if way.gives != "logits" else "softmax" if way.subject is not None else "sigmoid",
    }
    if way.subject is not None:
        keys["subject"] = way.subject
    if way.multilabel:
        keys["multilabel"] = True
    (folder / "contract.yaml").write_text(yaml.safe_dump(keys | other.keys))
    return str(folder / "contract.yaml")


def compiled_agreement(path, folder, contract, precision, judged):
    """How the compiled network's masks agree with the expected ones, or why there are none.

    ``judged`` are pictures with their expected masks and where the network is decided.
    """
    with said() as lines:
        try:
            given = {} if contract is None else {"contract": contract}
            bundle = build(
                path,
                folder / "bundle",
                precision=precision,
                verify=str(folder.parent / "pictures"),
                verify_count=4,
                min_iou=0,
                quiet=True,
                **given,
            )
        except EdgemaskError as error:
            return {"error": _plain(str(error), folder)}
    manifest = bundle.manifest
    with Model(bundle.folder, backend="onnxruntime") as model:
        masks = [model(picture) for picture, _, _ in judged]
    compared = [(mask, wanted, decided) for mask, (_, wanted, decided) in zip(masks, judged, strict=True)]
    each = [agreement(mask, wanted, manifest.task) for mask, wanted, _ in compared]
    decided = [agreement(mask[where], wanted[where], manifest.task) for mask, wanted, where in compared if where.any()]
    unequal = [np.abs(mask.astype(int) - wanted).mean() / 255 for mask, wanted, _ in compared]
    kept = [line for line in lines if re.search(r"stay FP32|stays FP32|as it is", line)]
    return {
        "mean": round(float(np.mean(each)), 5),
        "worst": round(min(each), 5),
        "decided": round(float(np.mean(decided)), 5) if decided else None,
        **({"mae": round(float(np.mean(unequal)), 6)} if manifest.task == "binary" else {}),
        "precision": manifest.precision,
        "said": [_plain(line, folder) for line in kept],
    }


def _plain(text, folder):
    return text.replace(f"{folder}/", "").replace(f"{folder.parent}/", "")


def judge(other, place, pictures, examples):
    """A row of the table."""
    folder = place / other.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.manual_seed(0)
    path = other.make(folder, place / "downloads", examples)
    row = {"name": other.name, "source": other.source, "file": path.name}
    if path.suffix == ".onnx":
        graph = onnx.load(path, load_external_data=False)
        row["opset"] = next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    verdict, wrong, not_known, imgsz = judge_contract(path, other.way)
    row |= {"size_hw": list(imgsz), "contract": verdict, "wrong_keys": wrong, "not_known": not_known}
    given = other.given or not verdict.startswith("right")
    row["compiled_with"] = "given contract" if given else "found contract"
    original = run_original(path)
    inputs = [fed(picture, other.way, imgsz) for picture in pictures]

    def masks_of(outputs):
        pairs = zip(outputs, pictures, strict=True)
        return [expected_mask(scores, other.way, imgsz, picture.shape[:2]) for scores, picture in pairs]

    outputs = [original(x)[other.way.output] for x in inputs]
    expected = masks_of(outputs)
    rounded = masks_of([original(x.astype(np.float16).astype(np.float32))[other.way.output] for x in inputs])
    where = [
        decided_pixels(scores, other.way, picture.shape[:2]) for scores, picture in zip(outputs, pictures, strict=True)
    ]
    row["decided_share"] = round(float(np.mean([one.mean() for one in where])), 3)
    judged = list(zip(pictures, expected, where, strict=True))
    several = other.way.multilabel or (other.way.subject is None and max(one.max() for one in expected) < 128)
    row["measure"] = "pixel agreement" if several else "IoU"
    row["subject_share"] = round(float(np.mean([(one > (0 if several else 127)).mean() for one in expected])), 3)
    task = "classes" if several else "binary"
    # What FP16 costs at least: how far the network itself is from its masks where its input alone is rounded.
    alone = [agreement(mask, wanted, task) for mask, wanted in zip(rounded, expected, strict=True)]
    row["rounded_input"] = round(float(np.mean(alone)), 5)
    contract = contract_file(folder, other, imgsz) if given else None
    for precision in ("fp32", "fp16"):
        row[precision] = compiled_agreement(path, folder, contract, precision, judged)
    row["passes"] = all(row[name].get("mean", 0) >= least for name, least in LEAST.items())
    return row


def read_data(folder, place, count):
    """Pictures to judge on, also written to ``place``; and ``examples(side)``: others of a size, with masks, to fit heads to."""
    names = sorted(path.stem for path in (folder / "images").iterdir())
    shutil.rmtree(place / "pictures", ignore_errors=True)
    (place / "pictures").mkdir()
    judged = names[1 :: max(1, len(names) // count)][:count]
    pictures = []
    for name in judged:
        (source,) = (folder / "images").glob(f"{name}.*")
        shutil.copy(source, place / "pictures")
        pictures.append(cv2.imread(str(source)))
    others = [name for name in names if name not in judged][::13][:12]

    def examples(side):
        images = [cv2.imread(str(next((folder / "images").glob(f"{name}.*")))) for name in others]
        masks = [cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for name in others]
        resized = [
            [cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA) for one in part] for part in (images, masks)
        ]
        return np.stack(resized[0]), np.stack(resized[1]) / 255

    return pictures, examples


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where networks and downloads go")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with images/ and masks/")
    parser.add_argument("--count", type=int, default=4, help="of pictures (default: %(default)s)")
    parser.add_argument(
        "--only", default="", help="regular expression: names of networks; others stay as they are in --json"
    )
    parser.add_argument("--json", type=Path, help="a file for the result")
    options = parser.parse_args(arguments)
    (options.folder / "downloads").mkdir(parents=True, exist_ok=True)
    pictures, examples = read_data(options.pictures, options.folder, options.count)
    rows = {}
    if options.json and options.json.exists():
        rows = {row["name"]: row for row in json.loads(options.json.read_text(encoding="utf-8"))["table"]}
    asked = [other for other in OTHERS if re.search(options.only, other.name)]
    for other in asked:
        try:
            rows[other.name] = judge(other, options.folder, pictures, examples)
        except Exception as error:
            logging.getLogger(__name__).exception("one that cannot be had must not hide the others")
            rows[other.name] = {"name": other.name, "source": other.source, "error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(f"{rows[other.name]}\n")
        sys.stdout.flush()
        if options.json:
            ordered = [rows[one.name] for one in OTHERS if one.name in rows]
            write_result(options.json, "networks", {"pictures": len(pictures), "least": LEAST, "table": ordered})
    return [rows[other.name] for other in asked]


if __name__ == "__main__":
    main()
