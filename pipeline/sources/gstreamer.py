"""gst:PIPELINE and csi://N: what GStreamer reads, in a process of its own that can be killed whatever hangs in it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.frames.frame import SourceInfo
from pipeline.frames.pixels import Pixels
from pipeline.redaction import redact, secrets_of
from pipeline.sources.kinds import SourceKind
from pipeline.sources.live import Connection, LiveSource, LostError, Picture
from pipeline.sources.options import LiveOptions
from pipeline.sources.yuv4mpeg import Yuv4mpegReader

GSTREAMER = SourceKind(
    name="gstreamer",
    opens="GstreamerSource",
    help="a CSI camera of a Jetson, or any pipeline of GStreamer that ends in raw pictures",
    order=50,
    install="sudo apt install gstreamer1.0-tools",
    forms=("csi://0", "gst:PIPELINE"),
    live=True,
    prefixes=("csi:", "gst:"),
)

LAUNCH = "gst-launch-1.0"
INSPECT = "gst-inspect-1.0"
_CSI_DEFAULTS = {"size": "1920x1080", "fps": "30", "flip": "0"}
_INSPECT_S = 30.0  # the first run of all registers every plug-in
_POLL_S = 0.2
_GRACE_S = 1.0
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, which Python 3.10's fcntl names on Linux alone
_STDERR_LINES = 50

# What runs a pipeline: gst-launch-1.0 takes it on its command line alone, which all users see.
CHILD = (sys.executable, "-I", "-S", str(Path(__file__).with_name("gst_child.py")))


class GstreamerSource(LiveSource):
    """Any pipeline of ``gst-launch-1.0`` that ends in raw pictures, or ``csi://0?size=1920x1080&fps=30&flip=0`` on a Jetson."""

    def __init__(self, spec: str, live: LiveOptions | None = None) -> None:
        if spec.startswith("csi:"):
            number, elements = _csi(spec)
            name, description, needs = f"csi{number}", f"CSI camera {number}, {spec}", "nvarguscamerasrc"
        else:
            elements = _elements(spec)
            name, needs = "gst", None
            description = f"GStreamer, {redact(shlex.join(elements), *secrets_of(spec))}"
        if shutil.which(LAUNCH) is None:
            raise BackendUnavailableError(
                f"{name}: expected {LAUNCH}, got a machine without: install it with: sudo apt install gstreamer1.0-tools"
            )

        def connect() -> Connection:
            return GstreamerConnection(elements, name, secrets_of(spec), needs, self.pixels)

        super().__init__(SourceInfo(name, description, live=True), connect, live)


class GstreamerConnection(Connection):
    """One run of a pipeline, whose pictures come through a pipe.

    Args:
        elements: the pipeline's words, up to raw pictures.
        name: the source's name, for messages.
        secrets: what must not be seen in messages.
        needs: an element without which it can never work.
        pixels: what pictures become.
    """

    def __init__(
        self,
        elements: Sequence[str],
        name: str,
        secrets: Sequence[str] = (),
        needs: str | None = None,
        pixels: Pixels = "bgr",
    ) -> None:
        self._elements = elements
        self._name = name
        self._secrets = secrets
        self._needs = needs
        self._pixels = pixels
        self._cancelled = False
        self._running: tuple[int, ...] = ()
        self._said: deque[str] = deque(maxlen=_STDERR_LINES)

    def __iter__(self) -> Iterator[Picture]:
        if self._needs is not None and not has_element(self._needs):
            raise SourceError(
                f"{self._name}: expected GStreamer's {self._needs}, got a machine without: it comes with JetPack on a Jetson"
            )
        # Not its standard output: plug-ins write notes there.
        read_end, write_end = os.pipe()
        try:
            with open(read_end, "rb", buffering=0) as pictures:
                try:
                    process = self._start(write_end)
                finally:
                    os.close(write_end)
                self._running = (process.pid,)
                try:
                    yield from self._read(process, pictures.fileno())
                finally:
                    self._running = ()
                    _end(process)
        except OSError as error:
            raise LostError(f"{LAUNCH} cannot be run ({(error.strerror or str(error)).lower()})") from error

    def cancel(self) -> None:
        """End the program soon."""
        self._cancelled = True

    def processes(self) -> Sequence[int]:
        """The one that runs the pipeline."""
        return self._running

    def _start(self, write_end: int) -> subprocess.Popen[bytes]:
        if sys.platform.startswith("linux"):
            with suppress(OSError):  # more than this user may have
                fcntl.fcntl(write_end, _SET_PIPE_SIZE, 1 << 20)  # else a frame of 1080p passes in 48 pieces
        return start_pipeline(_words(self._elements, write_end), stdin=subprocess.DEVNULL, keep=(write_end,), tied=True)

    def _read(self, process: subprocess.Popen[bytes], pictures: int) -> Iterator[Picture]:
        assert process.stderr is not None
        errors = process.stderr.fileno()
        reader = Yuv4mpegReader(self._pixels)
        waiting = [pictures, errors]
        while not self._cancelled:
            ready, _, _ = select.select(waiting, [], [], _POLL_S)
            if errors in ready and not self._listen(errors):
                waiting.remove(errors)
            if pictures in ready:
                space = reader.space()
                count = os.readv(pictures, [space])
                if count == 0:
                    self._raise_end(errors if errors in waiting else None)
                try:
                    pictures_now = reader.received(count)
                except ValueError as error:
                    raise LostError(f"expected pictures of {LAUNCH}, got {error}") from error
                for pixels, kind, aspect, _ in pictures_now:
                    yield Picture(pixels, format=kind, sample_aspect=aspect)

    def _listen(self, errors: int) -> bool:
        text = os.read(errors, 1 << 14)
        lines = text.decode(errors="replace").splitlines()
        self._said.extend(line.strip()[:500] for line in lines if line.strip())
        return bool(text)

    def _raise_end(self, errors: int | None) -> NoReturn:
        deadline_s = time.monotonic() + _GRACE_S
        while errors is not None and time.monotonic() < deadline_s:
            if select.select([errors], [], [], _POLL_S)[0] and not self._listen(errors):
                break
        text = redact(_first_error(self._said), *self._secrets)
        if text.startswith("erroneous pipeline"):
            raise SourceError(f"{self._name}: expected a pipeline of GStreamer, got an {text}")
        raise LostError(text or "the stream ended")


def start_pipeline(
    words: Sequence[str], *, stdin: int, keep: Sequence[int] = (), tied: bool = False
) -> subprocess.Popen[bytes]:
    """Start a pipeline in a process and a session of its own, with standard error as a pipe; no other user sees its words.

    Args:
        words: the pipeline, as for ``gst-launch-1.0``.
        stdin: as for ``Popen``.
        keep: files that it has too.
        tied: it is killed when the thread that starts it is gone.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as file:  # it has no name, and is this user's alone
        file.write(b"".join(os.fsencode(word) + b"\0" for word in words))
        file.seek(0)
        return subprocess.Popen(
            [*CHILD, str(os.getpid() if tied else 0), str(file.fileno())],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(*keep, file.fileno()),
            start_new_session=True,
            bufsize=0,
        )


def _words(elements: Sequence[str], write_end: int) -> list[str]:
    """The whole pipeline. Colors leave it as BT.709, which the pictures' header has no room to tell."""
    return [
        *(*elements, "!", "videoconvert", "!", "video/x-raw,format=I420,colorimetry=bt709"),
        *("!", "y4menc", "!", "fdsink", f"fd={write_end}"),
    ]


@cache
def has_element(name: str) -> bool:
    """Whether GStreamer is here and knows an element. May take seconds, the first time."""
    if shutil.which(INSPECT) is None:
        return False
    try:
        done = subprocess.run(
            [INSPECT, "--exists", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_INSPECT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def has_jetson_decoder() -> bool:
    """Whether streams can be decoded by a Jetson's hardware."""
    return shutil.which(LAUNCH) is not None and has_element("nvv4l2decoder") and has_element("nvvidconv")


def jetson_rtsp(url: str) -> list[str]:
    """A pipeline that reads RTSP over TCP by a Jetson's decoder, which ``decodebin`` prefers to others."""
    words = ["rtspsrc", f"location={url}", "protocols=tcp", "latency=100"]
    media = "application/x-rtp,media=video"  # a camera's sound stays out
    return [*words, "!", media, "!", "decodebin", "!", "nvvidconv", "!", "video/x-raw,format=I420"]


def _csi(spec: str) -> tuple[int, list[str]]:
    form = f"{redact(spec)}: expected a form such as csi://0?size=1920x1080&fps=30&flip=0"
    try:
        address = urlsplit(spec)
        given = dict(parse_qsl(address.query, keep_blank_values=True))
        if address.scheme != "csi" or not re.fullmatch(r"\d{1,2}", address.netloc) or address.path or address.fragment:
            raise ValueError
        if given.keys() - _CSI_DEFAULTS.keys():
            raise ValueError
        options = _CSI_DEFAULTS | given
        match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", options["size"])
        fps, flip = int(options["fps"]), int(options["flip"])
        if match is None or not 0 < fps <= 240 or not 0 <= flip <= 7:
            raise ValueError
    except ValueError as error:
        raise SourceError(form) from error
    number = int(address.netloc)
    caps = f"video/x-raw(memory:NVMM),width={match[1]},height={match[2]},framerate={fps}/1,format=NV12"
    return number, [
        *("nvarguscamerasrc", f"sensor-id={number}", "!", caps),
        *("!", "nvvidconv", f"flip-method={flip}", "!", "video/x-raw,format=I420"),
    ]


def _elements(spec: str) -> list[str]:
    try:
        words = shlex.split(spec.removeprefix("gst:"))
    except ValueError as error:
        raise SourceError(f"gst:…: expected a pipeline as for {LAUNCH}, got one with an open quotation mark") from error
    if not words:
        raise SourceError("gst:: expected a pipeline such as gst:v4l2src, got nothing")
    if words[0].startswith("-"):
        raise SourceError(f"gst:…: expected a pipeline as for {LAUNCH}, got an option of the program")
    return words


def _first_error(said: Sequence[str]) -> str:
    """The line that says why: the element's own comes before what follows from it."""
    for form in (r"WARNING: (erroneous pipeline: .*)", r"ERROR: from element \S+: (.*)", r"ERROR: (.*)", r"(.+)"):
        for line in said:
            if match := re.match(form, line):
                return match[1].rstrip(".")
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program and all that it started: politely, so that a camera's driver is left in order, then for certain."""
    deadline_s = time.monotonic() + _GRACE_S
    # Not waited for until its group is killed: the group's number is its own for so long.
    _kill_group(process.pid, signal.SIGINT)
    look = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while os.waitid(os.P_PID, process.pid, look) is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    _kill_group(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _kill_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it was not yet a leader, or the whole group has ended
        os.killpg(leader, number)
