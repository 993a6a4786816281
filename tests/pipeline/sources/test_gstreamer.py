import contextlib
import itertools
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.sources import gstreamer, open_source
from pipeline.sources.options import LiveOptions
from pipeline.sources.yuv4mpeg import Yuv4mpegReader
from pipeline.stages.telemetry import State

ROOT = Path(__file__).parents[3]
WAIT_S = 20  # only a broken test waits so long
real = pytest.mark.needs_program("gst-launch-1.0")

COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0), "white": (255, 255, 255), "black": (0, 0, 0)}


def wait_until(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def opened(spec, **options):
    quick = {"stall_s": 0.5, "reconnect_s": 0.5, "connect_s": WAIT_S, "backoff_s": 0.01, "backoff_max_s": 0.01}
    return open_source(spec, LiveOptions(**{**quick, **options}))


@pytest.fixture(autouse=True)
def _elements_asked_anew():
    gstreamer.has_element.cache_clear()
    yield
    gstreamer.has_element.cache_clear()


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """``programs(launch="…", inspect="…")``: shell scripts in the place of GStreamer's programs."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    child = tmp_path / "child"
    child.write_text('#!/bin/sh\nexec xargs -0 -a "/dev/fd/$2" "$(dirname "$0")/gst-launch-1.0"\n')
    child.chmod(0o700)
    monkeypatch.setattr(gstreamer, "CHILD", (str(child),))

    def write(**scripts):
        for name, script in scripts.items():
            path = tmp_path / f"gst-{name}-1.0"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return tmp_path

    return write


FRAME = "printf 'YUV4MPEG2 W8 H2 F30:1\\n' >/dev/fd/$fd; printf 'FRAME\\n0123456789abcdef01234567' >/dev/fd/$fd"
WORDS = 'for word; do printf "%s\\n" "$word" >>"$(dirname $0)/words"; done'
FD = 'for word; do case "$word" in fd=*) fd=${word#fd=};; esac; done'


@real
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    "form", ["width=64,height=48", "width=64,height=720", "width=33,height=17", "format=RGB,width=854,height=6"]
)
def test_colours_and_sizes_of_a_real_pipeline(colour, form):
    with opened(f"gst:videotestsrc pattern={colour} num-buffers=3 ! video/x-raw,{form}") as source:
        frames = list(itertools.islice(source, 2))
    sizes = dict(word.split("=") for word in form.split(","))
    for frame in frames:
        assert frame.size_hw == (int(sizes["height"]), int(sizes["width"]))
        np.testing.assert_allclose(frame.image.reshape(-1, 3), [COLOURS[colour]] * frame.image[..., 0].size, atol=4)


@real
@pytest.mark.parametrize("colorimetry", ["1:4:0:0", "2:4:5:1", "bt601", "bt709"])
def test_every_matrix_and_range_is_understood(colorimetry):
    text = (
        "gst:videotestsrc pattern=white ! video/x-raw,format=RGB,width=64,height=48 ! videoconvert ! "
        f"video/x-raw,format=I420,colorimetry={colorimetry}"
    )
    with opened(text) as source:
        np.testing.assert_allclose(next(iter(source)).image, 255, atol=3)


@real
def test_the_end_of_a_pipeline_is_a_reconnection(said):
    with opened("gst:videotestsrc num-buffers=2 ! video/x-raw,width=8,height=8") as source:
        assert source.info.name == "gst"
        frames = list(itertools.islice(source, 5))
    assert [frame.index for frame in frames] == list(range(5))
    assert said[:2] == ["gst: running", "gst: reconnecting: the stream ended"]


@real
@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ("nosuchelement ! fakesink", 'an erroneous pipeline: no element "nosuchelement"'),
        ("videotestsrc ! !", "an erroneous pipeline: syntax error"),
        ("videotestsrc nop=1", 'an erroneous pipeline: no property "nop" in element "videotestsrc"'),
        ("audiotestsrc", "an erroneous pipeline: could not link audiotestsrc0 to videoconvert0"),
    ],
)
def test_a_pipeline_that_can_never_work_fails_in_one_line(pipeline, said):
    with (
        opened(f"gst:{pipeline}") as source,
        pytest.raises(SourceError, match=rf"^gst: expected a pipeline of GStreamer, got {said}$"),
    ):
        next(iter(source))


@real
def test_what_fails_for_now_is_told_and_tried_again():
    with (
        opened("gst:v4l2src device=/dev/video99", max_reconnects=1) as source,
        pytest.raises(
            SourceError, match=r"^gst: Cannot identify device '/dev/video99'; gave up after 1 reconnections$"
        ),
    ):
        next(iter(source))


@real
def test_a_child_that_stops_is_a_stall_and_is_killed(said):
    wait_until(lambda: not children())  # those of the tests before
    with opened("gst:videotestsrc is-live=true ! video/x-raw,width=64,height=48") as source:
        frames = iter(source)
        next(frames)
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        while source.telemetry.snapshot().reconnects == 0 or source.telemetry.state is not State.RUNNING:
            next(frames)
        wait_until(lambda: child not in children())
    assert "gst: stalled: no frame for 0.5 s" in said
    wait_until(lambda: not children())


def children():
    """The programs that this process has started and that still run."""
    tasks = Path("/proc/self/task").glob("*/children")
    numbers = [int(number) for task in tasks for number in task.read_text().split()]
    return [number for number in numbers if _name_of(number) == "edgemask-gst"]


def _name_of(process):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""


@real
def test_nothing_is_left_of_a_hanging_pipeline_when_the_process_is_killed():
    code = (
        "import sys, time\nfrom pipeline.sources import open_source\n"
        "source = open_source('gst:videotestsrc is-live=true ! video/x-raw,width=64,height=48')\n"
        "frames = iter(source); next(frames)\n"
        "print('running', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        (child,) = [int(number) for task in tasks for number in task.read_text().split()]
        os.kill(child, signal.SIGSTOP)  # it will not notice that nobody reads
        process.kill()
    wait_until(lambda: not Path(f"/proc/{child}").exists() or _state(child) == "Z")


def _state(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_words_go_to_the_program_as_a_shell_would_give_them_and_no_shell_sees_them(programs):
    folder = programs(launch=f"{FD}\n{WORDS}\n{FRAME}\nsleep 60")
    with opened(
        "gst:v4l2src device=\"/dev/my camera\" ! video/x-raw(memory:NVMM),width=8 ! 'a$(touch x)`;b'"
    ) as source:
        next(iter(source))
    words = (folder / "words").read_text().splitlines()
    assert words[:6] == [
        *("v4l2src", "device=/dev/my camera", "!", "video/x-raw(memory:NVMM),width=8", "!", "a$(touch x)`;b"),
    ]
    assert words[6:-1] == [
        *("!", "videoconvert", "!", "video/x-raw,format=I420,colorimetry=bt709", "!", "y4menc", "!", "fdsink")
    ]


def test_what_a_plugin_prints_is_no_picture(programs):
    programs(launch=f"{FD}\necho GST_ARGUS: Creating output stream\n{FRAME}\nsleep 60")
    with opened("gst:nvarguscamerasrc") as source:
        assert next(iter(source)).size_hw == (2, 8)


def test_the_reason_of_an_end_is_its_first_error_without_secrets(programs, said):
    error = "ERROR: from element /GstPipeline:p/GstSrc:s: cannot open http://me:secret@cam/1 with pa55word."
    programs(launch=f'echo "{error}" >&2; echo "ERROR: pipeline does not want to preroll." >&2; exit 1')
    with opened('gst:src location=http://me:secret@cam/1 user-pw="pa55word"', max_reconnects=0) as source:
        assert source.info.description == "GStreamer, src location=http://***@cam/1 user-pw=***"
        with pytest.raises(SourceError) as caught:
            next(iter(source))
    assert str(caught.value).startswith("gst: cannot open http://***@cam/1 with ***; gave up")
    assert "secret" not in f"{source.info} {said} {source.telemetry.snapshot()}"


def test_a_child_that_writes_something_else_is_left(programs):
    programs(launch=f'{FD}\nprintf "hello world\\n" >/dev/fd/$fd; sleep 60')
    with (
        opened("gst:x", max_reconnects=0) as source,
        pytest.raises(SourceError, match=r"expected pictures of gst-launch-1.0, got something other than YUV4MPEG2"),
    ):
        next(iter(source))


def test_closing_ends_a_child_that_ignores_signals_with_all_that_it_started(programs):
    folder = programs(launch=f"trap '' INT TERM\n{FD}\nsleep 300 & echo $$ $! >{'$(dirname $0)'}/pids\n{FRAME}\nwait")
    source = opened("gst:x", stall_s=WAIT_S)
    thread = threading.Thread(target=lambda: list(source), daemon=True)
    thread.start()
    wait_until(lambda: source.telemetry.state is State.RUNNING)
    numbers = [int(number) for number in (folder / "pids").read_text().split()]
    start_s = time.monotonic()
    source.close()
    thread.join(WAIT_S)
    assert time.monotonic() - start_s < 1
    wait_until(lambda: all(_state(number) == "Z" for number in numbers))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gst:", r"^gst:: expected a pipeline such as gst:v4l2src, got nothing$"),
        ("gst:a 'b", r"^gst:…: expected a pipeline as for gst-launch-1.0, got one with an open quotation mark$"),
        (
            "gst:--gst-plugin-load=x a",
            r"^gst:…: expected a pipeline as for gst-launch-1.0, got an option of the program$",
        ),
        ("csi:0", r"^csi:0: expected a form such as csi://0\?size=1920x1080&fps=30&flip=0$"),
        ("csi://", "expected a form"),
        ("csi://x", "expected a form"),
        ("csi://0/1", "expected a form"),
        ("csi://0?size=1", "expected a form"),
        ("csi://0?fps=0", "expected a form"),
        ("csi://0?flip=8", "expected a form"),
        ("csi://0?gain=1", "expected a form"),
    ],
)
def test_what_is_no_pipeline(spec, message):
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_a_machine_without_gstreamer(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        BackendUnavailableError, match=r"^gst: expected gst-launch-1.0, got a machine without: install it with"
    ):
        open_source("gst:videotestsrc")
    assert not gstreamer.has_jetson_decoder()


def test_a_csi_camera_needs_a_jetson(programs):
    programs(launch="exit 1", inspect="exit 1")
    with (
        opened("csi://0") as source,
        pytest.raises(SourceError, match=r"^csi0: expected GStreamer's nvarguscamerasrc, got"),
    ):
        next(iter(source))


def test_the_pipeline_of_a_csi_camera(programs):
    folder = programs(launch=f'{FD}\necho "$*" >{"$(dirname $0)"}/words\n{FRAME}\nsleep 60', inspect="exit 0")
    with opened("csi://1?size=1280x720&fps=60&flip=2") as source:
        assert source.info.name == "csi1"
        next(iter(source))
    assert (
        (folder / "words")
        .read_text()
        .startswith(
            "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=60/1,format=NV12 ! "
            "nvvidconv flip-method=2 ! video/x-raw,format=I420 ! videoconvert ! "
        )
    )


def test_rtsp_is_decoded_by_a_jetsons_decoder_where_there_is_one(programs):
    folder = programs(
        launch=f"{FD}\n{WORDS}\n{FRAME}\nsleep 60",
        inspect='case "$2" in nvv4l2decoder|nvvidconv) exit 0;; esac; exit 1',
    )
    with socket.create_server(("127.0.0.1", 0)) as camera:
        place = f"127.0.0.1:{camera.getsockname()[1]}"
        with opened(f'rtsp://me:p"q\\ r@{place}/a b?x=1') as source:
            assert next(iter(source)).size_hw == (2, 8)
    words = (folder / "words").read_text().splitlines()
    assert re.fullmatch(r"location=rtsp://127\.0\.0\.1:\d+/[0-9a-f]{32}", words[1])
    assert place not in words[1]
    assert [words[0], *words[2:10]] == [
        *("rtspsrc", "protocols=tcp", "latency=100", "!", "application/x-rtp,media=video", "!", "decodebin", "!"),
        "nvvidconv",
    ]


@real
@pytest.mark.parametrize("pipeline", ["videotestsrc is-live=true", "rtspsrc location=rtsp://me:hunter2@127.0.0.1:9/x"])
def test_no_command_line_holds_the_words(pipeline):
    source = opened(f"gst:{pipeline} name=hunter2 ! identity")
    thread = threading.Thread(target=lambda: list(source), daemon=True)
    thread.start()
    wait_until(children)
    tasks = Path("/proc/self/task").glob("*/children")
    numbers = [number for task in tasks for number in task.read_text().split()]
    lines = [Path(f"/proc/{number}/cmdline").read_bytes() for number in numbers if Path(f"/proc/{number}").exists()]
    source.close()
    thread.join(WAIT_S)
    assert any(b"gst_child.py" in line for line in lines)
    assert not any(b"hunter2" in line for line in lines)


# The reader ---------------------------------------------------------------------------------------------------------------


def stream_of(*sizes_hw, filled):
    """Grey pictures of these sizes as bytes, number i of them with luma 40 + 10·i."""
    content = bytearray()
    for number, (height, width) in enumerate(sizes_hw):
        half = (height + 1) // 2, (width + 1) // 2
        content += f"YUV4MPEG2 C420 W{width} H{height} Ip F30:1 A1:1\nFRAME\n".encode()
        for (rows, columns), value in (((height, width), 40 + 10 * number), (half, 128), (half, 128)):
            if filled:
                rows, columns = (2 * half[0] if value != 128 else rows), (columns + 3) // 4 * 4
            content += bytes([value]) * (rows * columns)
    return bytes(content)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 16])
def test_pictures_in_pieces_of_any_length(filled, piece):
    sizes = [(4, 6), (17, 33), (48, 64), (5, 3), (2, 854), (4, 8)]
    content, reader, images = stream_of(*sizes, filled=filled) + stream_of((4, 8), filled=filled), Yuv4mpegReader(), []
    while content:
        space = reader.space()
        count = min(piece, len(space), len(content))
        space[:count] = content[:count]
        content = content[count:]
        images += [decoded.pixels for decoded in reader.received(count)]
    assert [image.shape[:2] for image in images] == [*sizes, (4, 8)]
    for number, image in enumerate(images[:-1]):
        np.testing.assert_allclose(image, round((24 + 10 * number) * 255 / 219), atol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"FRAME\n", "something other than YUV4MPEG2"),
        (b"hello\n", "something other than YUV4MPEG2"),
        (b"x" * 300, "no line end in its header"),
        (b"YUV4MPEG2 W8\n", "a header without a size"),
        (b"YUV4MPEG2 W8 H8 C444\n", "pictures of another kind, 444"),
        (b"YUV4MPEG2 W8 H8 C420p10\n", "pictures of another kind, 420p10"),
        (b"YUV4MPEG2 W0 H8\n", "pictures of 0×8"),
        (b"YUV4MPEG2 W99999 H99999\n", "pictures of 99999×99999, at most 134217728 pixels are taken"),
    ],
)
def test_what_is_no_picture(content, message):
    reader = Yuv4mpegReader()
    reader.space()[: len(content)] = content
    with pytest.raises(ValueError, match=message):
        reader.received(len(content))


def test_pictures_have_memory_of_their_own():
    reader, images = Yuv4mpegReader(), []
    for value in (50, 200):
        content = b"YUV4MPEG2 W8 H2\nFRAME\n" + bytes([value] * 16 + [128] * 8)
        reader.space()[: len(content)] = content
        images += [decoded.pixels for decoded in reader.received(len(content))]
    assert images[0][0, 0, 0] < images[1][0, 0, 0]
