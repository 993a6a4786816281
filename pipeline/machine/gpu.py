"""GPU, driver and CUDA toolkit. The driver's own library is asked, so no Python package is needed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.machine.gpu_sign import is_on_the_bus
from pipeline.machine.machine import driver_command, read_board
from pipeline.machine.probe import Facts, Finding, Question
from pipeline.machine.system_file import read_text

_CUDA = """
import ctypes
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    found["library"] = False
else:
    found["library"] = True
    def check(status):
        if status:
            name = ctypes.c_char_p()
            cuda.cuGetErrorName(status, ctypes.byref(name))
            found["error"] = (name.value or str(status).encode()).decode()
        return status == 0
    number = ctypes.c_int()
    if check(cuda.cuDriverGetVersion(ctypes.byref(number))):
        found["cuda"] = [number.value // 1000, number.value % 1000 // 10]
    found["gpus"] = []
    if check(cuda.cuInit(0)) and check(cuda.cuDeviceGetCount(ctypes.byref(number))):
        for index in range(number.value):
            device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
            name = ctypes.create_string_buffer(256)
            if (
                check(cuda.cuDeviceGet(ctypes.byref(device), index))
                and check(cuda.cuDeviceGetName(name, 256, device))
                and check(cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device))
                and check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device))
            ):
                found["gpus"].append([name.value.decode(errors="replace"), major.value, minor.value])
"""
_NORMAL = "normal: ONNX Runtime runs on the CPU"


@dataclass(frozen=True)
class Gpu:
    """A device that CUDA can use; ``compute_capability`` is (major, minor)."""

    name: str
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor})"


def questions(root: Path, environment: Mapping[str, str]) -> dict[str, Question]:
    """What is asked in processes of their own."""
    asked = {"cuda": Question(_CUDA)}
    nvcc, _ = _nvcc(root, environment)
    if nvcc is not None:
        asked["nvcc"] = Question(command=(str(nvcc), "--version"))
    smi = shutil.which("nvidia-smi", path=environment.get("PATH", ""))
    if smi and not read_board(root).jetson:
        query = "--query-gpu=driver_version,memory.free,memory.total"
        asked["nvidia-smi"] = Question(command=(smi, query, "--format=csv,noheader,nounits"))
    return asked


def gpus(facts: Facts) -> list[Gpu]:
    """The devices, in CUDA's order."""
    answer = facts.answers.get("cuda")
    rows = answer.found.get("gpus", []) if answer else []
    return [Gpu(name, (major, minor)) for name, major, minor in rows]


def driver_cuda(facts: Facts) -> tuple[int, int] | None:
    """The newest CUDA that the driver offers, (major, minor)."""
    answer = facts.answers.get("cuda")
    version = answer.found.get("cuda") if answer else None
    return (version[0], version[1]) if version else None


def pycuda_command(facts: Facts) -> str:
    """How PyCUDA is built here: it needs nvcc on PATH."""
    install = "pip install 'edgemask[pycuda]'"
    nvcc, on_path = _nvcc(facts.root, facts.environment)
    if on_path:
        return install
    install = f"PATH=/usr/local/cuda/bin:$PATH {install}"
    if nvcc:
        return install
    toolkit = "nvidia-jetpack" if read_board(facts.root).jetson else "nvidia-cuda-toolkit"
    return f"sudo apt install {toolkit} && {install}"


def gpu_findings(facts: Facts) -> list[Finding]:
    """The devices, their memory and the driver."""
    devices = gpus(facts)
    if not devices:
        return [_no_gpu_finding(facts)]
    findings = [Finding("gpu", "GPU", "ok", "; ".join(map(str, devices)))]
    smi_rows = _smi_rows(facts)
    if smi_rows:
        free = "; ".join(
            f"{int(free) / 1024:.1f} GiB free of {int(total) / 1024:.1f} GiB" for _, free, total in smi_rows
        )
        findings.append(Finding("gpu_memory", "GPU memory", "ok", free))
    text = read_text(facts.root / "proc/driver/nvidia/version") or ""
    match = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    version = match[0] if match else smi_rows[0][0] if smi_rows else "version unknown"
    offered = driver_cuda(facts)
    words = f"{version}, for CUDA up to {offered[0]}.{offered[1]}" if offered else version
    return [*findings, Finding("driver", "Driver", "ok", words)]


def toolkit_findings(facts: Facts) -> list[Finding]:
    """The CUDA toolkit's compiler, which builds PyCUDA and is not needed after that."""
    title = ("cuda_toolkit", "CUDA toolkit")
    nvcc, on_path = _nvcc(facts.root, facts.environment)
    if nvcc is None:
        pycuda = facts.answers.get("pycuda")
        if not gpus(facts) or (pycuda is not None and not pycuda.problem):
            return [Finding(*title, "note", "no nvcc; only building PyCUDA needs it")]
        toolkit = "nvidia-jetpack" if read_board(facts.root).jetson else "nvidia-cuda-toolkit"
        return [Finding(*title, "missing", "no nvcc: PyCUDA cannot be built", f"sudo apt install {toolkit}")]
    answer = facts.answers.get("nvcc")
    match = re.search(r"release ([\d.]+)", answer.found.get("output", "")) if answer else None
    if match is None:
        return [
            Finding(*title, "note", f"{nvcc} does not tell its version: {answer.problem if answer else 'not asked'}")
        ]
    return [Finding(*title, "ok", f"CUDA {match[1]} ({nvcc}{'' if on_path else ', not on PATH'})")]


def _no_gpu_finding(facts: Facts) -> Finding:
    title = ("gpu", "GPU")
    board, answer = read_board(facts.root), facts.answers.get("cuda")
    if answer is None or answer.problem:
        reason = answer.problem if answer else "not asked"
        return Finding(*title, "missing", f"the driver's library cannot be asked: {reason}", "sudo reboot")
    error = answer.found.get("error")
    hidden = facts.environment.get("CUDA_VISIBLE_DEVICES")
    if not board.jetson and not is_on_the_bus(facts.root) and error in (None, "CUDA_ERROR_NO_DEVICE"):
        return Finding(*title, "note", f"no NVIDIA GPU; {_NORMAL}")
    if not answer.found["library"]:
        if board.container:
            options = "--runtime nvidia" if board.jetson else "--gpus all"
            return Finding(*title, "missing", "this container was started without the GPU", f"docker run {options} …")
        command = "sudo apt install nvidia-jetpack" if board.jetson else driver_command(facts.root)
        return Finding(*title, "missing", "an NVIDIA GPU without its driver (no libcuda.so.1)", command)
    if hidden is not None and error in (None, "CUDA_ERROR_NO_DEVICE"):
        return Finding(*title, "missing", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "unset CUDA_VISIBLE_DEVICES")
    words = f"an NVIDIA GPU that CUDA cannot use ({error or 'no device'}); a driver that was updated needs a restart"
    return Finding(*title, "missing", words, "sudo reboot")


def _nvcc(root: Path, environment: Mapping[str, str]) -> tuple[Path | None, bool]:
    """The compiler, and whether it is on PATH."""
    on_path = shutil.which("nvcc", path=environment.get("PATH", ""))
    if on_path:
        return Path(on_path), True
    usual = root / "usr/local/cuda/bin/nvcc"
    return (usual if usual.exists() else None), False


def _smi_rows(facts: Facts) -> list[tuple[str, str, str]]:
    """(driver, free MiB, total MiB) of each device."""
    answer = facts.answers.get("nvidia-smi")
    output = answer.found.get("output", "") if answer else ""
    return re.findall(r"^([\d.]+), (\d+), (\d+)$", output, re.MULTILINE)
