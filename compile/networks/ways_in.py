"""What to do about a file that cannot be opened: the lines that make one that can, for exactly that file."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import CheckpointError


def way_of_checkpoint(path: Path) -> str:
    """For weights of a network that is not known, or that lie beside what is not opened."""
    return (
        f"build the network in Python, load these weights, and write it as ONNX: {_export(path)}; "
        f"or name what makes it: --network package.module:function --weights {path}"
    )


def way_of_training_state(path: Path, key: str) -> str:
    """For weights beside objects of the training program, which alone can read them.

    Args:
        path: the file.
        key: what its weights are under.
    """
    alone = path.with_name(f"{path.stem}-weights.pth")
    return (
        f'where it was trained, in Python: import torch; torch.save(torch.load("{path}", weights_only=False)["{key}"], "{alone}"); '
        f"then --weights {alone}"
    )


def way_of_pickled_network(path: Path) -> str:
    """For a whole network that ``torch.save`` pickled: its classes are where it was trained."""
    return (
        f'where it was trained: model = torch.load("{path}", weights_only=False).eval(); {_export(path, called=True)}'
    )


def way_of_script(path: Path) -> str:
    """For a TorchScript program."""
    # The exporter of today refuses programs of TorchScript.
    return f'in Python: model = torch.jit.load("{path}").eval(); {_export(path, ", dynamo=False", called=True)}'


def unknown_kind(path: Path) -> CheckpointError:
    """What to tell of a file whose name ends as none that is opened, or of a folder."""
    suffix = path.suffix.lower()
    onnx, got = path.with_suffix(".onnx"), f"a name that ends in {suffix!r}"
    if path.is_dir():
        got, onnx = "a folder", path.with_name(f"{path.name}.onnx")
        if (path / "manifest.json").is_file():
            way = f"it is a bundle, compiled already: python -m pipeline --model {path}"
        elif (path / "saved_model.pb").is_file():
            way = f"python -m tf2onnx.convert --saved-model {path} --output {onnx}, then --weights {onnx}"
        else:
            way = f"name the file in it, or {_of_any_network(path.with_name(path.name + '.onnx'))}"
    elif suffix in (".h5", ".hdf5", ".keras"):
        way = f'in Python: keras.models.load_model("{path}").export("{onnx}", format="onnx"); then --weights {onnx}'
    elif suffix == ".tflite":
        way = f"python -m tf2onnx.convert --tflite {path} --output {onnx}, then --weights {onnx}"
    elif suffix == ".pb":
        way = (
            f"python -m tf2onnx.convert --graphdef {path} --inputs NAME:0 --outputs NAME:0 --output {onnx}, then "
            f"--weights {onnx}"
        )
    elif suffix in (".engine", ".plan", ".trt"):
        way = (
            f"it holds for one GPU and cannot be read; take the network that it was built from, {_of_any_network(onnx)}"
        )
    elif suffix in (".mlmodel", ".mlpackage"):
        way = f"take the network that it was converted from, {_of_any_network(onnx)}"
    else:
        way = _of_any_network(onnx)
    return CheckpointError(
        f"{path}: expected a name that ends in .pt, .pth, .ckpt, .bin, .tar, .safetensors, .onnx or .pt2, got {got}: {way}"
    )


def _of_any_network(onnx: Path) -> str:
    return f"as ONNX: {_export(onnx)}; or name what makes it: --network package.module:function"


def _export(path: Path, more: str = "", *, called: bool = False) -> str:
    onnx = path.with_suffix(".onnx")
    evaluated = "" if called else "model.eval(); "
    return f'{evaluated}torch.onnx.export(model, torch.zeros(1, 3, H, W), "{onnx}"{more}); then --weights {onnx}'
