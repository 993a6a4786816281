"""ONNX Runtime on a stranger's graph, in a process of its own with limits.

A graph is a program: a loop may never end, and a few bytes may ask for all of the memory. So what ONNX Runtime computes of it
happens in a child process that may use only so much memory and time. There its BASIC level folds what is constant (shapes, weights,
batch normalizations after convolutions), and the original graph says what the network gives for some inputs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pipeline.errors import CompileError
from pipeline.own_process import module_command

SECONDS = 600
"""The most that the child process may take."""

_MOST_OPTIMIZED = 2**31 - 1
_MOST_WRITTEN = 4 << 30
# Beside what the machine has: its virtual addresses, not what it touches, are counted.
_LEAST_MEMORY = 6 << 30


@dataclass(frozen=True)
class Computed:
    """What ONNX Runtime made of a graph.

    Attributes:
        folded: the graph with what is constant folded.
        outputs: what the original graph gives for each input.
        single: the same of the graph in FP32.
    """

    folded: onnx.ModelProto
    outputs: tuple[NDArray[Any], ...]
    single: tuple[NDArray[Any], ...]


def compute(
    original: onnx.ModelProto,
    single: onnx.ModelProto,
    inputs: Sequence[NDArray[np.float32]],
    what: str,
    *,
    seconds: float = SECONDS,
    memory: int | None = None,
) -> Computed:
    """Fold a graph, and run it.

    Args:
        original: as the file has it, with its weights inside and one output.
        single: the same in FP32; may be ``original`` itself.
        inputs: for both; cast to the type that each takes.
        what: the graph's name in messages.
        seconds: after which it is given up.
        memory: bytes of addresses that the process may have; None takes three quarters of the machine's.

    Raises:
        CompileError: ONNX Runtime cannot run it, or not within the limits.
    """
    with tempfile.TemporaryDirectory(prefix="edgemask-onnx-") as name:
        folder = Path(name)
        (folder / "original.onnx").write_bytes(original.SerializeToString())
        if single is not original:
            (folder / "single.onnx").write_bytes(single.SerializeToString())
        np.savez(folder / "inputs.npz", *inputs)
        command = [*module_command(__name__), name, str(memory or _memory()), str(int(seconds) + 1)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise CompileError(
                f"{what}: expected ONNX Runtime to be done with it in {seconds:g} s, got no end: it may hold an endless loop"
            ) from error
        try:
            said: dict[str, Any] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = {"error": f"the process ended with status {done.returncode}, which too large tensors may do"}
        if "error" in said:
            raise CompileError(f"{what}: ONNX Runtime cannot run it: {said['error']}")
        folded = onnx.load_model(folder / "folded.onnx", load_external_data=False)
        outputs = _arrays(folder / "outputs.npz")
        return Computed(folded, outputs, outputs if single is original else _arrays(folder / "single.npz"))


def _arrays(path: Path) -> tuple[NDArray[Any], ...]:
    with np.load(path, allow_pickle=False) as file:
        return tuple(file[name] for name in file.files)


def _memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return max(_LEAST_MEMORY, int(line.split()[1]) * 1024 * 3 // 4)
    return _LEAST_MEMORY


def _run(model: Path, inputs: Sequence[NDArray[np.float32]], folded: Path | None) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if folded is not None:
        options.optimized_model_filepath = str(folded)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    dtype = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(entry.type, np.float32)
    results = [session.run(None, {entry.name: x.astype(dtype)})[0] for x in inputs]
    if not all(isinstance(result, np.ndarray) and result.dtype.kind in "biuf" for result in results):
        raise ValueError("its output is no tensor of numbers")
    return results


def _child(folder: Path) -> None:
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        inputs = [file[name] for name in file.files]
    original, single = folder / "original.onnx", folder / "single.onnx"
    if single.exists():
        np.savez(folder / "outputs.npz", *_run(original, inputs, None))
        np.savez(folder / "single.npz", *_run(single, inputs, folder / "folded.onnx"))
    else:
        np.savez(folder / "outputs.npz", *_run(original, inputs, folder / "folded.onnx"))
    if (folder / "folded.onnx").stat().st_size > _MOST_OPTIMIZED:
        raise ValueError("what it makes of the constants is larger than 2 GiB")


def _main(arguments: Sequence[str]) -> int:
    folder, memory, seconds = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Of all threads together: no more than as if each core worked all of the time.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds * 64, seconds * 64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_WRITTEN, _MOST_WRITTEN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result: dict[str, str] = {}
    try:
        _child(folder)
    except MemoryError:
        result["error"] = "it asks for more memory than it is given"
    except Exception as error:  # noqa: BLE001  the parent tells it, whatever it is
        lines = str(error).strip().splitlines()
        result["error"] = lines[0] if lines else type(error).__name__
    (folder / "done.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
