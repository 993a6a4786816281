"""What the tests of the run half share: bundles, pictures and videos made on the spot, and the command inside this process."""

import dataclasses
import os
import select
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer

_SYSTEM_PYTHON = "/usr/bin/python3"  # GStreamer's bindings come with the system
_WAIT_S = 20  # only a broken test waits so long


@pytest.fixture
def make_bundle(red_bundle, tmp_path):
    """``make_bundle(program=b"…", frame_size_hw=(4, 6), …)``: a bundle like ``red_bundle``, with other entries."""

    def make(name="bundle", program=None, **entries):
        program = red_bundle.program_path.read_bytes() if program is None else program
        return Bundle.write(
            tmp_path / name, dataclasses.replace(red_bundle.manifest, **entries), {PROGRAM_NAME: program}
        )

    return make


@pytest.fixture
def make_frame():
    """``make_frame(image_hwc, index)``: a frame as it comes to a sink, its mask the red channel."""

    def make(image, index=0, pts_s=None, name=None, view=None):
        frame = Frame(image, index, index / 25 if pts_s is None else pts_s, "test", name or f"{index:06d}")
        frame.mask = np.ascontiguousarray(image[..., 2])
        frame.view = image.copy() if view is None else view
        return frame

    return make


@pytest.fixture
def make_info():
    """``make_info(fps=25)``: what a source tells its sinks."""

    def make(fps=25, **facts):
        rate = Fraction(fps) if fps else None
        return SourceInfo(**{"name": "test", "description": "test", "fps": rate, **facts})

    return make


@pytest.fixture
def renderer():
    return Renderer(Look(mode="overlay"), "binary")


@pytest.fixture(scope="session")
def write_video():
    """``write_video(path, images, fps=25)``: a video file by other means than those under test."""

    def write(
        path,
        images,
        fps=25,
        pts=None,
        time_base=None,
        codec="libx264",
        pix_fmt="yuv420p",
        rotation=None,
        movflags=None,
        **options,
    ):
        with av.open(f"file:{path}", "w", options={"movflags": movflags} if movflags else {}) as container:
            stream = container.add_stream(codec, rate=Fraction(fps), options={"preset": "ultrafast", **options})
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = pix_fmt
            if time_base is not None:
                stream.codec_context.time_base = time_base
            if rotation is not None:
                if not hasattr(stream, "set_display_rotation"):
                    pytest.skip("this PyAV cannot write a rotation")
                stream.set_display_rotation(rotation)
            for index, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
                frame.pts = pts[index] if pts else index
                frame.time_base = time_base or 1 / Fraction(fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def read_video():
    """``read_video(path)``: what a player sees of a video file."""

    def read(path):
        with av.open(f"file:{path}") as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            context = stream.codec_context
            return SimpleNamespace(
                images=[frame.to_ndarray(format="bgr24") for frame in frames],
                pts_s=[float(frame.pts * frame.time_base) for frame in frames],
                fps=stream.average_rate,
                duration_s=float(stream.duration * stream.time_base) if stream.duration else None,
                codec=context.name,
                pix_fmt=context.pix_fmt,
                tags=(int(context.colorspace), int(context.color_primaries), int(context.color_trc)),
                color_range=int(context.color_range),
                size_hw=(stream.height, stream.width),
            )

    return read


@pytest.fixture(scope="session")
def write_picture():
    """``write_picture(path, array, *parameters)``: a picture file under any name."""

    def write(path, array, *parameters, suffix=None):
        encoded, content = cv2.imencode(suffix or path.suffix, array, parameters)
        assert encoded
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.tobytes())
        return path

    return write


@pytest.fixture(scope="session")
def read_picture():
    """``read_picture(path)``: the array exactly as it lies in a file, with its alpha channel."""

    def read(path):
        array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        assert array is not None
        return array

    return read


@pytest.fixture
def red_images():
    """12 pictures (32, 48, 3); the red channel of number i is 20·i at the left and 255 in the last columns."""
    images = []
    for index in range(12):
        image = np.full((32, 48, 3), (60, 40, 20 * index), np.uint8)
        image[:, 40:, 2] = 255
        images.append(image)
    return images


@pytest.fixture
def main(capfd, red_bundle, monkeypatch):
    """``main("--source", …)``: the command in this process, quiet, with ``red_bundle``; gives status, out and error lines."""
    from pipeline.__main__ import main as command

    # A source is taken at its word, as at a terminal.
    monkeypatch.setattr("pipeline.command.engine_of_run._BEGINS_S", 0.0)

    def call(*arguments, model=red_bundle.folder, quiet=True):
        capfd.readouterr()
        status = command(["--model", str(model), *(["--quiet"] if quiet else []), *map(os.fspath, arguments)])
        out, err = capfd.readouterr()
        # libpng itself says on standard error what is wrong with a picture, and cannot be told not to.
        err_lines = [line for line in err.splitlines() if not line.startswith("libpng ")]
        return SimpleNamespace(status=status, out=out.splitlines(), err=err_lines)

    return call


@pytest.fixture
def refused(main):
    """``refused("--source", …)``: the command must end with status 2 and one line, which is returned."""

    def call(*arguments, **options):
        done = main(*arguments, **options)
        assert (done.status, done.out) == (2, [])
        assert len(done.err) == 1
        assert done.err[0].startswith("error: ")
        return done.err[0]

    return call


@pytest.fixture(scope="session")
def _bindings():
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        found = subprocess.run([_SYSTEM_PYTHON, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found and not os.environ.get("FAIL_WITHOUT_RTSP_SERVER"):
        pytest.skip(
            "no RTSP server on this machine: sudo apt install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly"
        )


@pytest.fixture
def serve(_bindings):
    """``serve(size="160x120", user=…)``: a real RTSP server; gives its process, its port and where its stream is."""
    servers = []

    def call(**options):
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [_SYSTEM_PYTHON, str(Path(__file__).parent / "sources" / "rtsp_server.py"), *words]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert select.select([server.stdout], [], [], _WAIT_S)[0]
        server.port = int(server.stdout.readline())
        server.place = f"127.0.0.1:{server.port}/test"
        return server

    yield call
    for server in servers:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "edgemask-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk of 300 kB can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def clock_of(monkeypatch):
    """``clock_of(module)``: the clock of a module, which the test moves: ``clock.now_s``."""

    class Clock:
        now_s = 100.0

        def monotonic(self):
            return self.now_s

    def put(module):
        clock = Clock()
        monkeypatch.setattr(module, "time", clock)
        return clock

    return put


@pytest.fixture
def in_two_processes():
    """Calls something with "one" and with "two" at once, in a process each, and expects both to come to their end."""

    def run(work):
        children = []
        for name in ("one", "two"):
            child = os.fork()
            if not child:
                status = 1
                try:
                    work(name)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]

    return run


@pytest.fixture
def first_frame_of_clip(red_bundle):
    """The command line of a run that computes one frame of a video and writes nothing."""
    clip = Path(__file__).parents[2] / "samples" / "clip.mp4"
    return [str(clip), "--model", str(red_bundle.folder), "--max-frames", "1", "--output", "null"]
