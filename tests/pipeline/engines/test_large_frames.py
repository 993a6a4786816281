"""Large pictures by a stand-in: the network gets the same input, masks are the program's own to 1 of 255, and memory stays small."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from compile.networks.contract import Contract
from compile.program.program import FrameToInput
from pipeline.engines import open_engine
from pipeline.engines.base import Computed, Engine
from pipeline.engines.large_frames import LargeFrameEngine, stand_in
from pipeline.errors import BundleError
from tests.conftest import ROOT

SIZE_HW = (6, 8)  # of the network: 4704 pixels are large
LARGE_HW, SMALL_HW = (70, 90), (60, 70)


class Network(Engine):
    """The red channel, averaged to the network's size and enlarged; several in flight, and one that fails.

    Args:
        interpolation: how its mask is enlarged, as OpenCV calls it.
        size_hw: of its mask before.
        fail_at: the number of the submission that fails when it is collected.
    """

    counts = True
    in_flight, batch = 3, 2

    def __init__(self, interpolation=cv2.INTER_LINEAR, size_hw=SIZE_HW, fail_at=None):
        manifest = SimpleNamespace(frame_size_hw=None, pixels="bgr", task="binary", network_size_hw=SIZE_HW)
        super().__init__(SimpleNamespace(manifest=manifest))
        self.before = FrameToInput(Contract("plain", SIZE_HW, divide_by=1.0))
        self.interpolation, self.score_hw, self.fail_at = interpolation, size_hw, fail_at
        self.sizes_hw, self.waiting, self.closed = [], [], False

    def _submit(self, frames):
        self.waiting.append((len(self.sizes_hw), frames))
        self.sizes_hw.append(frames.shape[1:3])

    def _collect(self):
        number, frames = self.waiting.pop(0)
        if number == self.fail_at:
            raise BundleError("cannot collect")
        scores = self.before(torch.from_numpy(frames))[:, 0].numpy()
        small = [cv2.resize(one, self.score_hw[::-1], interpolation=cv2.INTER_AREA) for one in scores]
        masks = [cv2.resize(one, frames.shape[2:0:-1], interpolation=self.interpolation) for one in small]
        return Computed(np.rint(masks).astype(np.uint8), None, np.full(len(frames), number, np.int32))

    def _close(self):
        self.closed = True


def pictures(*sizes_hw, count=1):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (count, *size_hw, 3), dtype=np.uint8) for size_hw in sizes_hw]


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


@pytest.mark.parametrize("size_hw", [(70, 90), (71, 93), (42, 56), (1234, 777), (4, 900), (900, 5), (6, 8), (1, 1)])
def test_the_network_gets_the_same_input(size_hw):
    """As the program itself, in PyTorch, makes it of the frame and of its stand-in."""
    (frames,) = pictures(size_hw)
    frames[:, ::2] //= 3
    before = FrameToInput(Contract("plain", SIZE_HW, divide_by=1.0))
    small = stand_in(frames[0], SIZE_HW)
    assert small.shape == (42, 56, 3)
    given = [before(torch.from_numpy(each)).numpy() for each in (frames, small[None])]
    np.testing.assert_allclose(given[1], given[0], atol=1 / 98 + 1e-3)


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_a_flat_frame_has_a_flat_stand_in(value):
    assert (stand_in(np.full((91, 77, 3), value, np.uint8), SIZE_HW) == value).all()


def test_masks_of_large_frames_are_the_programs_own():
    inner, alone = Network(), Network()
    with LargeFrameEngine(inner) as engine:
        for frames in pictures(LARGE_HW, SMALL_HW, (71, 93), (9, 900), count=2):
            expected, got = alone(frames), engine(frames)
            assert got.shape == expected.shape
            assert difference(got, expected) <= 1
        assert inner.sizes_hw == [(42, 56), SMALL_HW, (42, 56), (42, 56)]
    assert inner.closed


@pytest.mark.parametrize(("interpolation", "size_hw"), [(cv2.INTER_NEAREST, SIZE_HW), (cv2.INTER_LINEAR, (3, 4))])
def test_masks_that_are_not_straight_between_pixels_are_the_programs_own_bit_for_bit(interpolation, size_hw):
    """Of classes, and of fewer scores than the network takes pixels: also those that are in flight by then, in order."""
    inner, alone = Network(interpolation, size_hw), Network(interpolation, size_hw)
    given = pictures(LARGE_HW, (72, 90), SMALL_HW)
    with LargeFrameEngine(inner) as engine:
        for frames in given:
            engine.submit(frames)
        for frames in given:
            np.testing.assert_array_equal(engine.collect(), alone(frames))
        assert inner.sizes_hw == [(42, 56), (42, 56), SMALL_HW, LARGE_HW, (72, 90)]
        np.testing.assert_array_equal(engine(given[0]), alone(given[0]))
        assert inner.sizes_hw[5:] == [LARGE_HW]  # from then on at once


def test_an_error_comes_with_its_own_submission():
    inner, alone = Network(cv2.INTER_NEAREST, fail_at=1), Network(cv2.INTER_NEAREST)
    large, small, last = pictures(LARGE_HW, SMALL_HW, (50, 60))
    with LargeFrameEngine(inner) as engine:
        for frames in (large, small, last):
            engine.submit(frames)
        np.testing.assert_array_equal(engine.collect(), alone(large))  # for which the others were collected before
        with pytest.raises(BundleError, match="cannot collect"):
            engine.collect()
        np.testing.assert_array_equal(engine.collect(), alone(last))


@pytest.mark.parametrize(
    ("change", "has_one"),
    [
        ({}, True),
        ({"frame_size_hw": (8, 8)}, False),
        ({"pixels": "nv12"}, False),
        ({"contract": {"filter": "bilinear", "fit": "stretch"}}, False),
        ({"contract": {"filter": "area", "fit": "letterbox"}}, False),
        ({"contract": {"name": "of old"}}, False),
    ],
)
def test_programs_that_average_frames_of_any_size_have_stand_ins(make_bundle, change, has_one):
    bundle = make_bundle(**{"contract": {"filter": "area", "fit": "stretch"}, **change})
    with open_engine(bundle, "onnxruntime") as engine:
        assert isinstance(engine, LargeFrameEngine) == has_one
        assert engine.is_reference
        assert engine.description.startswith("ONNX Runtime ")


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_masks_of_the_packages_network(u2netp_bundle, name):
    """Beside those that ONNX Runtime makes of the whole picture, with the noise that cameras have."""
    picture = cv2.resize(cv2.imread(str(ROOT / "samples" / "pictures" / f"{name}.jpg")), (4100, 2700))
    noise = np.random.default_rng(0).integers(-30, 31, picture.shape, dtype=np.int16)
    frames = np.clip(picture + noise, 0, 255).astype(np.uint8)[None]
    with open_engine(u2netp_bundle, "onnxruntime") as engine:
        assert difference(engine(frames), engine._inner(frames)) <= 1


RUN = """
import re, sys
from pipeline.__main__ import main
assert main(sys.argv[1:]) == 0
with open("/proc/self/status") as file:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell how much memory it took")
def test_a_picture_takes_as_much_memory_as_a_few_copies_of_it(u2netp_bundle, tmp_path):
    """Of 8000×6000, which is 144 MB: decoded, with its copy in FP32 and another axis order, it took 1.9 GB."""
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((6000, 8000, 3), 90, np.uint8))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{RUN}", "a.jpg", "--quiet"]
    command += ["--model", str(u2netp_bundle.folder), "--backend", "onnxruntime", "--output", "b.jpg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1_000_000
    assert cv2.imread(str(tmp_path / "b.jpg")).shape == (6000, 8000, 3)
