"""What reads, writes and shows frames: OpenCV, GStreamer, PyAV with its FFmpeg, a hardware encoder, a display."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.machine.gpu import gpus
from pipeline.machine.machine import jetpack_command, read_board
from pipeline.machine.probe import Facts, Finding, Question

_QUESTIONS = {
    "cv2": """
import cv2
found.update(version=cv2.__version__, file=cv2.__file__, build=cv2.getBuildInformation())
""",
    "av": """
import av
from fractions import Fraction
found.update(version=av.__version__, ffmpeg=av.ffmpeg_version_info)
found["codecs"] = sorted({"libx264", "h264_nvenc"} & set(av.codec.codecs_available))
if "h264_nvenc" in found["codecs"]:
    av.logging.set_level(None)
    encoder = av.CodecContext.create("h264_nvenc", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 640, 360, "yuv420p", Fraction(1, 30)
    try:
        encoder.open()
        found["nvenc"] = True
    except (OSError, ValueError):
        found["nvenc"] = False
""",
    "display": """
from pipeline.sinks.display import display_problem
found["problem"] = display_problem()
""",
}
_OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def questions(_: Path, environment: Mapping[str, str]) -> dict[str, Question]:
    """What is asked in processes of their own."""
    modules = {"cv2": "cv2", "av": "av", "display": "cv2"}
    asked = {name: Question(code) for name, code in _QUESTIONS.items() if importlib.util.find_spec(modules[name])}
    launch = shutil.which("gst-launch-1.0", path=environment.get("PATH"))
    return asked | ({"gstreamer": Question(command=(launch, "--version"))} if launch else {})


def opencv_findings(facts: Facts) -> list[Finding]:
    """OpenCV, and whether several of its packages lie over each other."""
    title = ("opencv", "OpenCV")
    answer = facts.answers.get("cv2")
    jetson = read_board(facts.root).jetson
    command = jetpack_command(facts.root, "cv2") if jetson else "pip install opencv-python"
    if answer is None:
        return [Finding(*title, "missing", "not installed; nothing runs without it", command)]
    if answer.problem:
        words = f"installed, but cannot be loaded: {answer.problem}"
        return [
            Finding(*title, "missing", words, _opencv_mend(facts, answer.problem, jetson)),
            *_several_opencvs(facts),
        ]
    build = str(answer.found["build"])
    windows = re.search(r"^\s*GUI:\s*(\S+)", build, re.MULTILINE)
    kind = windows[1] if windows else "unknown"
    words = f"{answer.found['version']}, {'without windows' if kind == 'NONE' else f'windows by {kind}'}"
    return [Finding(*title, "ok", words), *_several_opencvs(facts)]


def video_findings(facts: Facts) -> list[Finding]:
    """PyAV and the encoders of its FFmpeg."""
    title = ("pyav", "PyAV")
    answer = facts.answers.get("av")
    if answer is None:
        return [Finding(*title, "missing", "not installed; it reads and writes videos", "pip install av")]
    if answer.problem and "codecs" not in answer.found:
        words = f"installed, but cannot be loaded: {answer.problem}"
        return [Finding(*title, "missing", words, "pip install --force-reinstall av")]
    codecs = answer.found["codecs"]
    words = f"{answer.found['version']}, FFmpeg {answer.found['ffmpeg']}"
    if "libx264" in codecs:
        finding = Finding(*title, "ok", f"{words}, writes H.264 with libx264")
    else:
        command = "pip install --force-reinstall --only-binary av av"
        finding = Finding(*title, "missing", f"{words}, without libx264: videos cannot be written", command)
    return [finding, _nvenc_finding(facts, codecs, answer.found.get("nvenc", False))]


def display_findings(facts: Facts) -> list[Finding]:
    """Whether a window can be shown."""
    title = ("display", "Display")
    answer = facts.answers.get("display")
    if answer is None or answer.problem:
        reason = (answer.problem if answer else None) or "it takes OpenCV"
        return [Finding(*title, "note", f"not tried: {reason}")]
    problem = answer.found["problem"]
    if problem is None:
        return [Finding(*title, "ok", "a window opens")]
    reason, _, command = str(problem).partition(": pip install")
    if not command:
        return [Finding(*title, "note", f"no window ({reason}); --output writes files")]
    headless = [name for name in _OPENCVS if name in facts.versions and name.endswith("headless")]
    removal = f"pip uninstall -y {' '.join(headless)}" if headless else ""
    install = "" if read_board(facts.root).jetson else f"pip install{command}"
    return [Finding(*title, "missing", f"no window: {reason}", " && ".join(filter(None, (removal, install))) or None)]


def gstreamer_findings(facts: Facts) -> list[Finding]:
    """GStreamer's own programs, which read CSI cameras and ``gst:`` pipelines; OpenCV's is not used."""
    title = ("gstreamer", "GStreamer")
    answer = facts.answers.get("gstreamer")
    jetson = read_board(facts.root).jetson
    install = "sudo apt install gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-plugins-bad"
    if answer is None:
        if jetson:
            return [Finding(*title, "missing", "not installed; CSI cameras and the Jetson's decoder need it", install)]
        return [Finding(*title, "note", f"not installed; gst: sources and outputs need it ({install})")]
    match = re.search(r"version ([\d.]+)", str(answer.found.get("output", "")))
    if match is None:
        return [Finding(*title, "missing", f"installed, but does not run: {answer.problem or 'no answer'}", install)]
    if jetson and not any(facts.root.glob("usr/lib/*/gstreamer-1.0/libgstnvarguscamerasrc.so")):
        words = f"{match[1]}, without NVIDIA's elements: no CSI camera, no hardware decoder"
        return [Finding(*title, "missing", words, "sudo apt install nvidia-l4t-gstreamer")]
    return [Finding(*title, "ok", match[1])]


def _several_opencvs(facts: Facts) -> list[Finding]:
    here = [name for name in _OPENCVS if name in facts.versions]
    if len(here) < 2 or read_board(facts.root).jetson:  # where none of them belongs
        return []
    # They own the same files: what is kept is damaged when another one goes, so all go and one comes back.
    kept = next((name for name in reversed(here) if not name.endswith("headless")), here[0])
    command = f"pip uninstall -y {' '.join(here)} && pip install {kept}"
    words = f"{' and '.join(here)} lie over each other: keep one"
    return [Finding("opencv_packages", "OpenCV twice", "missing", words, command)]


def _opencv_mend(facts: Facts, problem: str, jetson: bool) -> str:
    wheels = [name for name in _OPENCVS if name in facts.versions]
    if not jetson:
        if re.search(r"libGL|libgthread|libglib", problem):
            return "sudo apt install libgl1 libglib2.0-0"
        return f"pip install --force-reinstall {wheels[0] if wheels else 'opencv-python'}"
    if wheels:
        return f"pip uninstall -y {' '.join(wheels)}"
    if "numpy" in problem.lower() or "_ARRAY_API" in problem:
        return "pip install 'numpy<2'"  # JetPack 6 built its OpenCV for NumPy 1
    return "sudo apt install --reinstall libopencv-python"


def _nvenc_finding(facts: Facts, codecs: list[str], opened: bool) -> Finding:
    title = ("nvenc", "NVENC")
    board = read_board(facts.root)
    if board.jetson:
        if "Orin Nano" in (board.model or ""):
            return Finding(*title, "note", "the Orin Nano has no video encoder: H.264 is written by the CPU")
        return Finding(*title, "note", "a Jetson's encoder is reached through GStreamer (nvv4l2h264enc), not FFmpeg")
    if "h264_nvenc" not in codecs:
        return Finding(*title, "note", "this FFmpeg has no h264_nvenc: H.264 is written by the CPU")
    if opened:
        return Finding(*title, "ok", "FFmpeg's h264_nvenc opens")
    reason = "it does not open on this GPU" if gpus(facts) else "there is no NVIDIA GPU"
    return Finding(*title, "note", f"FFmpeg has h264_nvenc, but {reason}: H.264 is written by the CPU")
