"""Another model under a run: which ones are taken, and which are refused with a reason."""

import dataclasses
import json
import os
import shutil
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pipeline.engines
from pipeline.bundles.bundle import MANIFEST_NAME, PROGRAM_NAME, REFERENCE_NAME, Bundle, file_sha256
from pipeline.command import model_swap
from pipeline.command.model_swap import ModelSwap, open_for, signature
from pipeline.command.run_options import MaskOptions, ModelOptions, RunOptions
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.flow.events import Events
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.base import Sink
from pipeline.sources.base import Source

WAIT_S = 60  # only a broken test waits so long


def program(gain=1.0, *, counts=True):
    """masks = clip(frames[..., 2] / 255 * gain, 0, 1) * 255: a network of one weight, as ONNX bytes."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "red"], ["reds"], axis=3),
        helper.make_node("Div", ["reds", "most"], ["shares"]),
        helper.make_node("Mul", ["shares", "gain"], ["scores"]),
        helper.make_node("Clip", ["scores", "zero", "one"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "most"], ["drawn"]),
        helper.make_node("Cast", ["drawn"], ["masks"], to=TensorProto.UINT8),
        helper.make_node("Sub", ["scores", "scores"], ["nothing"]),
        helper.make_node("IsNaN", ["nothing"], ["wrong"]),
        helper.make_node("Cast", ["wrong"], ["ones"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["ones", "sides"], ["not_finite"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])]
    if counts:
        outputs.append(helper.make_tensor_value_info("not_finite", TensorProto.INT32, ["N"]))
    numbers = {"most": 255.0, "gain": gain, "zero": 0.0, "one": 1.0}
    graph = helper.make_graph(
        nodes if counts else nodes[:7],
        "one weight",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        initializer=[helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in numbers.items()]
        + [
            helper.make_tensor("red", TensorProto.INT64, [], [2]),
            helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Yard(Source):
    """A ramp of red that moves, until it is told to end; a frame each few milliseconds."""

    def __init__(self, size_hw=(16, 64), name="yard"):
        self.info = SourceInfo(name, "a ramp", size_hw=size_hw, live=True)
        self.size_hw, self.over = size_hw, threading.Event()

    def __iter__(self):
        ramp = np.linspace(0, 255, self.size_hw[1]).astype(np.uint8)
        index = 0
        while not self.over.wait(0.004):
            pixels = np.zeros((*self.size_hw, 3), np.uint8)
            pixels[..., 2] = np.roll(ramp, index)
            yield Frame(pixels, index, index / 250, "yard", str(index))
            index += 1


class Kept(Sink):
    def __init__(self):
        self.indices, self.last = [], None

    def write(self, frame):
        self.indices.append(frame.index)
        self.last = frame


class Running:
    """A run in a thread of its own, whose model the test changes."""

    def __init__(self, bundle, tmp_path):
        self.folder = tmp_path / "model"
        self.folder.symlink_to(bundle.folder)
        self.options = RunOptions(("yard",), ModelOptions(str(self.folder), may_build=False))
        self.source, self.sink, self.swapped = Yard(), Kept(), []
        self.engine = ReplaceableEngine(open_for(self.options, bundle, [self.source.info]))
        self.swap = ModelSwap(self.engine, [self.source], lambda: self.swapped.append(self.engine.bundle))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.let_pass(3)

    def _run(self):
        views = Views(lambda image, mask: image)
        run(self.source, self.engine, views, [self.sink], events=Told(self.swap), drop_oldest=False)

    def let_pass(self, count):
        """Wait for so many frames more."""
        wanted, deadline_s = len(self.sink.indices) + count, time.monotonic() + WAIT_S
        while len(self.sink.indices) < wanted:
            assert time.monotonic() < deadline_s
            assert self._thread.is_alive()
            time.sleep(0.002)

    def take(self, folder, **changed):
        """Put another bundle into the model's place and ask for it."""
        self.folder.unlink()
        self.folder.symlink_to(folder)
        return self.swap(dataclasses.replace(self.options, **changed), lambda: None)

    def end(self):
        self.source.over.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.engine.close()
        assert self.sink.indices == list(range(len(self.sink.indices)))  # none lost, none twice


class Told(Events):
    def __init__(self, swap):
        super().__init__()
        self.computed = swap.computed


@pytest.fixture
def make(red_bundle, tmp_path):
    """``make("new", program(1.3), reference=program())``: a bundle."""

    def call(name, content, reference=None, **entries):
        files = {PROGRAM_NAME: content} | ({} if reference is None else {REFERENCE_NAME: reference})
        precision = "fp32" if reference is None else "fp16"
        manifest = dataclasses.replace(red_bundle.manifest, **{"model": name, "precision": precision, **entries})
        return Bundle.write(tmp_path / name, manifest, files)

    return call


@pytest.fixture
def running(make, tmp_path):
    started = Running(make("first", program(), program()), tmp_path)
    yield started
    started.end()


def test_a_model_that_agrees_with_its_own_fp32_program_takes_over(running, make, said):
    assert running.take(make("second", program(1.0001), program()).folder)
    running.let_pass(3)
    assert running.engine.bundle.manifest.model == "second"
    assert [bundle.manifest.model for bundle in running.swapped] == ["second"]
    assert running.swap.counts == {"taken": 1, "refused": 0}
    (line,) = [line for line in said if "taken over" in line]
    assert line.startswith("model: second, fp16, 1×1 inside, on ONNX Runtime")
    assert "with its own FP32 program" in line


def test_frames_neither_wait_nor_go_while_models_come(running, make):
    folders = [make(name, program(gain), program()).folder for name, gain in (("a", 1.001), ("b", 0.999))]
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for at in range(10):
        assert running.take(folders[at % 2])
        running.let_pass(2)
    assert running.swap.counts == {"taken": 10, "refused": 0}
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def spoiled(bundle, tmp_path, content):
    """A copy of a bundle whose program was changed after its gate, and its manifest with it."""
    folder = tmp_path / f"spoiled-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(bundle.folder, folder)
    (folder / PROGRAM_NAME).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["files"][PROGRAM_NAME] = file_sha256(folder / PROGRAM_NAME)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def test_ten_bad_bundles_are_refused_and_each_with_its_reason(running, make, tmp_path, said):
    good = make("good", program(), program())
    truncated, no_manifest, half = (tmp_path / name for name in ("truncated", "no-manifest", "half"))
    for folder in (truncated, no_manifest, half):
        shutil.copytree(good.folder, folder)
    os.truncate(truncated / PROGRAM_NAME, 100)
    os.truncate(half / MANIFEST_NAME, 200)
    (no_manifest / MANIFEST_NAME).unlink()
    bad = {
        spoiled(good, tmp_path, program(1.3)): "expected masks that agree with its own FP32 program by IoU 0.99",
        spoiled(good, tmp_path, program(0.2)): "expected masks that agree with its own FP32 program",
        spoiled(good, tmp_path, b"no program"): "cannot load it",
        spoiled(good, tmp_path, program(float("nan"))): "expected finite scores, got 1024",
        make("empty", program(0.0)).folder: "expected masks that agree with the masks before it",
        truncated: "the file was changed or damaged",
        half: "expected JSON",
        no_manifest: f"expected a bundle with {MANIFEST_NAME}",
        make(
            "classes", program(), task="classes", classes=("a", "b")
        ).folder: "expected the classes of the model that runs",
        make("size", program(), frame_size_hw=(9, 9)).folder: "expected a program for frames of yard, 16×64",
    }
    for count, (folder, reason) in enumerate(bad.items(), 1):
        said.clear()
        assert running.take(folder)
        (line,) = said
        assert line.startswith("model: not taken, the one before runs on: ")
        assert reason in line
        assert running.swap.counts == {"taken": 0, "refused": count}
        assert running.swap.told == line
    running.let_pass(3)
    assert running.engine.bundle.manifest.model == "first"
    assert running.take(good.folder)  # and a good one is taken after all of them
    assert running.swap.told == ""


def test_the_bundles_own_gate_is_what_it_is_held_to(running, make):
    loose = {"gate": {"mean": 0.5, "worst": 0.5}}
    assert running.take(make("loose", program(1.3), program(), verification=loose).folder)
    assert running.swap.counts == {"taken": 1, "refused": 0}


def test_what_is_judged_does_not_become_another_on_the_way(running, make, monkeypatch):
    """An engine that still finds out what is the fastest would be compared with itself."""
    tuned = []
    monkeypatch.setattr(pipeline.engines, "_tuned", lambda engine, *_: tuned.append(engine) or engine)
    assert running.take(make("second", program(), program()).folder)
    assert running.swap.counts == {"taken": 1, "refused": 0}
    assert not tuned
    with open_for(running.options, running.engine.bundle, [running.source.info]):
        assert len(tuned) == 1  # a run that begins does


def test_what_runs_already_is_not_taken_again(running, make):
    assert not running.swap(running.options, lambda: None)
    other = make("second", program(), program()).folder
    assert running.take(other)
    assert not running.take(other)
    assert running.swap.counts == {"taken": 1, "refused": 0}


def test_one_that_must_draw_and_cannot_is_refused(running, make, said):
    assert running.take(make("second", program(), program()).folder, masks=MaskOptions(compose="device"))
    assert "--compose device" in said[-1]


def test_without_frames_it_is_taken_uncompared_and_says_so(make, tmp_path, said):
    first, second = make("first", program(), program()), make("second", program(2.0), program())
    source = Yard()
    options = RunOptions(("yard",), ModelOptions(str(second.folder), may_build=False))
    with ReplaceableEngine(open_for(options, first, [source.info])) as engine:
        swap = ModelSwap(engine, [source], lambda: None)
        ready = threading.Event()
        thread = threading.Thread(target=swap, args=(options, ready.set), daemon=True)
        thread.start()
        assert ready.wait(WAIT_S)  # that it takes over with the next frame is decided
        engine.renew()
        deadline_s = time.monotonic() + WAIT_S
        while engine.bundle.manifest.model != "second":
            assert time.monotonic() < deadline_s
            engine.renew()
        thread.join(WAIT_S)
    assert "not compared, for no frame has come yet" in said[-1]


def test_few_frames_are_kept_of_many_sources(make, monkeypatch, clock_of):
    clock = clock_of(model_swap)
    sources = [Yard(name=name) for name in "abc"]
    with ReplaceableEngine(open_for(RunOptions(()), make("first", program()), [])) as engine:
        swap = ModelSwap(engine, sources, lambda: None)
        for index in range(100):
            clock.now_s += 0.1
            for name in "abc":
                frame = Frame(np.zeros((2, 2, 3), np.uint8), index, index / 10, name, "")
                frame.mask = np.zeros((2, 2), np.uint8)
                swap.computed(frame)
        kept = [(frame.source, frame.index) for frame in swap._frames()]
        assert len(kept) == 6
        assert {source for source, _ in kept} == set("abc")
        assert min(index for _, index in kept) >= 85
        swap.leave(sources[1])
        assert {frame.source for frame in swap._frames()} == {"a", "c"}


def test_a_folder_is_told_from_another_in_its_place(make, tmp_path):
    first, second = make("first", program()).folder, make("second", program(2.0)).folder
    place = tmp_path / "place"
    assert signature(place) == ()
    shutil.copytree(first, place)
    before = signature(place)
    assert before == signature(place) != ()
    os.utime(place / MANIFEST_NAME, ns=(1, 1))
    assert signature(place) != before
    shutil.rmtree(place)
    place.symlink_to(second)
    other = signature(place)
    place.unlink()
    place.symlink_to(first)
    assert signature(place) not in (before, other, ())
