"""Recordings of real runs, replayed: bit for bit on the same backend, and what differs is named."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.__main__ import main as run_command
from pipeline.bundles.bundle import PROGRAM_NAME, REFERENCE_NAME, Bundle
from pipeline.flight import recorder as recorder_module
from pipeline.replay.__main__ import main as replay_command

ROOT = Path(__file__).parents[3]


@pytest.fixture
def video(tmp_path, write_video):
    """``video("a.mp4", 12)``: a film of noise that moves, of which no two frames are alike."""

    def make(name, count=12, size_hw=(64, 96)):
        big = cv2.resize(np.random.default_rng(len(name)).integers(0, 255, (24, 64, 3), np.uint8), (400, 160))
        images = [np.ascontiguousarray(big[: size_hw[0], 9 * index : 9 * index + size_hw[1]]) for index in range(count)]
        return write_video(tmp_path / name, images)

    return make


@pytest.fixture
def record(tmp_path, monkeypatch):
    """``record(bundle, "a.mp4", …)``: one recording of a run of the command, by an event in the middle of it."""

    def make(bundle, *arguments):
        folder = tmp_path / "flight"
        shutil.rmtree(folder, ignore_errors=True)
        seen = recorder_module.FlightRecorder.computed

        def computed(self, frame):
            seen(self, frame)
            if frame.index == 5:
                self.event("audit", "asked for by the test", frame.source)

        monkeypatch.setattr(recorder_module.FlightRecorder, "computed", computed)
        command = ["--model", str(bundle.folder), "--flight", str(folder), "-o", "null", "-q", *map(str, arguments)]
        assert run_command(command) == 0
        monkeypatch.setattr(recorder_module.FlightRecorder, "computed", seen)
        (path,) = folder.glob("*.zip")
        return path

    return make


@pytest.fixture
def replay(capfd):
    def call(path, *arguments):
        capfd.readouterr()
        status = replay_command([str(path), *map(str, arguments)])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=status, out=out.splitlines(), err=err.splitlines())

    return call


@pytest.fixture(scope="module")
def nv12_bundle(red_bundle, tmp_path_factory):
    pytest.importorskip("torch")
    from compile.program.nv12 import with_nv12

    program = with_nv12(red_bundle.program_path.read_bytes(), None)
    manifest = dataclasses.replace(red_bundle.manifest, pixels="nv12")
    return Bundle.write(tmp_path_factory.mktemp("bundles") / "nv12", manifest, {PROGRAM_NAME: program})


def frames_in(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("flight.json"))["frames"]


def all_same(done):
    return done.status == 0 and [line for line in done.out if line.startswith("masks: all ")]


def test_bit_for_bit_with_two_frames_in_flight_and_two_sources(record, replay, video, red_bundle):
    path = record(red_bundle, video("a.mp4"), video("bb.mp4"))
    assert {frame["source"] for frame in frames_in(path)} == {"a.mp4", "bb.mp4"}
    done = replay(path)
    assert done.out[0].endswith("audit of a.mp4: asked for by the test") or "bb.mp4" in done.out[0]
    assert all_same(done), done
    assert "model: red, fp32, the bundle that was recorded" in done.err


def test_bit_for_bit_with_nv12(record, replay, video, nv12_bundle):
    path = record(nv12_bundle, video("a.mp4"))
    assert {frame["format"] for frame in frames_in(path)} == {"nv12"}
    assert all_same(replay(path))


def test_bit_for_bit_with_the_governor_and_smoothing(record, replay, video, red_bundle):
    path = record(red_bundle, video("a.mp4"), "--fps", "500", "--smooth", "strong", "--refine-edges")
    assert frames_in(path)
    assert all_same(replay(path))


def test_bit_for_bit_of_a_real_network(record, replay, video, u2netp_bundle):
    assert all_same(replay(record(u2netp_bundle, video("a.mp4", 7)), "--backend", "onnxruntime"))


def test_the_first_frame_that_differs_is_named(record, replay, video, red_bundle, make_bundle):
    path = record(red_bundle, video("a.mp4"))
    frames = frames_in(path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    changed = frames[3]
    mask = cv2.imdecode(np.frombuffer(contents[changed["mask"]], np.uint8), cv2.IMREAD_UNCHANGED)
    mask[2, 3] ^= 4
    contents[changed["mask"]] = cv2.imencode(".png", mask)[1].tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    done = replay(path)
    assert done.status == 3
    (line,) = [line for line in done.out if line.startswith("masks:")]
    assert f"masks: 1 of {len(frames)} differ" in line
    assert f"the first is frame {changed['index']} of a.mp4" in line
    assert f"1 of {mask.size} pixels, by up to 4 of 255" in line


def test_frames_of_another_bundle_are_left_out(record, replay, video, red_bundle):
    """As where a bundle was swapped under the run."""
    path = record(red_bundle, video("a.mp4"))
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(contents["flight.json"])
    (sha256,) = facts["bundles"]
    facts["bundles"]["f" * 64] = facts["bundles"][sha256]
    for frame in facts["frames"][:3]:
        frame["bundle"] = "f" * 64
        contents[frame["mask"]] = contents[facts["frames"][-1]["mask"]]
    contents["flight.json"] = json.dumps(facts).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    done = replay(path)
    assert done.status == 0
    assert (
        f"masks: all {len(facts['frames']) - 3} are the same, bit for bit; 3 of another bundle are left out" in done.out
    )


def test_another_program_is_told(record, replay, video, red_bundle, tmp_path):
    path = record(red_bundle, video("a.mp4"))
    model = onnx.load(red_bundle.program_path)
    blue = next(tensor for tensor in model.graph.initializer if tensor.name == "red")
    blue.CopyFrom(numpy_helper.from_array(np.array(0, np.int64), "red"))
    other = Bundle.write(tmp_path / "blue", red_bundle.manifest, {PROGRAM_NAME: model.SerializeToString()})
    done = replay(path, "--model", other.folder)
    assert done.status == 3
    assert "model: red, fp32, another program than the one that was recorded" in done.err


def spoiled(bundle, folder, layer, factor=1.3):
    """A bundle whose program has one layer's weights scaled, and its FP32 program as it was."""
    model = onnx.load(bundle.program_path)
    node = [node for node in model.graph.node if node.op_type == "Conv"][layer]
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    scaled = (numpy_helper.to_array(weights) * np.float32(factor)).astype(numpy_helper.to_array(weights).dtype)
    weights.CopyFrom(numpy_helper.from_array(scaled, weights.name))
    files = {PROGRAM_NAME: model.SerializeToString(), REFERENCE_NAME: bundle.program_path.read_bytes()}
    return Bundle.write(folder, bundle.manifest, files), node.input[1].removeprefix("network.").removesuffix(".weight")


def test_the_spoiled_layer_is_named(record, replay, video, u2netp_bundle, tmp_path):
    bundle, layer = spoiled(u2netp_bundle, tmp_path / "spoiled", 40)
    path = record(bundle, video("a.mp4", 7))
    done = replay(path)
    assert done.status == 3
    assert any(line.startswith("masks: all ") for line in done.out)  # it computes now what it computed then
    (line,) = [line for line in done.out if line.startswith("layers:")]
    assert f"the first that computes something else is {layer} (Conv)" in line
    assert replay(path, "--no-reference").status == 0
    again = replay(path, "--model", "u2netp", "--backend", "onnxruntime")  # the good one: masks differ, no layer does
    assert again.status == 3
    assert any(line.startswith("masks: ") and "differ" in line for line in again.out)


@pytest.mark.parametrize("arguments", [("none.zip",), ("notes.txt",), ()])
def test_mistakes_are_the_user_s(replay, tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    done = replay_command(list(arguments))
    assert done == 2


def test_a_reference_without_its_fp32_program_is_refused(record, replay, video, red_bundle, make_bundle):
    half = make_bundle("half", precision="fp16")
    done = replay(record(red_bundle, video("a.mp4")), "--reference", half.folder)
    assert done.status == 2
    assert "expected a bundle with its FP32 program, got one without" in done.err[-1]


def test_frames_go_into_a_calibration_set(record, replay, video, red_bundle, tmp_path):
    from calibration.sets.calibration_set import read_set

    path = record(red_bundle, video("a.mp4"))
    done = replay(path, "--as-calibration", tmp_path / "set")
    assert (done.status, done.out) == (0, [str(tmp_path / "set" / "contact_sheet.png")])
    before = read_set(tmp_path / "set")
    other = record(red_bundle, video("a-film-of-something-else.mp4"))
    assert replay(other, "--as-calibration", tmp_path / "set").status == 0
    after = read_set(tmp_path / "set")
    assert {entry.sha256 for entry in before.entries} < {entry.sha256 for entry in after.entries}
    assert after.verification == before.verification
    again = replay(other, "--as-calibration", tmp_path / "set")
    assert again.status == 2
    assert "has nothing like, got none" in again.err[-1]


def test_sigusr1_and_the_end_of_a_run(tmp_path, replay, red_bundle):
    """The signal reaches a run of the command that goes on, and its handler is gone afterwards."""
    before = signal.getsignal(signal.SIGUSR1)
    folder = tmp_path / "flight"

    def send():
        due_s = time.monotonic() + 60
        while signal.getsignal(signal.SIGUSR1) == before and time.monotonic() < due_s:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    command = ["test://?size=64x48", "--model", str(red_bundle.folder), "--flight", str(folder), "-o", "null", "-q"]
    assert run_command([*command, "--max-frames", "60"]) == 0
    sender.join()
    assert signal.getsignal(signal.SIGUSR1) == before
    (path,) = folder.glob("*.zip")
    done = replay(path)
    assert "signal: asked for by SIGUSR1" in done.out[0]
    assert all_same(done)


def test_a_run_that_is_terminated_writes_what_is_pending(tmp_path, red_bundle):
    """SIGUSR1 and at once SIGTERM, as an operator does who restarts a service that misbehaves."""
    folder = tmp_path / "flight"
    command = [sys.executable, "-m", "pipeline", "test://?size=64x48&fps=25", "--model", str(red_bundle.folder)]
    command += ["--flight", str(folder), "-o", "jsonl:-"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        guard = threading.Timer(120, job.kill)
        guard.start()
        for _ in range(20):
            assert job.stdout.readline()
        os.kill(job.pid, signal.SIGUSR1)
        for _ in range(5):  # the loop has come round
            assert job.stdout.readline()
        os.kill(job.pid, signal.SIGTERM)
        job.stdout.read()
        err = job.stderr.read()
    guard.cancel()
    assert job.returncode == 143, err
    (path,) = folder.glob("*.zip")
    assert f"flight: {path}: signal: asked for by SIGUSR1" in err
    assert len(frames_in(path)) >= 20
