"""Views that stay on the GPU and are encoded there; neither GPU nor NVENC is real (``tests.fakes.cuda_encoder``)."""

import ast
import ctypes
import gc
import weakref
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from pipeline.engines import open_engine
from pipeline.engines.replaceable import ReplaceableEngine
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.frames.nv12 import to_bgr
from pipeline.frames.on_device import FramesOnDevice, OnDevice, Plane
from pipeline.render.compose import look_values
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import nvenc, open_sink
from pipeline.sinks.base import Sink
from pipeline.sinks.h264 import Muxer, encodes_on_gpu
from pipeline.sinks.of_source import OfSource
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.recording import RecordingSink
from pipeline.sources import open_source
from tests.fakes import cuda_encoder

LOOK = look_values(Look(alpha=0.8))


@pytest.fixture
def encoder(decoder, fake_machine, monkeypatch):
    """A machine that also encodes from the GPU's memory."""
    made = cuda_encoder.CudaEncoder(fake_machine.gpu.at)
    made.install(monkeypatch)
    return made


def on_gpu(clip):
    with open_source(clip, decode="cuda") as source:
        source.pixels = "nv12"
        return [frame.device for frame in source]


def drawn(engine, *pictures):
    engine.submit(FramesOnDevice(pictures), LOOK)
    return engine.collect_all()


def through(clip, engine, path, encoder="nvenc"):
    """The clip through the engine, which draws, into a file."""
    with (
        open_source(clip, decode="cuda") as source,
        open_sink(str(path), source.info, Renderer(Look(), "binary"), SinkOptions(encoder=encoder)) as sink,
    ):
        run(source, engine, Views(lambda image, mask: image, looks=lambda: LOOK), [sink])


@pytest.mark.parametrize("schedule", ["late", "others first"])
@pytest.mark.parametrize("replaceable", [False, True])
def test_the_video_is_the_same_and_no_view_comes_down(
    encoder, open_planned, nv12_bundle, fake_machine, clip, tmp_path, read_video, schedule, replaceable
):
    gpu = fake_machine.gpu
    gpu.schedule = schedule
    with open_planned(nv12_bundle) as engine:
        engine.batch = 1
        engine = ReplaceableEngine(engine) if replaceable else engine
        through(clip, engine, tmp_path / "down.mp4")
        assert (encoder.on_cpu, encoder.on_gpu) == (12, 0)
        assert gpu.calls.count("cuMemcpyDtoHAsync") == 2 * 12  # masks and views
        gpu.calls.clear()
        engine.leaves_views = True
        through(clip, engine, tmp_path / "stay.mp4")
        assert (encoder.on_cpu, encoder.on_gpu) == (12, 12)
        assert gpu.calls.count("cuMemcpyDtoHAsync") == 12
        assert "cuMemcpyDtoH" not in gpu.calls
    down, stay = (read_video(tmp_path / f"{name}.mp4") for name in ("down", "stay"))
    assert stay.pts_s == down.pts_s
    np.testing.assert_array_equal(stay.images, down.images)
    assert encoder.most_held > 1  # what was encoded was read late, and nobody had written there


def test_memory_is_used_again_when_nobody_holds_the_picture(encoder, open_planned, nv12_bundle, fake_machine, clip):
    pictures = on_gpu(clip)
    alive = fake_machine.gpu.alive
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        drawn(engine, pictures[0])
        before, addresses = alive["DeviceAllocation"], set()
        for picture in pictures:
            (view,) = drawn(engine, picture).views
            addresses.add(view.luma.address)
        del view
        assert len(addresses) == 2  # the last view is held while the next one is drawn
        held = [view for picture in pictures[:5] for view in drawn(engine, picture).views]
        assert len({view.luma.address for view in held}) == 5
        for view, picture in zip(held, pictures, strict=False):
            (again,) = drawn(engine, picture).views
            np.testing.assert_array_equal(view.to_host(), again.to_host())
        del held, view, again
        assert alive["DeviceAllocation"] == before + 6  # five that are held, and two for one after the other


def test_views_of_a_batch_and_rows_with_gaps(encoder, open_planned, nv12_bundle, clip):
    pictures = on_gpu(clip)[:3]
    with open_planned(nv12_bundle) as engine:
        down = drawn(engine, *pictures).views
        engine.leaves_views = True
        views = drawn(engine, *pictures).views
        assert views.shape == down.shape == (3, 48, 48)
        for view, expected in zip(views, down, strict=True):
            assert view.luma.pitch_bytes == view.chroma.pitch_bytes == 256
            assert view.chroma.address == view.luma.address + 32 * 256
            np.testing.assert_array_equal(view.to_host(), expected)


def test_a_picture_may_outlive_its_engine(encoder, open_planned, nv12_bundle, fake_machine, clip):
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        (first, second) = drawn(engine, *on_gpu(clip)[:2]).views
        expected = first.to_host()
        del second
    np.testing.assert_array_equal(first.to_host(), expected)
    assert fake_machine.held() == {"DeviceAllocation": 1}
    del first
    assert fake_machine.held() == {}


def test_an_encoder_keeps_the_memory_that_it_was_given(
    encoder, open_planned, nv12_bundle, fake_machine, clip, tmp_path
):
    muxer = Muxer(f"file:{tmp_path / 'a.mp4'}", SourceInfo("a", "a"), live=False, wanted="nvenc")
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        for index, picture in enumerate(on_gpu(clip)):
            muxer.write(*drawn(engine, picture).views, index / 25)
    assert (
        fake_machine.held()["DeviceAllocation"] == encoder.most_held
    )  # it knows addresses, and reads some of them yet
    muxer.close()
    del muxer
    gc.collect()
    assert fake_machine.held() == {}


def test_a_frame_whose_view_stays_shows_it_to_who_asks(encoder, open_planned, nv12_bundle, clip):
    (picture, *_) = on_gpu(clip)
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        (view,) = drawn(engine, picture).views
        memory, expected = weakref.ref(view.owner), to_bgr(view.to_host())
        frame = Frame(np.zeros((32, 48, 3), np.uint8), 0, 0.0, "a", "a")
        frame.take_view(view)
        assert frame.lying_view is view
        assert repr(frame).endswith("view=(48, 48) uint8)")
        del view
        np.testing.assert_array_equal(frame.view, expected)
        assert frame.lying_view is frame.view
        assert memory() is None, "it is given back"


def test_a_view_that_is_drawn_anew_is_the_one_that_counts():
    frame = Frame(np.zeros((4, 4, 3), np.uint8), 0, 0.0, "a", "a")
    nv12, bgr = np.full((6, 4), 128, np.uint8), np.ones((4, 4, 3), np.uint8)
    frame.take_view(nv12)
    assert frame.lying_view is nv12
    frame.view = bgr
    assert frame.lying_view is frame.view is bgr


def test_pictures_from_elsewhere_go_into_the_same_video(encoder, open_planned, nv12_bundle, clip, tmp_path, read_video):
    path = tmp_path / "a.mp4"
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        (first, second) = drawn(engine, *on_gpu(clip)[:2]).views
        muxer = Muxer(f"file:{path}", SourceInfo("a", "a"), live=False, wanted="nvenc")
        assert muxer.description == ""
        muxer.write(first, 0)
        muxer.write(np.full((32, 48, 3), 200, np.uint8), 1)
        muxer.write(np.full((64, 96, 3), 100, np.uint8), 2)
        muxer.write(second, 3)
        assert muxer.description == "H.264 by the GPU (NVENC), from the GPU's own memory"
        expected = [to_bgr(first.to_host()), 200, 100, to_bgr(second.to_host())]
        muxer.close()
    assert (encoder.on_gpu, encoder.on_cpu) == (2, 2)
    for image, one in zip(read_video(path).images, expected, strict=True):
        assert np.abs(image.astype(int) - one).max() <= 6


def test_a_recording(encoder, open_planned, nv12_bundle, clip, renderer, make_info, tmp_path, read_video):
    path, info = tmp_path / "a.mp4", make_info(live=True, size_hw=(32, 48))
    with (
        open_planned(nv12_bundle) as engine,
        RecordingSink(str(path), info, renderer, SinkOptions(encoder="nvenc")) as sink,
    ):
        assert sink.leaves_views
        engine.leaves_views = True
        for index, picture in enumerate(on_gpu(clip)):
            frame = Frame(np.zeros((32, 48, 3), np.uint8), index, index / 4, "a", "a")
            frame.take_view(*drawn(engine, picture).views)
            sink.write(frame)
    assert (encoder.on_gpu, encoder.on_cpu) == (12, 0)
    assert len(read_video(path).images) == 12
    with av.open(str(path)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size) == 3  # one a second


def test_x264_has_them_come_down(encoder, open_planned, nv12_bundle, clip, tmp_path, read_video):
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        through(clip, engine, tmp_path / "a.mp4", "x264")
    assert encoder.on_gpu == encoder.on_cpu == 0
    assert len(read_video(tmp_path / "a.mp4").images) == 12


@pytest.mark.parametrize(
    ("words", "comes_down"),
    [
        ([], None),
        (["--output", "null"], None),
        (["--output", "JSONL"], None),
        (["--hud"], "which draws --hud and --legend"),
        (["--legend"], "which draws --hud and --legend"),
        (["--encoder", "x264"], "for not all outputs take them from the GPU"),
        (["--output", "pictures/"], "for not all outputs take them from the GPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command(encoder, add_plan, nv12_bundle, fake_machine, clip, main, tmp_path, read_video, words, comes_down):
    fake_machine.settings.profile = ((1, 3, 2), (1, 96, 64), (1, 768, 512))
    planned = add_plan(nv12_bundle, "tensorrt")
    fake_machine.gpu.calls.clear()
    words = [{"JSONL": tmp_path / "a.jsonl", "pictures/": f"{tmp_path}/pictures/"}.get(word, word) for word in words]
    base = ["--source", clip, "--backend", "tensorrt", "--compose", "device", "--headless", "--decode", "cuda"]
    done = main(*base, "--output", tmp_path / "a.mp4", *words, model=planned.folder, quiet=False)
    assert done.status == 0
    told = [line for line in done.err if line.startswith("--decode cuda: ")]
    assert len(told) == (comes_down is not None)
    assert all(comes_down in line for line in told)
    downloads = fake_machine.gpu.calls.count("cuMemcpyDtoHAsync")
    assert (downloads, "cuMemcpyDtoH" in fake_machine.gpu.calls) == ((1 if comes_down is None else 2) * 12, False)
    assert encoder.on_gpu == (12 if comes_down is None else 0)
    assert len(read_video(tmp_path / "a.mp4").images) == 12


def test_a_bundle_of_old_whose_views_are_bgr(encoder, add_plan, red_bundle, make_bundle, clip, main, tmp_path):
    from compile.program.compose import with_views
    from compile.program.nv12 import with_nv12

    program = with_nv12(with_views(red_bundle.program_path.read_bytes(), None), None)
    planned = add_plan(make_bundle(program=program, pixels="nv12", composes=True), "tensorrt")
    words = [
        "--source",
        clip,
        "--backend",
        "tensorrt",
        "--headless",
        "--decode",
        "cuda",
        "--output",
        tmp_path / "a.mp4",
    ]
    done = main(*words, model=planned.folder, quiet=False)
    assert done.status == 0
    (told,) = [line for line in done.err if line.startswith("--decode cuda: ")]
    assert told.endswith(
        "copied to the CPU, the bundle gives them in BGR, and NVENC takes NV12 from there: compile it again"
    )


def test_another_engine_leaves_views_too(open_planned, nv12_bundle, fake_machine, add_plan):
    replaceable = ReplaceableEngine(open_planned(nv12_bundle))
    replaceable.leaves_views = True
    other = open_engine(add_plan(nv12_bundle, replaceable._now.runtime, name="other"), replaceable._now.runtime)
    replaceable._next = other
    first = replaceable._now
    replaceable.renew()
    first.close()
    assert other.leaves_views
    replaceable.close()


def test_a_submission_that_fails_keeps_no_memory(encoder, open_planned, nv12_bundle, fake_machine, clip, monkeypatch):
    pictures = on_gpu(clip)
    with open_planned(nv12_bundle) as engine:
        engine.leaves_views = True
        drawn(engine, pictures[0])
        before = fake_machine.gpu.alive["DeviceAllocation"]
        with monkeypatch.context() as patch:
            patch.setattr(engine._download, "synchronize", None)  # not what fails
            patch.setattr(type(engine._free[0].downloaded), "record", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.submit(FramesOnDevice((pictures[0],)), LOOK)
        (view,) = drawn(engine, pictures[1]).views
        assert fake_machine.gpu.alive["DeviceAllocation"] == before
        del view


def test_the_benchmark_compares_both_decoders_and_ways_to_encode(
    encoder, add_plan, nv12_bundle, clip, tmp_path, monkeypatch
):
    from benchmarks.gpu import decoding
    from benchmarks.gpu.rows import Rows, Setup, table

    planned = add_plan(nv12_bundle, "tensorrt")
    monkeypatch.setattr(decoding, "with_plans", lambda *_: planned)
    monkeypatch.setattr(decoding.Bundle, "read", lambda _: planned)
    rows = Rows()
    decoding.measure_decoders(Setup(tmp_path, "cuda", True), rows)
    decoding.measure_device_frames(Setup(tmp_path, "cuda", True), rows)
    assert [row["error"] for row in rows.rows if "error" in row] == []
    stay, come_down, cpu, pictures, copied, gpu_draws, cpu_draws, encoded = rows.rows
    assert [row["frames"] for row in (stay, come_down, cpu, pictures, gpu_draws, encoded)] == [12] * 6
    assert [row["max_difference"] for row in (pictures, copied, gpu_draws, cpu_draws)] == [0] * 4
    assert [row["stayed"] for row in (gpu_draws, cpu_draws)] == [12, 0]
    assert (gpu_draws["iou_worst"], gpu_draws["what"]) == (1, "tensorrt, the GPU draws")
    assert (encoder.on_gpu, encoder.on_cpu) == (12, 12)
    assert encoded["psnr_worst_db"] > 300  # the same, as OpenCV says it
    assert "PSNR 361.20 dB" in "\n".join(table(rows.rows))


class Other(Sink):
    def write(self, frame):
        raise NotImplementedError


def test_which_outputs_leave_views_where_they_are(encoder, renderer, make_info, tmp_path):
    info, of_none = make_info(size_hw=(32, 48)), make_info()
    for name, one, expected in (
        ("a.mp4", info, True),
        ("a.mp4", of_none, False),
        ("a.webm", info, False),
        ("null", of_none, True),
        ("pictures/", info, False),
    ):
        with open_sink(name if name == "null" else f"{tmp_path}/{name}", one, renderer) as sink:
            assert (sink.leaves_views, OfSource("a", sink).leaves_views) == (expected, expected), name
    assert not Other("a", info, renderer).leaves_views
    assert encodes_on_gpu("auto", (32, 48), live=True)
    assert not encodes_on_gpu("x264", (32, 48), live=True)


# With PyAV itself, in the host's memory or as far as it comes without a GPU.


class Owner:
    pass


def test_pyav_reads_what_is_lent_and_gives_it_back():
    nv12 = np.random.default_rng(0).integers(0, 256, (24, 64), np.uint8)
    owner = Owner()
    held = weakref.ref(owner)
    planes = ((Plane(nv12.ctypes.data, 64), 16), (Plane(nv12.ctypes.data + 64 * 16, 64), 8))
    lent = [nvenc._Lent(plane, (rows, 32), owner, device_type=1) for plane, rows in planes]
    frame = av.VideoFrame.from_dlpack([one.capsule() for one in lent], format="nv12", width=32, height=16)
    del owner, lent
    np.testing.assert_array_equal(frame.to_ndarray(), nv12[:, :32])
    assert held() is not None
    del frame
    assert held() is None


def test_without_a_gpu_nothing_is_kept_of_a_picture_that_was_refused():
    lies = OnDevice(Plane(4096, 64), Plane(4096 + 64 * 16, 64), (16, 32), None, owner := Owner(), Owner())
    held, owner = weakref.ref(owner), None
    with pytest.raises((av.error.FFmpegError, NotImplementedError)):
        nvenc.PicturesOnGpu()(lies)
    assert nvenc._Lent._lent == {}
    del lies
    gc.collect()
    assert held() is None


def test_the_fake_has_only_names_that_pyav_has():
    from av.video.frame import CudaContext

    for kind, names in {
        av.VideoFrame: ("pts", "time_base", "pict_type", "width", "height", "format"),
        av.container.OutputContainer: ("add_stream",),
        av.VideoStream: ("encode",),
    }.items():
        assert [name for name in names if not hasattr(kind, name)] == []
    assert CudaContext(device_id=0, primary_ctx=True)
    stub = Path(av.__file__).with_name("video").joinpath("frame.pyi").read_text(encoding="utf-8")
    (function,) = (
        node for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.FunctionDef) and node.name == "from_dlpack"
    )
    taken = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    assert {"planes", "format", "width", "height", "cuda_context"} <= taken
    assert ctypes.sizeof(nvenc._Tensor) == ctypes.sizeof(cuda_encoder._Tensor) == 64
