"""ONNX Runtime on a stranger's graph, in a process of its own with limits.

A graph is a program: a loop may never end, and a few bytes may ask for all of the memory. So what ONNX Runtime computes of it
happens in a child process that may use only so much memory and time. There its BASIC level folds what is constant (shapes, weights,
batch normalizations after convolutions), and the original graph says what the network gives for some inputs.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
_MOST_TOLD = 500
_PIECE = 1 << 20
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
        memory: bytes of addresses that the process may have; None for ``memory_limit``.

    Raises:
        CompileError: ONNX Runtime cannot run it, or not within the limits.
    """
    with tempfile.TemporaryDirectory(prefix="edgemask-onnx-") as name:
        folder = Path(name)
        (folder / "original.onnx").write_bytes(original.SerializeToString())
        if single is not original:
            (folder / "single.onnx").write_bytes(single.SerializeToString())
        np.savez(folder / "inputs.npz", *inputs)
        command = [*module_command(__name__), name, str(memory or memory_limit()), str(int(seconds) + 1)]
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


def memory_limit() -> int:
    """Bytes that a stranger's graph may take: three quarters of what is free, within what this process itself may have."""
    limit = _LEAST_MEMORY
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            limit = max(limit, int(line.split()[1]) * 1024 * 3 // 4)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


class Port(NamedTuple):
    """An input or output of a graph.

    Attributes:
        name: its name.
        type: such as "tensor(float)".
        shape: its sides; None for one that is open.
    """

    name: str
    type: str
    shape: tuple[int | None, ...]


class LimitedSession:
    """A stranger's graph on ONNX Runtime in a process of its own, for any number of inputs: used as ``InferenceSession``.

    Args:
        model: as ONNX, with its weights inside.
        what: its name in messages.
        seconds: that one run may take.
        memory: bytes of addresses that the process may have; None for ``memory_limit``.

    Raises:
        CompileError: ONNX Runtime cannot load it.
    """

    def __init__(self, model: bytes, what: str, *, seconds: float = SECONDS, memory: int | None = None) -> None:
        self._what, self._seconds = what, seconds
        command = [*module_command(__name__), "serve", str(memory or memory_limit()), str(int(seconds) + 1)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        weakref.finalize(self, _end, self._process)
        ports = self._ask(model)
        self._ports = [
            [Port(name, kind, tuple(shape)) for name, kind, shape in json.loads(str(ports[end]))]
            for end in ("inputs", "outputs")
        ]

    def get_inputs(self) -> list[Port]:
        """Its inputs."""
        return self._ports[0]

    def get_outputs(self) -> list[Port]:
        """Its outputs."""
        return self._ports[1]

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute some outputs; None for all.

        Raises:
            CompileError: it fails, or not within the limits.
        """
        names = [port.name for port in self.get_outputs()] if outputs is None else list(outputs)
        given = {f"input_{number}": array for number, array in enumerate(inputs.values())}
        results = self._ask(_packed(outputs=np.array(names), inputs=np.array(list(inputs)), **given))
        return [results[f"output_{number}"] for number in range(len(names))]

    def _ask(self, request: bytes) -> dict[str, NDArray[Any]]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(request).to_bytes(8, "big"))
            for start in range(0, len(request), _PIECE):
                process.stdin.write(request[start : start + _PIECE])
            answer = _read_within(process.stdout.fileno(), time.monotonic() + self._seconds)
        except TimeoutError as error:  # an OSError too
            process.kill()
            raise CompileError(
                f"{self._what}: expected ONNX Runtime to be done with it in {self._seconds:g} s, got no end: "
                "it may hold an endless loop"
            ) from error
        except (OSError, EOFError) as error:
            process.kill()
            status = process.wait()
            raise CompileError(
                f"{self._what}: ONNX Runtime cannot run it: the process ended with status {status}, which too large tensors may do"
            ) from error
        with np.load(io.BytesIO(answer), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if "error" in arrays:
            raise CompileError(f"{self._what}: ONNX Runtime cannot run it: {arrays['error']}")
        return arrays


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _packed(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _read_within(descriptor: int, end_s: float | None) -> bytes:
    """A message: its length in 8 bytes, and itself.

    Raises:
        TimeoutError: it does not come in time.
        EOFError: nobody is there to write it.
    """
    content, length = bytearray(), 8
    is_head = True
    while len(content) < length:
        if end_s is not None and not select.select([descriptor], [], [], max(0.0, end_s - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(descriptor, min(_PIECE, length - len(content)))
        if not piece:
            raise EOFError
        content += piece
        if is_head and len(content) == length:
            length, is_head = int.from_bytes(content, "big"), False
            content.clear()
    return bytes(content)


def _serve() -> None:
    """Load the model that comes first, and answer until nobody asks."""
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever libraries print is no answer
    session: onnxruntime.InferenceSession | None = None
    while True:
        try:
            request = _read_within(0, None)
        except EOFError:
            return
        try:
            if session is None:
                session = onnxruntime.InferenceSession(request, _options(), providers=["CPUExecutionProvider"])
                ends = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
                answer = _packed(
                    **{end: np.array(json.dumps([_told(one) for one in some])) for end, some in ends.items()}
                )
            else:
                with np.load(io.BytesIO(request), allow_pickle=False) as file:
                    given = {str(name): file[f"input_{number}"] for number, name in enumerate(file["inputs"])}
                    results = session.run([str(name) for name in file["outputs"]], given)
                if not all(isinstance(one, np.ndarray) and one.dtype.kind in "biuf" for one in results):
                    raise ValueError("expected numbers, got text or a sequence")
                answer = _packed(**{f"output_{number}": one for number, one in enumerate(results)})
        except Exception as error:  # noqa: BLE001  the parent tells it, whatever it is
            answer = _packed(error=np.array(_one_line(error)))
        with open(answers, "wb", closefd=False) as pipe:
            pipe.write(len(answer).to_bytes(8, "big") + answer)


def _told(port: Any) -> tuple[str, str, list[int | None]]:
    return port.name, port.type, [side if isinstance(side, int) else None for side in port.shape]


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, MemoryError):
        return "it asks for more memory than it is given"
    return lines[0][:_MOST_TOLD] if lines else type(error).__name__


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    # INT8 as it is written: its own way to compute it rounds the bias too.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _run(model: Path, inputs: Sequence[NDArray[np.float32]], folded: Path | None) -> list[NDArray[Any]]:
    options = _options()
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
    memory, seconds = int(arguments[1]), int(arguments[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Of all threads together: no more than as if each core worked all of the time.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds * 64, seconds * 64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MOST_WRITTEN, _MOST_WRITTEN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if arguments[0] == "serve":
        _serve()
        return 0
    folder, result = Path(arguments[0]), {}
    try:
        _child(folder)
    except Exception as error:  # noqa: BLE001  the parent tells it, whatever it is
        result["error"] = _one_line(error)
    (folder / "done.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
