"""Frames that a decoder has left on the GPU, through engines that take them from there; neither of the two is real."""

import gc
import resource
import weakref

import numpy as np
import pytest

from pipeline.engines import open_engine
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.errors import ShapeError
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.on_device import FramesOnDevice
from pipeline.render.compose import look_values
from pipeline.render.look import Look
from pipeline.sinks.base import Sink
from pipeline.sources import open_source

BT709 = {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709:range=tv"}


def read(spec, decode):
    with open_source(spec, decode=decode) as source:
        source.pixels = "nv12"
        return list(source)


def on_gpu(clip):
    return [frame.device for frame in read(clip, "cuda")]


@pytest.mark.parametrize("schedule", ["late", "others first", "eager"])
@pytest.mark.parametrize("group", [1, 3])
def test_masks_are_those_of_the_same_frames_from_the_host(
    decoder, open_planned, fake_machine, nv12_masks_bundle, clip, schedule, group
):
    fake_machine.gpu.schedule = schedule
    expected = [frame.pixels for frame in read(clip, "auto")]
    lie = on_gpu(clip)
    with open_planned(nv12_masks_bundle) as engine:
        assert engine.takes_device
        for start in range(0, 12, group):
            masks = engine(np.stack(expected[start : start + group]))
            engine.submit(FramesOnDevice(tuple(lie[start : start + group])))
            np.testing.assert_array_equal(engine.collect(), masks)
    assert fake_machine.gpu.calls.count("cuMemcpy2DAsync") == 24


def test_nothing_goes_up(decoder, open_planned, fake_machine, nv12_masks_bundle, clip):
    (first, *_) = on_gpu(clip)
    with open_planned(nv12_masks_bundle) as engine:
        fake_machine.gpu.calls.clear()
        engine.submit(FramesOnDevice((first,)))
        engine.collect()
    assert "cuMemcpyHtoDAsync" not in fake_machine.gpu.calls


def test_views_come_beside_masks(decoder, open_planned, nv12_bundle, clip):
    host, look = read(clip, "auto")[5].pixels, look_values(Look(alpha=0.8))
    lies = on_gpu(clip)[5]
    with open_planned(nv12_bundle) as engine:
        engine.submit(host[None], look)
        expected = engine.collect_all()
        engine.submit(FramesOnDevice((lies,)), look)
        got = engine.collect_all()
    np.testing.assert_array_equal(got.masks_nhw, expected.masks_nhw)
    np.testing.assert_array_equal(got.views, expected.views)


def test_pictures_in_flight_are_held_until_they_are_computed(decoder, open_planned, nv12_masks_bundle, clip):
    expected = [frame.pixels for frame in read(clip, "auto")]
    lie = on_gpu(clip)
    held = [weakref.ref(one.owner) for one in lie]
    with open_planned(nv12_masks_bundle) as engine:
        masks = [engine(one[None]) for one in expected[:3]]
        for _ in range(engine.in_flight):
            engine.submit(FramesOnDevice((lie.pop(0),)))  # and nobody else has it now
        gc.collect()
        assert all(one() is not None for one in held[: engine.in_flight])
        for index, mask in enumerate(masks):
            np.testing.assert_array_equal(engine.collect(), mask)
            gc.collect()
            assert held[index]() is None


def test_the_decoder_goes_on_while_a_graph_is_recorded(
    decoder, fake_machine, add_plan, nv12_masks_bundle, clip, monkeypatch
):
    expected, lie = read(clip, "auto"), on_gpu(clip)
    recorded = []
    with open_engine(add_plan(nv12_masks_bundle, "tensorrt"), "tensorrt") as engine:
        execute = engine._execute

        def and_the_decoder():
            execute()
            if fake_machine.gpu.capture is not None:
                recorded.append(on_gpu(clip))

        monkeypatch.setattr(engine, "_execute", and_the_decoder)
        for frame, device in zip(expected[:4], lie, strict=False):
            engine.submit(FramesOnDevice((device,)))
            got = engine.collect()
            np.testing.assert_array_equal(got, engine(frame.pixels[None]))
    assert recorded


def test_other_engines_are_given_arrays(decoder, clip, nv12_masks_bundle, fake_machine):
    (first, *_) = on_gpu(clip)
    with open_engine(nv12_masks_bundle, "onnxruntime") as engine:
        assert not engine.takes_device
        with pytest.raises(RuntimeError, match="takes no frames on the GPU"):
            engine.submit(FramesOnDevice((first,)))


def test_a_size_that_the_plan_was_not_built_for(decoder, open_planned, nv12_masks_bundle, tmp_path, write_video):
    path = write_video(tmp_path / "large.mp4", [np.zeros((514, 64, 3), np.uint8)], **BT709)
    (lies,) = on_gpu(str(path))
    with open_planned(nv12_masks_bundle) as engine, pytest.raises(ShapeError, match="got 1 of 514×64"):
        engine.submit(FramesOnDevice((lies,)))


def test_an_engine_for_bgr_takes_none(open_planned, red_bundle):
    with open_planned(red_bundle) as engine:
        assert not engine.takes_device


class Kept(Sink):
    def __init__(self):
        self.masks, self.views, self.lie = [], [], []

    def write(self, frame):
        self.lie.append(frame.device is not None)
        self.masks.append(frame.mask.copy())
        self.views.append(frame.view.copy())


def through(clip, engine, decode, views):
    sink = Kept()
    with open_source(clip, decode=decode) as source:
        run(source, engine, views, [sink])
    return sink


@pytest.mark.parametrize("replaceable", [False, True])
def test_a_run_is_the_same_wherever_frames_are_decoded(decoder, open_planned, nv12_bundle, clip, replaceable):
    look = look_values(Look())
    composed = Views(lambda image, mask: image, looks=lambda: look)
    drawn = Views(lambda image, mask: image)
    with open_planned(nv12_bundle) as engine:
        engine = ReplaceableEngine(engine) if replaceable else engine
        for views, stay in ((composed, True), (drawn, False)):
            expected, got = through(clip, engine, "auto", views), through(clip, engine, "cuda", views)
            assert got.lie == [stay] * 12  # what the GPU draws never comes down; what the CPU draws does
            np.testing.assert_array_equal(got.masks, expected.masks)
            np.testing.assert_array_equal(got.views, expected.views)


@pytest.mark.parametrize("composes", [False, True])
def test_the_command(decoder, add_plan, nv12_bundle, nv12_masks_bundle, clip, main, tmp_path, read_video, composes):
    planned = add_plan(nv12_bundle if composes else nv12_masks_bundle, "tensorrt")
    words = ["--source", clip, "--backend", "tensorrt", "--compose", "device" if composes else "auto", "--headless"]
    for decode in ("auto", "cuda"):
        words_now = [*words, "--decode", decode, "--output", tmp_path / f"{decode}.mp4"]
        done = main(*words_now, model=planned.folder, quiet=False)
        assert done.status == 0
        told = [line for line in done.err if line.startswith("--decode cuda: each frame is copied to the CPU too")]
        assert len(told) == (decode == "cuda" and not composes)
    assert decoder.frames == 13
    # CUDA reserves more addresses than the memory that opening a file may take.
    assert decoder.made[0].limit_bytes == resource.getrlimit(resource.RLIMIT_AS)[0] != decoder.made[1].limit_bytes
    auto, cuda = (read_video(tmp_path / f"{decode}.mp4") for decode in ("auto", "cuda"))
    assert (cuda.pts_s, len(cuda.images)) == (auto.pts_s, 12)
    np.testing.assert_array_equal(cuda.images, auto.images)


def test_the_command_refuses_what_does_not_fit(
    decoder, fake_machine, add_plan, nv12_masks_bundle, red_bundle, clip, refused
):
    words = ["--source", clip, "--decode", "cuda", "--output", "null:", "--headless"]
    assert "expected a bundle that takes NV12, as the GPU's decoder gives it, got " in refused(*words)
    line = refused(*words, "--backend", "onnxruntime", model=nv12_masks_bundle.folder)
    assert "--decode cuda: expected a backend that takes frames on the GPU, tensorrt or tensorrt-rtx, got ONNX" in line
    assert line.endswith(": choose it with --backend, or leave --decode cuda out")
