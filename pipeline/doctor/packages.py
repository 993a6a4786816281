"""The packages that run and build networks: ONNX Runtime, OpenVINO, TensorRT in its flavours, PyCUDA, PyTorch, the build half."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.engines.kinds import ENGINES, EngineKind
from pipeline.engines.tensorrt_library import LIBRARIES_VARIABLE, OLDEST
from pipeline.machine.gpu import driver_cuda, gpus, pycuda_command
from pipeline.machine.machine import driver_command, jetpack_command, read_board
from pipeline.machine.probe import Answer, Facts, Finding, Question, State

DISTRIBUTIONS = (
    *("edgemask", "av", "opencv-python", "opencv-python-headless"),
    *("opencv-contrib-python", "opencv-contrib-python-headless"),
    *("torch", "torch-tensorrt", "torch-tensorrt-rtx", "onnx", "onnxscript", "safetensors", "cuda-bindings"),
    *("tensorrt-cu11", "tensorrt-cu12", "tensorrt-cu13"),
)
"""What is asked of pip's records: a version is all that is needed."""

_BUILD_HALF = ("torch", "onnx", "onnxscript", "safetensors")
_RTX_CUDA = 13
# The first Torch-TensorRT that our code was written for.
_OLDEST_TORCH_TENSORRT = (2, 11)
_TORCH_TIMEOUT_S = 90.0

_QUESTIONS = {
    "onnxruntime": "import onnxruntime; found['version'] = onnxruntime.__version__",
    "openvino": """
from pipeline.engines.openvino_library import load_openvino
library = load_openvino()
found["version"] = library.__version__.split("-")[0]
core = library.Core()
found["devices"] = {name.split(".")[0]: core.get_property(name, "FULL_DEVICE_NAME") for name in core.available_devices[::-1]}
""",
    "tensorrt": "import tensorrt; found['version'] = tensorrt.__version__",
    "tensorrt_rtx": """
from pipeline.engines.kinds import ENGINES, EngineKind
from pipeline.engines.tensorrt_library import load_tensorrt_rtx
found["version"] = load_tensorrt_rtx().__version__
""",
    "pycuda": "import pycuda; found['version'] = pycuda.VERSION_TEXT; import pycuda.driver",
    "torch_tensorrt": """
import torch
found["cuda"] = torch.version.cuda
found["gpu"] = torch.cuda.is_available()
import torch_tensorrt
found["version"] = torch_tensorrt.__version__
""",
}


def questions(_: Path, environment: Mapping[str, str]) -> dict[str, Question]:
    """What is asked in processes of their own: of the packages that are installed."""
    modules = {name: (name,) for name in _QUESTIONS} | {"tensorrt_rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx")}
    installed = {name for name, names in modules.items() if any(map(importlib.util.find_spec, names))}
    if environment.get(LIBRARIES_VARIABLE):
        installed.add("tensorrt_rtx")
    timeouts_s = {"torch_tensorrt": _TORCH_TIMEOUT_S}
    return {
        name: Question(code, timeout_s=timeouts_s.get(name, Question.timeout_s))
        for name, code in _QUESTIONS.items()
        if name in installed
    }


def onnxruntime_findings(facts: Facts) -> list[Finding]:
    """ONNX Runtime, which every machine can have."""
    title = ("onnxruntime", "ONNX Runtime")
    answer = facts.answers.get("onnxruntime")
    jetson = read_board(facts.root).jetson
    # 'edgemask[cpu]' would bring an OpenCV that hides JetPack's.
    command = "pip install onnxruntime" if jetson else "pip install 'edgemask[cpu]'"
    if answer is None:
        return [Finding(*title, "note" if jetson else "missing", "not installed; it runs networks on the CPU", command)]
    if answer.problem:
        return [_broken(title, answer, "pip install --force-reinstall onnxruntime")]
    return [Finding(*title, "ok", f"{answer.found['version']}, on the CPU")]


def openvino_findings(facts: Facts) -> list[Finding]:
    """OpenVINO, which machines with Intel's processors gain most by."""
    title = ("openvino", "OpenVINO")
    answer = facts.answers.get("openvino")
    if answer is None:
        words = "not installed; it runs networks on CPUs, and on Intel's GPUs and NPUs"
        return [Finding(*title, "note", words, "pip install 'edgemask[openvino]'")]
    if answer.problem:
        return [_broken(title, answer, "pip install --force-reinstall 'edgemask[openvino]'", "note")]
    return [Finding(*title, "ok", f"{answer.found['version']}, on the CPU")]


def intel_findings(device: str, facts: Facts) -> list[Finding]:
    """An Intel device, "GPU" or "NPU", as OpenVINO sees it; no row where OpenVINO is not here."""
    answer = facts.answers.get("openvino")
    if answer is None or answer.problem:
        return []
    title, name = (f"intel_{device.lower()}", f"Intel {device}"), answer.found["devices"].get(device)
    return [Finding(*title, "note", "OpenVINO sees none") if name is None else Finding(*title, "ok", str(name))]


def tensorrt_findings(facts: Facts) -> list[Finding]:
    """TensorRT proper."""
    title = ("tensorrt", "TensorRT")
    answer = facts.answers.get("tensorrt")
    board, has_gpu = read_board(facts.root), bool(gpus(facts))
    command = jetpack_command(facts.root, "tensorrt") if board.jetson else "pip install 'edgemask[tensorrt]'"
    if answer is None:
        return [_absent(title, has_gpu or board.jetson, command)]
    if answer.problem:
        again = "sudo apt install --reinstall tensorrt python3-libnvinfer"
        command = again if board.jetson else "pip install --force-reinstall 'edgemask[tensorrt]'"
        return [_broken(title, answer, command, "missing" if has_gpu else "note")]
    version = str(answer.found["version"])
    if _numbers(version) < OLDEST:
        words = f"{version}: too old, {'.'.join(map(str, OLDEST))} or newer is needed"
        if board.jetson:
            # JetPack's TensorRT belongs to its CUDA and driver, and is not exchanged alone.
            return [Finding(*title, "missing", f"{words}: write JetPack 6.2 to the board, from a PC", "sdkmanager")]
        return [Finding(*title, "missing", words, "pip install --upgrade 'edgemask[tensorrt]'")]
    carried = [int(name[-2:]) for name in facts.versions if re.fullmatch(r"tensorrt-cu\d\d", name)]
    old_driver = _older_driver(facts, max(carried, default=0))
    if old_driver:
        return [Finding(*title, "missing", f"{version}, {old_driver}", driver_command(facts.root))]
    return [Finding(*title, "ok", version)]


def tensorrt_rtx_findings(facts: Facts) -> list[Finding]:
    """TensorRT-RTX, which builds plans without a GPU and runs them on some."""
    title = ("tensorrt_rtx", "TensorRT-RTX")
    answer = facts.answers.get("tensorrt_rtx")
    devices = gpus(facts)
    unfit = unfit_gpu(ENGINES["tensorrt-rtx"], facts)
    if read_board(facts.root).jetson:
        return [Finding(*title, "note", "not for a Jetson: TensorRT runs the network here")]
    if answer is None:
        use = "it also builds plans for GPUs that are not here"
        if not devices or unfit:
            use = "it builds plans for GPUs that are not here" + (f"; {unfit}" if unfit else "")
        return [Finding(*title, "note", f"not installed; {use}", "pip install 'edgemask[tensorrt-rtx]'")]
    if answer.problem:
        return [_broken(title, answer, "pip install --force-reinstall 'edgemask[tensorrt-rtx]'")]
    version = str(answer.found["version"])
    old_driver = _older_driver(facts, _RTX_CUDA)
    if old_driver and not unfit:
        return [Finding(*title, "missing", f"{version}, {old_driver}", driver_command(facts.root))]
    if not devices or unfit:
        return [Finding(*title, "ok", f"{version}, builds plans for other machines" + (f"; {unfit}" if unfit else ""))]
    return [Finding(*title, "ok", version)]


def pycuda_findings(facts: Facts) -> list[Finding]:
    """PyCUDA, through which both flavours of TensorRT are fed."""
    title = ("pycuda", "PyCUDA")
    answer = facts.answers.get("pycuda")
    has_gpu = bool(gpus(facts))
    if answer is None:
        return [_absent(title, has_gpu, pycuda_command(facts))]
    if answer.problem:
        if not has_gpu:
            return [Finding(*title, "note", f"installed; it needs an NVIDIA GPU and its driver ({answer.problem})")]
        command = pycuda_command(facts).replace("pip install", "pip install --force-reinstall --no-cache-dir")
        return [_broken(title, answer, command)]
    findings = [Finding(*title, "ok", str(answer.found["version"]))]
    if "cuda-bindings" not in facts.versions and has_gpu:
        words = "not installed: all works, without CUDA graphs"
        findings.append(Finding("cuda_bindings", "cuda-bindings", "note", words, "pip install 'edgemask[pycuda]'"))
    return findings


def torch_findings(facts: Facts) -> list[Finding]:
    """Torch-TensorRT and the PyTorch that it belongs to: major and minor version must be the same."""
    title = ("torch_tensorrt", "Torch-TensorRT")
    install = "pip install 'edgemask[torch-tensorrt]'"
    torch, ours = facts.versions.get("torch"), facts.versions.get("torch-tensorrt")
    here = f"torch {torch} is here" if torch else "nor is torch"
    if ours is None and "torch-tensorrt-rtx" in facts.versions:
        words = "the RTX flavour (torch-tensorrt-rtx) is here, which edgemask does not use"
        return [Finding(*title, "note", words, f"pip uninstall -y torch-tensorrt-rtx && {install}")]
    if ours is None:
        if read_board(facts.root).jetson:
            return [Finding(*title, "note", "not installed, and not needed: TensorRT runs the network on a Jetson")]
        needs = "" if gpus(facts) else " and needs an NVIDIA GPU"
        return [
            Finding(*title, "note", f"not installed ({here}); it is optional{needs}", install if not needs else None)
        ]
    has_gpu = bool(gpus(facts))
    state: State = "missing" if has_gpu else "note"
    pair = f"{ours} with {f'torch {torch}' if torch else 'no torch'}"
    if _numbers(ours) < _OLDEST_TORCH_TENSORRT:
        return [Finding(*title, state, f"{ours}: too old, 2.11 or newer is needed", f"{install} --upgrade")]
    if torch is None or _numbers(torch) != _numbers(ours):
        major, minor = _numbers(ours)
        words = f"{pair}: both must have the same major and minor version"
        return [Finding(*title, state, words, f"pip install 'torch=={major}.{minor}.*'")]
    answer = facts.answers.get("torch_tensorrt", Answer(problem="it cannot be found"))
    if "cuda" in answer.found and answer.found["cuda"] is None:
        words = f"{pair}, which was built without CUDA"
        return [
            Finding(
                *title, state, words, f"pip install --force-reinstall 'torch=={'.'.join(map(str, _numbers(torch)))}.*'"
            )
        ]
    if answer.problem:
        return [_broken(title, answer, f"{install} --force-reinstall", state)]
    if gpus(facts) and not answer.found["gpu"]:
        words = f"{pair}: torch, built for CUDA {answer.found['cuda']}, finds no GPU it can use; is the driver older?"
        return [Finding(*title, "missing", words, driver_command(facts.root))]
    return [Finding(*title, "ok", f"{pair}, CUDA {answer.found['cuda']}")]


def build_half_findings(facts: Facts) -> list[Finding]:
    """What ``python -m compile`` needs; running a bundle needs none of it."""
    title = ("compile", "Build half")
    absent = [name for name in _BUILD_HALF if name not in facts.versions]
    if absent:
        words = f"no {', '.join(absent)}: bundles run here, and are made on another machine"
        if read_board(facts.root).jetson:
            return [Finding(*title, "note", words)]
        return [Finding(*title, "note", words, "pip install 'edgemask[cpu,compile]'")]
    return [Finding(*title, "ok", ", ".join(f"{name} {facts.versions[name]}" for name in _BUILD_HALF))]


def import_question(package: str) -> dict[str, Question]:
    """What is asked of a package that a backend names among what it needs and that is installed."""
    code = f"import importlib; found['version'] = getattr(importlib.import_module({package!r}), '__version__', '')"
    return {package: Question(code)} if importlib.util.find_spec(package) else {}


def import_finding(package: str, kind: EngineKind, facts: Facts) -> Finding:
    """Likewise, as a row."""
    answer, command = facts.answers.get(package), kind.install_command or None
    if answer is None:
        return Finding(package, package, "note", f"not installed; backend {kind.name} needs it", command)
    if answer.problem:
        return Finding(package, package, "note", f"installed, but cannot be loaded: {answer.problem}", command)
    return Finding(package, package, "ok", str(answer.found["version"]) or "here")


def loads(package: str, facts: Facts) -> bool:
    """Whether a package can be loaded here, which is all that building plans takes."""
    answer = facts.answers.get(package)
    return answer is not None and not answer.problem


def unfit_gpu(kind: EngineKind, facts: Facts) -> str | None:
    """Why a backend cannot run on the first GPU, in a phrase; None if it can, or if there is none."""
    devices = gpus(facts)
    if not devices or not kind.capabilities or devices[0].compute_capability in kind.capabilities:
        return None
    supported = ", ".join(f"{major}.{minor}" for major, minor in kind.capabilities)
    return f"it does not run on {devices[0]}, only on {supported}"


def _older_driver(facts: Facts, cuda_major: int) -> str | None:
    offered = driver_cuda(facts)
    if not gpus(facts) or offered is None or offered[0] >= cuda_major:
        return None
    return f"built for CUDA {cuda_major}: the driver offers only {offered[0]}.{offered[1]}"


def _absent(title: tuple[str, str], useful: bool, command: str) -> Finding:
    if useful:
        return Finding(*title, "missing", "not installed", command)
    return Finding(*title, "note", "not installed; it needs an NVIDIA GPU")


def _broken(title: tuple[str, str], answer: Answer, command: str, state: State = "missing") -> Finding:
    return Finding(*title, state, f"installed, but cannot be loaded: {answer.problem}", command)


def _numbers(version: str) -> tuple[int, int]:
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(major), int(minor)
