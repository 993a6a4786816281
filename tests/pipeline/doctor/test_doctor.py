import ctypes
import errno
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from pipeline.doctor import __main__ as command
from pipeline.doctor import cameras, report
from pipeline.engines import ENGINES
from pipeline.machine import gpu, machine
from pipeline.machine.probe import Answer, Facts, Finding, Question, ask

ROOT = Path(__file__).parents[3]
ORDER = ("tensorrt", "tensorrt-rtx", "torch-tensorrt", "onnxruntime")

ORIN_NANO = b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\nID_LIKE=debian\n'
NVPMODEL = "< PM_CONFIG DEFAULT=1 >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
MEMINFO = "MemTotal:        7802812 kB\nMemFree:          200000 kB\nMemAvailable:    {} kB\nSwapTotal: 0 kB\n"
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.6, V12.6.68\nBuild cuda_12.6.r12.6/compiler\n"
OPENCV = """
  GUI:                           {gui}
    GTK+:                        YES (ver 3.24.33)
  Video I/O:
    FFMPEG:                      YES
    GStreamer:                   {gstreamer}
    v4l/v4l2:                    YES (linux/videodev2.h)
"""


def opencv(gui="GTK3", gstreamer="YES (1.20.3)"):
    return Answer({"version": "4.8.0", "file": "cv2", "build": OPENCV.format(gui=gui, gstreamer=gstreamer)})


def cuda(*gpus, version=(13, 0)):
    return Answer({"library": True, "cuda": list(version), "gpus": [list(gpu) for gpu in gpus]})


RTX_4090 = ("NVIDIA GeForce RTX 4090", 8, 9)
NO_LIBRARY = Answer({"library": False})
AV = Answer({"version": "18.1.0", "ffmpeg": "8.1", "codecs": ["h264_nvenc", "libx264"], "nvenc": False})
ON_JETSON = {
    "cuda": cuda(("Orin", 8, 7), version=(12, 6)),
    "tensorrt": Answer({"version": "10.3.0"}),
    "pycuda": Answer({"version": "2026.1"}),
    "cv2": opencv(),
    "gstreamer": Answer({"output": "gst-launch-1.0 version 1.20.3\nGStreamer 1.20.3\n", "status": 0}),
    "av": AV,
    "nvpmodel": Answer({"output": "NV Power Mode: MAXN_SUPER\n2\n", "status": 0}),
    "display": Answer({"problem": None}),
}
ON_DESKTOP = {
    "cuda": cuda(RTX_4090),
    "onnxruntime": Answer({"version": "1.32.0"}),
    "openvino": Answer(
        {"version": "2026.4.1", "devices": {"CPU": "Intel Core", "GPU": "Intel Arc", "NPU": "AI Boost"}}
    ),
    "tensorrt": Answer({"version": "11.4.0.106"}),
    "tensorrt_rtx": Answer({"version": "1.7.1.116"}),
    "torch_tensorrt": Answer({"version": "2.13.0", "cuda": "13.0", "gpu": True}),
    "pycuda": Answer({"version": "2026.1"}),
    "cv2": opencv("QT5", "NO"),
    "av": Answer({**AV.found, "nvenc": True}),
    "tritonclient": Answer({"version": "2.73.0"}),
}
PIP = {"torch": "2.13.0+cu130", "torch-tensorrt": "2.13.0", "onnx": "1.23.2", "onnxscript": "0.7", "safetensors": "0.8"}


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture
def jetson(tmp_path):
    return write(
        tmp_path,
        {
            "proc/device-tree/model": ORIN_NANO,
            "proc/device-tree/compatible": b"nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
            "proc/meminfo": MEMINFO.format(6000000),
            "etc/nv_tegra_release": RELEASE,
            "etc/os-release": UBUNTU.replace("24.04.1", "22.04.5"),
            "etc/nvpmodel.conf": NVPMODEL,
            "usr/lib/aarch64-linux-gnu/gstreamer-1.0/libgstnvarguscamerasrc.so": "",
        },
    )


@pytest.fixture
def desktop(tmp_path):
    return write(
        tmp_path,
        {
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
            "sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
            "etc/os-release": UBUNTU,
            "proc/meminfo": MEMINFO.format(6000000),
        },
    )


@pytest.fixture
def bare(tmp_path):
    """A machine without a GPU."""
    return write(
        tmp_path,
        {
            "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
            "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n",
            "proc/meminfo": MEMINFO.format(6000000),
            "etc/os-release": UBUNTU,
        },
    )


def facts(root, answers=None, versions=None, environment=None):
    return Facts(root, versions or {}, answers or {}, environment or {})


def rows(root, answers=None, versions=None, environment=None):
    return {row.key: row for row in report.examine(facts(root, answers, versions, environment)).findings}


def judged(root, answers, versions=None):
    examined = report.examine(facts(root, answers, versions), ORDER)
    return {backend.name: backend for backend in examined.backends}, examined.auto


# Questions in processes of their own


def test_answers_come_back():
    answers = ask(
        {
            "code": Question("print('noise'); found['x'] = [1, 'é']"),
            "program": Question(command=("sh", "-c", "echo out; echo err >&2")),
        }
    )
    assert answers == {"code": Answer({"x": [1, "é"]}), "program": Answer({"output": "out\n", "status": 0})}


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        (Question("import os; os.kill(os.getpid(), 11)"), r"crashed \(SIGSEGV\)"),
        (Question("import os; os.kill(os.getpid(), 40)"), r"crashed \(signal 40\)"),
        (Question("import os; os.write(1, b'edgemask-doctor:[{\\n'); os._exit(4)"), "ended with status 4"),
        (Question("raise SystemExit('no licence')"), "SystemExit: no licence"),
        (Question("import no_such_package"), "ModuleNotFoundError: No module named 'no_such_package'"),
        (Question("raise OSError('libfoo.so.1: cannot open\\nmore')"), "OSError: libfoo.so.1: cannot open"),
        (Question("import os; os.write(2, b'last words\\n'); os._exit(3)"), "ended with status 3: last words"),
        (Question("import time; time.sleep(60)", timeout_s=0.2), "no answer within 0.2 s"),
        (Question(command=("sh", "-c", "echo broken >&2; exit 9")), "ended with status 9: broken"),
        (Question(command=("/no/such/program",)), "/no/such/program cannot be started: No such file or directory"),
    ],
)  # fmt: skip
def test_a_probe_that_fails_is_an_answer_too(question, problem):
    (answer,) = ask({"it": question}).values()
    assert re.fullmatch(problem, answer.problem)


def test_what_was_found_before_a_failure_counts():
    partly = Question("found['version'] = '1'; raise RuntimeError('then')")
    at_the_end = Question("import atexit, os; found['version'] = '2'; atexit.register(os.abort)")
    answers = ask({"partly": partly, "at the end": at_the_end})
    assert answers == {
        "partly": Answer({"version": "1"}, "RuntimeError: then"),
        "at the end": Answer({"version": "2"}, None),
    }


def test_a_process_that_leaves_another_behind_is_not_waited_for(tmp_path):
    code = "import subprocess, sys; child = subprocess.Popen(['sleep', '30']); found['pid'] = child.pid"
    (answer,) = ask({"it": Question(code)}).values()
    os.kill(answer.found["pid"], signal.SIGKILL)  # it still ran
    assert answer.problem is None


def test_children_are_ended_when_the_command_is_stopped(tmp_path):
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signaller = f"""
import os, signal, time
while not os.path.exists({str(mark)!r}) or not open({str(mark)!r}).read():
    time.sleep(0.01)
os.kill({os.getpid()}, signal.SIGTERM)
time.sleep(60)
"""
    with pytest.raises(Stopped):
        ask({"one": Question(code), "two": Question(signaller)})
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


# The machine


def test_jetson_is_told_by_model_and_release(jetson):
    board = machine.read_board(jetson)
    assert board == machine.Board(ORIN_NANO.decode().rstrip("\0"), True, "36.4.3", False)
    row = rows(jetson, ON_JETSON)
    assert row["jetson"].text == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert row["l4t"] == Finding("l4t", "L4T", "ok", "36.4.3 (JetPack 6.2)")


@pytest.mark.parametrize(
    ("first", "state", "text"),
    [
        ("R36 (release), REVISION: 4.7", "ok", "36.4.7 (JetPack 6.2.1)"),
        ("R36 (release), REVISION: 4.9", "ok", "36.4.9 (JetPack 6.1 or 6.2)"),
        ("R36 (release), REVISION: 5.0", "ok", "36.5.0 (JetPack 6.2.2)"),
        ("R38 (release), REVISION: 2.1", "ok", "38.2.1 (JetPack 7.0)"),
        ("R38 (release), REVISION: 4.0", "ok", "38.4.0 (JetPack 7.1)"),
        ("R39 (release), REVISION: 2.0", "ok", "39.2.0 (JetPack 7.2)"),
        ("R45 (release), REVISION: 1.0", "ok", "45.1.0 (a JetPack not known here)"),
        ("R36 (release), REVISION: 3.0", "missing", "36.3.0 (JetPack 6.0): its TensorRT is older than 10.3; .*"),
        ("R35 (release), REVISION: 4.1", "missing", "35.4.1 (JetPack 5): its TensorRT is older than 10.3; .*"),
        ("something else", "note", "/etc/nv_tegra_release names no release .*"),
    ],
)
def test_l4t_gives_the_jetpack(jetson, first, state, text):
    write(jetson, {"etc/nv_tegra_release": f"# {first}, GCID: 1, BOARD: generic\n"})
    row = rows(jetson)["l4t"]
    assert row.state == state
    assert re.fullmatch(text.replace("(J", r"\(J").replace(")", r"\)").replace("(a", r"\(a"), row.text)


def test_other_machines_have_no_jetson_rows(desktop):
    write(desktop, {"proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0"})
    assert not {"jetson", "l4t", "power_mode"} & rows(desktop).keys()
    assert "Raspberry Pi 5 Model B Rev 1.0" in rows(desktop)["system"].text


def test_power_mode(jetson):
    assert rows(jetson, ON_JETSON)["power_mode"].state == "ok"
    slow = Answer({"output": "NVPM WARN: something\nNV Power Mode: 15W\n0\n", "status": 0})
    row = rows(jetson, {"nvpmodel": slow})["power_mode"]
    assert (row.state, row.text, row.mend) == ("note", "15W; MAXN is faster", "sudo nvpmodel -m 2")
    (jetson / "etc/nvpmodel.conf").unlink()
    row = rows(jetson, {"nvpmodel": slow})["power_mode"]
    assert row.mend == "sudo nvpmodel -m 0"
    assert "differs from board to board" in row.text
    row = rows(jetson, {"nvpmodel": Answer(problem="ended with status 255: root only")})["power_mode"]
    assert (row.state, row.mend) == ("note", "sudo nvpmodel -q")
    assert "root only" in row.text


def test_memory(bare):
    assert rows(bare)["memory"].text == "5.7 GiB free of 7.4 GiB"
    write(bare, {"proc/meminfo": MEMINFO.format(1500000)})
    row = rows(bare)["memory"]
    assert row.state == "note"
    assert row.text.startswith("1.4 GiB free of 7.4 GiB: little, compiling u2net takes 3 GiB")
    write(bare, {"proc/meminfo": "nothing\n"})
    assert rows(bare)["memory"].state == "note"


# GPU and driver


def test_a_gpu_with_its_driver(desktop):
    write(
        desktop,
        {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n"},
    )
    smi = Answer({"output": "580.95.05, 23028, 24564\n", "status": 0})
    row = rows(desktop, {"cuda": cuda(RTX_4090), "nvidia-smi": smi})
    assert row["gpu"].text == "NVIDIA GeForce RTX 4090 (compute capability 8.9)"
    assert row["gpu_memory"].text == "22.5 GiB free of 24.0 GiB"
    assert row["driver"].text == "580.95.05, for CUDA up to 13.0"
    (desktop / "proc/driver/nvidia/version").unlink()
    assert rows(desktop, {"cuda": cuda(RTX_4090), "nvidia-smi": smi})["driver"].text.startswith("580.95.05")
    assert rows(desktop, {"cuda": cuda(RTX_4090)})["driver"].text == "version unknown, for CUDA up to 13.0"


def test_no_gpu_is_no_alarm(bare):
    for answer in (NO_LIBRARY, Answer({"library": True, "cuda": [13, 0], "gpus": [], "error": "CUDA_ERROR_NO_DEVICE"})):
        row = rows(bare, {"cuda": answer, "onnxruntime": Answer({"version": "1.32.0"}), "cv2": opencv(), "av": AV})
        assert row["gpu"] == Finding("gpu", "GPU", "note", "no NVIDIA GPU; normal: ONNX Runtime runs on the CPU")
        assert not [finding for finding in row.values() if finding.state == "missing"]


def test_a_gpu_without_its_driver(desktop):
    row = rows(desktop, {"cuda": NO_LIBRARY})["gpu"]
    assert (row.state, row.mend) == ("missing", "sudo ubuntu-drivers install && sudo reboot")
    write(desktop, {"etc/os-release": 'NAME="Debian GNU/Linux"\nID=debian\n'})
    assert rows(desktop, {"cuda": NO_LIBRARY})["gpu"].mend == "sudo apt install nvidia-driver && sudo reboot"
    write(desktop, {".dockerenv": ""})
    assert rows(desktop, {"cuda": NO_LIBRARY})["gpu"].mend == "docker run --gpus all …"


def test_jetson_without_cuda(jetson):
    assert rows(jetson, {"cuda": NO_LIBRARY})["gpu"].mend == "sudo apt install nvidia-jetpack"
    write(jetson, {".dockerenv": ""})
    assert rows(jetson, {"cuda": NO_LIBRARY})["gpu"].mend == "docker run --runtime nvidia …"


def test_a_gpu_that_cuda_cannot_use(desktop):
    none = Answer({"library": True, "cuda": [13, 0], "gpus": [], "error": "CUDA_ERROR_NO_DEVICE"})
    row = rows(desktop, {"cuda": none}, environment={"CUDA_VISIBLE_DEVICES": ""})["gpu"]
    assert (row.text, row.mend) == ("hidden by CUDA_VISIBLE_DEVICES=''", "unset CUDA_VISIBLE_DEVICES")
    broken = Answer({"library": True, "gpus": [], "error": "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"})
    row = rows(desktop, {"cuda": broken})["gpu"]
    assert (row.state, row.mend) == ("missing", "sudo reboot")
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in row.text
    row = rows(desktop, {"cuda": Answer(problem="crashed (SIGSEGV)")})["gpu"]
    assert row.state == "missing"
    assert "crashed (SIGSEGV)" in row.text


FAKE_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device ? "Second" : "Orin", size); return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = what == 75 ? 8 : what == 76 ? 7 : -1; return 0; }
int cuGetErrorName(int status, const char **name) { *name = status == 100 ? "CUDA_ERROR_NO_DEVICE" : "OTHER"; return 0; }
"""


@pytest.mark.needs_program("gcc")
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, {"library": True, "cuda": [12, 6], "gpus": [["Orin", 8, 7], ["Second", 8, 7]]}),
        (100, {"library": True, "cuda": [12, 6], "gpus": [], "error": "CUDA_ERROR_NO_DEVICE"}),
    ],
)
def test_the_driver_is_asked_through_its_library(tmp_path, monkeypatch, status, expected):
    write(tmp_path, {"driver.c": FAKE_DRIVER})
    library = str(tmp_path / "libcuda.so.1")
    build = ("gcc", "-shared", "-fPIC", f"-DSTATUS={status}", "-o", library, str(tmp_path / "driver.c"))
    assert ask({"build": Question(command=build)})["build"].problem is None
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert ask({"cuda": gpu.questions(tmp_path, {})["cuda"]})["cuda"] == Answer(expected)


def test_toolkit(desktop, tmp_path):
    answers = {"cuda": cuda(RTX_4090)}
    row = rows(desktop, answers)["cuda_toolkit"]
    assert (row.state, row.mend) == ("missing", "sudo apt install nvidia-cuda-toolkit")
    assert rows(desktop, {**answers, "pycuda": Answer({"version": "2026.1"})})["cuda_toolkit"].state == "note"
    assert rows(desktop, {"cuda": NO_LIBRARY})["cuda_toolkit"].state == "note"
    write(desktop, {"usr/local/cuda/bin/nvcc": "#!/bin/sh\n"})
    answers["nvcc"] = Answer({"output": NVCC, "status": 0})
    row = rows(desktop, answers)
    assert row["cuda_toolkit"].text.startswith("CUDA 12.6 (")
    assert row["cuda_toolkit"].text.endswith(", not on PATH)")
    assert row["pycuda"].mend == "PATH=/usr/local/cuda/bin:$PATH pip install 'edgemask[pycuda]'"
    (desktop / "usr/local/cuda/bin/nvcc").chmod(0o755)
    row = rows(desktop, answers, environment={"PATH": str(desktop / "usr/local/cuda/bin")})
    assert "not on PATH" not in row["cuda_toolkit"].text
    assert row["pycuda"].mend == "pip install 'edgemask[pycuda]'"
    row = rows(desktop, {**answers, "nvcc": Answer(problem="crashed (SIGBUS)")})["cuda_toolkit"]
    assert (row.state, "crashed (SIGBUS)" in row.text) == ("note", True)


# Packages and backends


def test_a_complete_jetson(jetson):
    backend, auto = judged(jetson, ON_JETSON)
    assert auto == "tensorrt"
    assert backend["tensorrt"].can == "run"
    assert backend["tensorrt"].reason == "TensorRT 10.3.0, on Orin (compute capability 8.7)"
    assert [name for name, entry in backend.items() if entry.can != "none"] == ["tensorrt"]
    assert not [row for row in rows(jetson, ON_JETSON).values() if row.state == "missing"]


def test_jetson_without_tensorrt(jetson):
    answers = {name: answer for name, answer in ON_JETSON.items() if name != "tensorrt"}
    assert rows(jetson, answers)["tensorrt"].mend == "sudo apt install nvidia-jetpack"
    backend, auto = judged(jetson, answers)
    assert (backend["tensorrt"].can, backend["tensorrt"].mend, auto) == (
        "none",
        "sudo apt install nvidia-jetpack",
        None,
    )
    # JetPack has installed it, but a virtual environment hides it.
    write(jetson, {"usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""})
    assert "venv --system-site-packages" in rows(jetson, answers)["tensorrt"].mend


def test_jetson_with_old_tensorrt(jetson):
    row = rows(jetson, {**ON_JETSON, "tensorrt": Answer({"version": "8.5.2.2"})})["tensorrt"]
    assert row.state == "missing"
    assert row.text.startswith("8.5.2.2: too old, 10.3 or newer is needed: write JetPack 6.2")


def test_gstreamer_of_a_jetson(jetson):
    row = rows(jetson, ON_JETSON)["gstreamer"]
    assert (row.state, row.text) == ("ok", "1.20.3")
    (plugin,) = jetson.rglob("libgstnvarguscamerasrc.so")
    plugin.unlink()
    row = rows(jetson, ON_JETSON)["gstreamer"]
    assert (row.state, row.mend) == ("missing", "sudo apt install nvidia-l4t-gstreamer")
    row = rows(jetson, {**ON_JETSON, "gstreamer": Answer({"output": "", "status": 1}, "it gave status 1")})["gstreamer"]
    assert (row.state, row.text) == ("missing", "installed, but does not run: it gave status 1")
    row = rows(jetson, {})["gstreamer"]
    assert row.state == "missing"
    assert row.mend.startswith("sudo apt install gstreamer1.0-tools ")


def test_gstreamer_of_a_desktop_is_optional(bare):
    assert rows(bare, {})["gstreamer"].state == "note"
    answer = {"gstreamer": Answer({"output": "gst-launch-1.0 version 1.22.0\n", "status": 0})}
    assert (rows(bare, answer)["gstreamer"].state, rows(bare, answer)["gstreamer"].text) == ("ok", "1.22.0")


def test_nothing_brings_a_second_opencv_to_a_jetson(jetson):
    assert "opencv" not in (rows(jetson, {})["onnxruntime"].mend + rows(jetson, {})["tensorrt"].mend)
    assert "[cpu]" not in rows(jetson, {})["onnxruntime"].mend  # it would bring such a wheel


def test_a_complete_desktop(desktop):
    backend, auto = judged(desktop, ON_DESKTOP, PIP)
    assert {name: entry.can for name, entry in backend.items()} == dict.fromkeys(ENGINES, "run")
    assert auto == "tensorrt"
    assert backend["onnxruntime"].reason == "ONNX Runtime 1.32.0, on the CPU"
    assert backend["triton"].reason == "tritonclient 2.73.0"
    assert backend["tensorrt-rtx"].reason.startswith("TensorRT-RTX 1.7.1.116, on NVIDIA GeForce RTX 4090")


def test_servers_alone_are_never_taken_by_themselves(bare):
    asked = report.examine(
        facts(bare, {name: ON_DESKTOP[name] for name in ("onnxruntime", "tritonclient", "cv2", "av")})
    )
    assert asked.auto == "onnxruntime"
    assert asked.backends[-1].name == "triton"


def test_what_a_desktop_lacks(desktop):
    backend, auto = judged(desktop, {"cuda": cuda(RTX_4090)})
    assert auto is None
    assert backend["onnxruntime"].mend == "pip install 'edgemask[cpu]'"
    assert backend["tensorrt"].mend == "pip install 'edgemask[tensorrt]'"
    assert backend["tensorrt-rtx"].mend == "pip install 'edgemask[tensorrt-rtx]'"
    assert backend["torch-tensorrt"].mend == "pip install 'edgemask[torch-tensorrt]'"
    only_opencv = {name: answer for name, answer in ON_DESKTOP.items() if name != "cv2"}
    backend, auto = judged(desktop, only_opencv, PIP)
    assert auto is None
    assert backend["onnxruntime"].mend == "pip install opencv-python"


@pytest.mark.parametrize("capability", [(8, 7), (9, 0), (11, 0), (7, 0)])
def test_gpus_that_tensorrt_rtx_does_not_run_on(desktop, capability):
    answers = {**ON_DESKTOP, "cuda": cuda(("Some GPU", *capability))}
    backend, auto = judged(desktop, answers, PIP)
    assert (backend["tensorrt-rtx"].can, backend["tensorrt-rtx"].mend, auto) == ("build", None, "tensorrt")
    assert (
        f"it does not run on Some GPU (compute capability {capability[0]}.{capability[1]})"
        in backend["tensorrt-rtx"].reason
    )
    assert "does not run on" in rows(desktop, answers, PIP)["tensorrt_rtx"].text


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_gpus_that_tensorrt_rtx_runs_on(desktop, capability):
    answers = {**ON_DESKTOP, "cuda": cuda(("Some GPU", *capability))}
    assert judged(desktop, answers, PIP)[0]["tensorrt-rtx"].can == "run"


@pytest.mark.needs("tensorrt_rtx_bindings")
def test_the_list_of_gpus_is_the_one_of_tensorrt_rtx():
    from pipeline.engines.tensorrt_library import load_tensorrt_rtx

    known = load_tensorrt_rtx().ComputeCapability.__members__
    ours = {f"SM{major}{minor}" for major, minor in ENGINES["tensorrt-rtx"].capabilities}
    assert ours == {name for name in known if name.startswith("SM")}


def test_without_a_gpu_tensorrt_rtx_builds(bare):
    answers = {name: ON_DESKTOP[name] for name in ("onnxruntime", "tensorrt_rtx", "cv2", "av")} | {"cuda": NO_LIBRARY}
    backend, auto = judged(bare, answers, PIP)
    assert auto == "onnxruntime"
    assert {name: entry.can for name, entry in backend.items()} == {
        "onnxruntime": "run",
        **dict.fromkeys(("openvino", "openvino-gpu", "openvino-npu"), "none"),
        "tensorrt": "none",
        "tensorrt-rtx": "build",
        "torch-tensorrt": "none",
        "triton": "none",
    }
    backend, _ = judged(bare, answers, {})
    assert (backend["tensorrt-rtx"].can, backend["tensorrt-rtx"].mend) == (
        "none",
        "pip install 'edgemask[cpu,compile]'",
    )
    backend, _ = judged(bare, {**answers, "tensorrt_rtx": Answer(problem="ImportError: libx")}, PIP)
    assert backend["tensorrt-rtx"].can == "none"


def test_a_driver_older_than_the_packages(desktop):
    answers = {**ON_DESKTOP, "cuda": cuda(RTX_4090, version=(12, 4))}
    row = rows(desktop, answers, {**PIP, "tensorrt-cu13": "11.4"})
    for key in ("tensorrt", "tensorrt_rtx"):
        assert row[key].state == "missing"
        assert row[key].text.endswith("built for CUDA 13: the driver offers only 12.4")
        assert row[key].mend.startswith("sudo ubuntu-drivers install")
    assert rows(desktop, answers, {**PIP, "tensorrt-cu12": "10.13"})["tensorrt"].state == "ok"
    backend, auto = judged(desktop, answers, {**PIP, "tensorrt-cu13": "11.4"})
    assert (backend["tensorrt-rtx"].can, auto) == ("build", "torch-tensorrt")


@pytest.mark.parametrize(
    ("versions", "answer", "text", "mend"),
    [
        ({}, None, "not installed (nor is torch); it is optional", "pip install 'edgemask[torch-tensorrt]'"),
        (
            {"torch": "2.13.0"},
            None,
            "not installed (torch 2.13.0 is here); it is optional",
            "pip install 'edgemask[torch-tensorrt]'",
        ),
        (
            {"torch": "2.13.0", "torch-tensorrt": "2.12.1"},
            Answer(problem="x"),
            "2.12.1 with torch 2.13.0: both must have the same major and minor version",
            "pip install 'torch==2.12.*'",
        ),
        (
            {"torch-tensorrt": "2.13.0"},
            Answer(problem="x"),
            "2.13.0 with no torch: both must",
            "pip install 'torch==2.13.*'",
        ),
        (
            {"torch": "2.9.0", "torch-tensorrt": "2.9.0"},
            Answer(problem="x"),
            "2.9.0: too old, 2.11 or newer is needed",
            "pip install 'edgemask[torch-tensorrt]' --upgrade",
        ),
        (
            {"torch": "2.13.0+cpu", "torch-tensorrt": "2.13.0"},
            Answer({"cuda": None, "gpu": False}, "OSError: libtorch_cuda.so"),
            "2.13.0 with torch 2.13.0+cpu, which was built without CUDA",
            "pip install --force-reinstall 'torch==2.13.*'",
        ),
        (
            {"torch": "2.14.0", "torch-tensorrt": "2.14.0"},
            Answer({"cuda": "13.0", "gpu": True}, "OSError: libnvinfer.so.10"),
            "installed, but cannot be loaded: OSError: libnvinfer.so.10",
            "pip install 'edgemask[torch-tensorrt]' --force-reinstall",
        ),
        (
            {"torch": "2.13.0", "torch-tensorrt": "2.13.0"},
            Answer({"cuda": "13.0", "gpu": False, "version": "2.13.0"}),
            "torch, built for CUDA 13.0, finds no GPU",
            "sudo ubuntu-drivers install && sudo reboot",
        ),
        (
            {"torch-tensorrt-rtx": "2.13.0", "torch": "2.13.0"},
            None,
            "the RTX flavour (torch-tensorrt-rtx) is here",
            "pip uninstall -y torch-tensorrt-rtx && pip install 'edgemask[torch-tensorrt]'",
        ),
    ],
)
def test_torch_and_torch_tensorrt_are_a_pair(desktop, versions, answer, text, mend):
    answers = {"cuda": cuda(RTX_4090)} | ({"torch_tensorrt": answer} if answer else {})
    row = rows(desktop, answers, versions)["torch_tensorrt"]
    assert text in row.text
    assert row.mend == mend
    assert row.state == ("missing" if "torch-tensorrt" in versions else "note")


def test_a_broken_package_is_told_with_its_error(desktop):
    for key, state in (
        ("onnxruntime", "missing"),
        ("tensorrt", "missing"),
        ("tensorrt_rtx", "missing"),
        ("pycuda", "missing"),
    ):
        row = rows(desktop, {"cuda": cuda(RTX_4090), key: Answer(problem="crashed (SIGSEGV)")})[key]
        assert (row.state, row.text) == (state, "installed, but cannot be loaded: crashed (SIGSEGV)")
        assert "install" in row.mend
    assert (
        rows(desktop, {"cuda": NO_LIBRARY, "pycuda": Answer(problem="ImportError: libcuda.so.1")})["pycuda"].state
        == "note"
    )


def test_openvino_and_the_devices_that_it_sees(bare):
    asked = report.examine(facts(bare, {"cuda": NO_LIBRARY, "cv2": opencv(), "av": AV}))
    backend = {one.name: one for one in asked.backends}
    assert "Intel GPU" not in [row.title for row in asked.findings]
    for name in ("openvino", "openvino-gpu", "openvino-npu"):
        assert (backend[name].can, backend[name].mend) == ("none", "pip install 'edgemask[openvino]'")
    seen = Answer({"version": "2026.4.1", "devices": {"CPU": "Intel Core", "NPU": "Intel AI Boost"}})
    asked = report.examine(facts(bare, {"cuda": NO_LIBRARY, "cv2": opencv(), "av": AV, "openvino": seen}))
    backend = {one.name: one for one in asked.backends}
    assert (backend["openvino"].can, backend["openvino"].reason) == ("run", "OpenVINO 2026.4.1, on the CPU")
    assert (backend["openvino-gpu"].can, backend["openvino-gpu"].reason) == ("none", "Intel GPU: OpenVINO sees none")
    assert backend["openvino-npu"].can == "run"
    broken = rows(bare, {"openvino": Answer(problem="crashed (SIGILL)")})["openvino"]
    assert (broken.state, broken.text) == ("note", "installed, but cannot be loaded: crashed (SIGILL)")


def test_cuda_bindings_are_optional(desktop):
    assert rows(desktop, ON_DESKTOP)["cuda_bindings"].state == "note"
    assert "cuda_bindings" not in rows(desktop, ON_DESKTOP, {"cuda-bindings": "13.0"})


# OpenCV, videos, display


@pytest.mark.parametrize(
    ("problem", "mend"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file", "sudo apt install libgl1 libglib2.0-0"),
        ("ImportError: something else", "pip install --force-reinstall opencv-python-headless"),
    ],
)
def test_a_broken_opencv(bare, problem, mend):
    row = rows(bare, {"cv2": Answer(problem=problem)}, {"opencv-python-headless": "4.14"})["opencv"]
    assert (row.state, row.mend) == ("missing", mend)
    assert problem in row.text


def test_a_broken_opencv_on_a_jetson(jetson):
    numpy = Answer(problem="ImportError: numpy.core.multiarray failed to import")
    assert rows(jetson, {"cv2": numpy})["opencv"].mend == "pip install 'numpy<2'"
    assert rows(jetson, {"cv2": numpy}, {"opencv-python": "4"})["opencv"].mend == "pip uninstall -y opencv-python"


def test_two_opencvs(bare):
    versions = {"opencv-python": "4.14", "opencv-python-headless": "4.13"}
    row = rows(bare, {"cv2": opencv()}, versions)["opencv_packages"]
    assert row.mend == "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python"
    assert "opencv_packages" not in rows(bare, {"cv2": opencv()}, {"opencv-python": "4.14"})


def test_nvenc(desktop):
    assert rows(desktop, ON_DESKTOP)["nvenc"].text == "FFmpeg's h264_nvenc opens"
    assert "does not open on this GPU" in rows(desktop, {"cuda": cuda(RTX_4090), "av": AV})["nvenc"].text
    assert "there is no NVIDIA GPU" in rows(desktop, {"cuda": NO_LIBRARY, "av": AV})["nvenc"].text
    without = Answer({**AV.found, "codecs": ["libx264"]})
    assert "no h264_nvenc" in rows(desktop, {"av": without})["nvenc"].text
    assert rows(desktop, {"av": Answer({**AV.found, "codecs": []})})["pyav"].state == "missing"
    assert "nvenc" not in rows(desktop, {"av": Answer(problem="crashed (SIGSEGV)")})


def test_nvenc_of_jetsons(jetson):
    assert "has no video encoder" in rows(jetson, ON_JETSON)["nvenc"].text
    write(jetson, {"proc/device-tree/model": b"NVIDIA Jetson AGX Orin Developer Kit\0"})
    assert "nvv4l2h264enc" in rows(jetson, ON_JETSON)["nvenc"].text


def test_display(bare):
    def row(problem):
        return rows(bare, {"display": Answer({"problem": problem})}, {"opencv-python-headless": "4"})["display"]

    assert row(None) == Finding("display", "Display", "ok", "a window opens")
    unset = row("DISPLAY and WAYLAND_DISPLAY are not set")
    assert (unset.state, unset.mend) == ("note", None)
    headless = row("this OpenCV was built without windows: pip install opencv-python")
    assert headless.state == "missing"
    assert headless.mend == "pip uninstall -y opencv-python-headless && pip install opencv-python"


# Cameras


class Capability(ctypes.Structure):
    _fields_ = [
        ("driver", ctypes.c_char * 16), ("card", ctypes.c_char * 32), ("bus", ctypes.c_char * 32),
        ("version", ctypes.c_uint32), ("all", ctypes.c_uint32), ("node", ctypes.c_uint32), ("rest", ctypes.c_uint32 * 3),
    ]  # fmt: skip


class Format(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("flags", ctypes.c_uint32),
        ("description", ctypes.c_char * 32), ("code", ctypes.c_char * 4), ("rest", ctypes.c_uint32 * 4),
    ]  # fmt: skip


class FrameSize(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_uint32), ("code", ctypes.c_char * 4), ("kind", ctypes.c_uint32),
        ("sizes", ctypes.c_uint32 * 6), ("rest", ctypes.c_uint32 * 2),
    ]  # fmt: skip


def fake_driver(formats, abilities=0x85200001, node=0x04200001, kind=1):
    """An ioctl that answers as a driver does: ``formats`` is code -> sizes, or None for no list of sizes."""

    def ioctl(descriptor, request, buffer):
        os.fstat(descriptor)
        assert len(buffer) == request >> 16 & 0x3FFF
        number = request & 0xFF
        if number == 0:
            buffer[:] = Capability(b"uvcvideo", b"Card name", b"usb-1", 0, abilities, node)
        elif number == 2:
            wanted = Format.from_buffer(buffer)
            if wanted.kind != kind or wanted.index >= len(formats):
                raise OSError(errno.EINVAL, "Invalid argument")
            wanted.code = list(formats)[wanted.index].encode()
        else:
            wanted = FrameSize.from_buffer(buffer)
            sizes = formats[wanted.code.decode()]
            if sizes is None:
                raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
            if isinstance(sizes, tuple):  # stepwise: width from, to, step; height from, to, step
                wanted.kind, wanted.sizes[:] = 3, sizes
            elif wanted.index < len(sizes):
                wanted.kind, wanted.sizes[:2] = 1, sizes[wanted.index]
            else:
                raise OSError(errno.EINVAL, "Invalid argument")

    return ioctl


@pytest.fixture
def camera_root(bare):
    return write(bare, {"dev/video0": "", "sys/class/video4linux/video0/name": "HD Pro Webcam C920\n"})


def camera_rows(root, entries):
    return [
        row for key, row in rows(root, {"cameras": Answer({"cameras": entries})}).items() if key.startswith("camera")
    ]


def test_a_camera_tells_its_formats(camera_root):
    formats = {"YUYV": [(640, 480), (2304, 1536)], "MJPG": [(1920, 1080), (640, 480)], "GREY": None}
    (camera,) = cameras.read_cameras(camera_root, fake_driver(formats))
    assert camera == {
        "device": "/dev/video0",
        "name": "HD Pro Webcam C920",
        "formats": {"YUYV": [(640, 480), (2304, 1536)], "MJPG": [(1920, 1080), (640, 480)], "GREY": []},
        "problem": None,
    }
    (row,) = camera_rows(camera_root, [camera])
    assert (row.key, row.title, row.state) == ("camera_video0", "Camera 0", "ok")
    assert row.text == "/dev/video0, HD Pro Webcam C920: YUYV to 2304×1536, MJPG to 1920×1080, GREY"


def test_a_range_of_sizes_and_several_planes(camera_root):
    driver = fake_driver({"NV12": (32, 4096, 2, 16, 2160, 2)}, node=0x04001000, kind=9)
    (camera,) = cameras.read_cameras(camera_root, driver)
    assert camera["formats"] == {"NV12": [(32, 16), (4096, 2160)]}


def test_nodes_that_do_not_capture_are_left_out(camera_root):
    assert cameras.read_cameras(camera_root, fake_driver({}, node=0x04A00000)) == []
    assert camera_rows(camera_root, [])[0].text == "none (no /dev/video* that captures)"


def test_cameras_are_in_the_order_of_their_numbers(camera_root):
    write(camera_root, {"dev/video10": "", "dev/video2": "", "dev/videofoo": ""})
    found = cameras.read_cameras(camera_root, fake_driver({"MJPG": []}))
    assert [camera["device"] for camera in found] == ["/dev/video0", "/dev/video2", "/dev/video10"]
    assert found[1]["name"] == "Card name"


def test_a_driver_whose_list_never_ends(camera_root):
    def endless(descriptor, request, buffer):
        if request & 0xFF == 0:
            buffer[:] = Capability(b"d", b"c", b"b", 0, 1, 0)
        elif request & 0xFF == 2:
            Format.from_buffer(buffer).code = b"MJPG"
        else:
            wanted = FrameSize.from_buffer(buffer)
            wanted.kind, wanted.sizes[:2] = 1, (640, 480)

    (camera,) = cameras.read_cameras(camera_root, endless)
    assert len(camera["formats"]["MJPG"]) == 256


@pytest.mark.parametrize(
    ("number", "state", "text", "mend"),
    [
        (errno.EACCES, "missing", "no permission", "sudo usermod -aG video $USER"),
        (errno.EBUSY, "note", "in use by another program", "fuser -v /dev/video0"),
        (errno.ENODEV, "note", "No such device", None),
    ],
)
def test_a_camera_that_cannot_be_opened(camera_root, monkeypatch, number, state, text, mend):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cameras.os, "open", refuse)
    (row,) = camera_rows(camera_root, cameras.read_cameras(camera_root, fake_driver({})))
    assert (row.state, row.mend) == (state, mend)
    assert text in row.text


def test_a_camera_that_fails_while_it_is_asked(camera_root):
    (camera,) = cameras.read_cameras(camera_root)  # a plain file is no Video4Linux device
    assert camera["problem"] == os.strerror(errno.ENOTTY)


def test_bare_sensors_and_unknown_formats(camera_root):
    entry = {"device": "/dev/video0", "name": "vi-output, imx219", "problem": None}
    (row,) = camera_rows(camera_root, [{**entry, "formats": {"RG10": [(3264, 2464)]}}])
    assert (row.state, "a bare sensor" in row.text) == ("note", True)
    (row,) = camera_rows(camera_root, [{**entry, "formats": {"H264": []}}])
    assert (row.state, row.text.endswith("; none that OpenCV reads")) == ("note", True)
    (row,) = camera_rows(camera_root, [{**entry, "formats": {}}])
    assert row.text.endswith("it lists no formats")


# The report


def test_a_probe_with_a_bug_becomes_a_row(desktop):
    answers = {**ON_DESKTOP, "cv2": Answer({}), "cuda": Answer({"library": True, "gpus": [["only a name"]]})}
    row = rows(desktop, answers, PIP)
    assert row["opencv"].state == "note"
    assert row["opencv"].text == "could not be found out, a bug worth reporting: KeyError: 'build'"
    assert "a bug worth reporting: ValueError" in row["gpu"].text
    assert row["onnxruntime"].state == "ok"
    backend, auto = judged(desktop, answers, PIP)
    assert auto is None
    assert "a bug worth reporting" in backend["onnxruntime"].reason


def test_a_question_that_cannot_be_put_becomes_a_row(bare, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(report, "_QUESTIONS", {"gpu": fail})
    (row,) = report.gather(bare).failed
    assert "gpu: could not be found out, a bug worth reporting: PermissionError" in row.text
    assert row in report.examine(report.gather(bare)).findings


def test_every_backend_is_judged_and_needs_what_the_report_knows(bare):
    backend, _ = judged(bare, {})
    assert set(backend) == set(ENGINES)
    known = set(rows(bare, {"openvino": ON_DESKTOP["openvino"]}))
    assert all(set(kind.needs) <= known for kind in ENGINES.own.values())


def test_commands_name_extras_that_exist(desktop, bare):
    extras = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    sources = "".join(path.read_text() for path in (ROOT / "pipeline" / "doctor").glob("*.py"))
    named = {extra for group in re.findall(r"edgemask\[([a-z,-]+)\]", sources) for extra in group.split(",")}
    assert {"cpu", "tensorrt", "tensorrt-rtx", "torch-tensorrt"} <= named <= extras


def stub(monkeypatch, given):
    monkeypatch.setattr(command, "gather", lambda _: given)


def test_table(jetson, monkeypatch, capsys):
    named = {"cameras": [{"device": "/dev/video0", "name": "\x1b[31mred", "formats": {"MJPG": []}, "problem": None}]}
    stub(
        monkeypatch,
        facts(jetson, {**ON_JETSON, "onnxruntime": Answer({"version": "1.32.0"}), "cameras": Answer(named)}),
    )
    monkeypatch.setattr(command, "examine", lambda given: report.examine(given, ORDER))
    monkeypatch.setenv("COLUMNS", "80")
    assert command.main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "  ok       L4T             36.4.3 (JetPack 6.2)\n" in out
    assert "  runs     tensorrt        TensorRT 10.3.0, on Orin" in out
    assert "--backend auto takes tensorrt here; a bundle without a plan" in out
    assert max(len(line) for line in out.splitlines() if "$ " not in line and "Lines after" not in line) <= 80


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_nothing_can_run(bare, monkeypatch, capsys, arguments):
    stub(monkeypatch, facts(bare, {"cuda": NO_LIBRARY}))
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err == (
        "error: no backend can run here: expected one of onnxruntime, openvino, openvino-gpu, openvino-npu, "
        "tensorrt, tensorrt-rtx, torch-tensorrt, triton, got none: begin with: pip install 'edgemask[cpu]'\n"
    )
    if arguments:
        assert json.loads(out)["auto"] is None
    else:
        assert "$ pip install 'edgemask[cpu]'" in out


def test_on_a_jetson_the_first_command_is_for_tensorrt(jetson, monkeypatch, capsys):
    stub(monkeypatch, facts(jetson, {"cuda": ON_JETSON["cuda"], "cv2": opencv()}))
    assert command.main([]) == 2
    assert capsys.readouterr().err.endswith("begin with: sudo apt install nvidia-jetpack\n")


def test_wrong_option(cli):
    done = cli("pipeline.doctor", "--jsn")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: unrecognized arguments: --jsn: did you mean '--json'\? \(see .* --help\)\n", done.stderr
    )


def test_this_machine(cli):
    done = cli("pipeline.doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said.keys() == {"findings", "backends", "auto"}
    assert all(row.keys() == {"key", "title", "state", "text", "mend"} for row in said["findings"])
    assert all(row.keys() == {"name", "can", "reason", "mend"} for row in said["backends"])
    assert {row["state"] for row in said["findings"]} <= {"ok", "missing", "note"}
    keys = [row["key"] for row in said["findings"]]
    assert len(keys) == len(set(keys))
    assert not [row for row in said["findings"] if "a bug worth reporting" in row["text"]]
    assert {row["name"]: row["can"] for row in said["backends"]}["onnxruntime"] == "run"


def test_this_machine_in_words(cli, tmp_path):
    done = cli("pipeline.doctor", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii", "COLUMNS": "90"})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  runs     onnxruntime +ONNX Runtime [\d.]+, on the CPU$", done.stdout, re.MULTILINE)


def test_a_reader_that_has_seen_enough(tmp_path):
    write(
        tmp_path,
        {
            "doctor.py": """
import sys, time
from pathlib import Path
from pipeline.doctor import __main__ as command
from pipeline.machine.probe import Answer, Facts
here = {"onnxruntime": Answer({"version": "1.32"}), "cv2": Answer({"version": "4.14", "build": ""})}
command.gather = lambda root: time.sleep(0.3) or Facts(Path("/none"), {}, here, {})
sys.exit(command.main([]))
"""
        },
    )
    script = f"cd {tmp_path}; PYTHONPATH={ROOT} {sys.executable} doctor.py 2>errors | true; exit ${{PIPESTATUS[0]}}"
    answer = ask({"it": Question(command=("bash", "-c", script))})["it"]
    assert (answer.problem, (tmp_path / "errors").read_text()) == (None, "")


def test_constants_of_the_kernel():
    # _IOR and _IOWR of linux/ioctl.h: direction, size, 'V', number.
    for request, direction, record, number in (
        (cameras.QUERYCAP, 2, Capability, 0),
        (cameras.ENUM_FMT, 3, Format, 2),
        (cameras.ENUM_FRAMESIZES, 3, FrameSize, 74),
    ):
        assert request == direction << 30 | ctypes.sizeof(record) << 16 | ord("V") << 8 | number
    for record, layout in ((Capability, cameras.CAPABILITY), (Format, cameras.FORMAT), (FrameSize, cameras.FRAME_SIZE)):
        assert ctypes.sizeof(record) == layout.size
