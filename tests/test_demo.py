"""What a new user sees first: the sample clip through U²-NetP, every frame with the subject under its mask."""

import contextlib
import json
import queue
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "samples" / "clip.mp4"
PAGE = b"""<!doctype html><video id=v muted src="demo.mp4"></video><script>
const v = document.getElementById('v');
const say = told => fetch('/told', {method: 'POST', body: JSON.stringify(told)});
v.onerror = () => say({error: v.error.message});
v.onended = () => say({width: v.videoWidth, height: v.videoHeight, duration_s: v.duration,
  frames: v.getVideoPlaybackQuality().totalVideoFrames});
v.play().catch(error => say({error: String(error)}));
</script>
"""
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Player(ThreadingHTTPServer):
    """Serves a page with the video and hears from it how the playing went."""

    def __init__(self, video):
        super().__init__(("127.0.0.1", 0), PlayerHandler)
        self.files = {"/": ("text/html", PAGE), "/demo.mp4": ("video/mp4", video.read_bytes())}
        self.told = queue.Queue()


class PlayerHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        kind, content = self.server.files.get(self.path, ("text/plain", b""))
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a browser may take a video in pieces
            self.wfile.write(content)

    def do_POST(self):
        self.server.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def demo(u2netp_bundle, tmp_path_factory, cli):
    """The demo's video."""
    video = tmp_path_factory.mktemp("demo") / "demo.mp4"
    cli("pipeline", "--source", CLIP, "--model", u2netp_bundle.folder, "--output", video, check=True)
    return video


def frames_of(path):
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="bgr24")


def test_every_frame_has_the_subject_under_its_mask(demo):
    shares, steady, last = [], [], None
    for before, after in zip(frames_of(CLIP), frames_of(demo), strict=True):
        assert before.shape == after.shape == (720, 1280, 3)
        change = cv2.absdiff(before, after).max(axis=2)
        # The overlay moves every pixel of the subject far, the encoder moves the others little.
        coloured = cv2.medianBlur(change, 9) > 24
        shares.append(coloured.mean())
        if last is not None:
            steady.append(np.count_nonzero(coloured & last) / np.count_nonzero(coloured | last))
        last = coloured
    assert len(shares) >= 125
    assert min(shares) > 0.05
    assert max(shares) < 0.6
    # At a hard cut the subject changes, nowhere else may the mask jump.
    assert sum(value < 0.8 for value in steady) <= 1, sorted(steady)[:5]


@pytest.mark.needs_program("chromium")
def test_a_browser_plays_it(demo, tmp_path):
    with Player(demo) as player:
        threading.Thread(target=player.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{player.server_port}/"
        with subprocess.Popen(
            [*CHROMIUM, f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL
        ) as browser:
            try:
                told = player.told.get(timeout=120)
            finally:
                browser.terminate()
                player.shutdown()
    with av.open(str(CLIP)) as clip:
        stream = clip.streams.video[0]
        frames, duration_s = stream.frames, float(stream.duration * stream.time_base)
    assert told == {"width": 1280, "height": 720, "duration_s": pytest.approx(duration_s, abs=0.05), "frames": frames}


@pytest.mark.needs_program("ffprobe")
def test_ffprobe_sees_h264_with_the_clips_times(demo):
    def times(path):
        command = [
            "ffprobe",
            "-v",
            "error",
            "-select_streams",
            "v",
            "-show_entries",
            "frame=pts_time",
            "-of",
            "csv=p=0",
        ]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
        return [float(line.strip(",")) for line in done.stdout.split()]

    entries = "stream=codec_name,pix_fmt,r_frame_rate,color_space,color_range"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(demo)]
    (stream,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    assert stream["codec_name"] == "h264"
    assert stream["pix_fmt"] == "yuv420p"
    assert stream["color_space"] == "bt709"
    assert stream["color_range"] == "tv"
    assert times(demo) == pytest.approx(times(CLIP), abs=1e-3)


def test_the_samples_are_small_and_what_they_say():
    files = [path for path in (ROOT / "samples").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (1280, 720)
        assert stream.duration * stream.time_base >= 5
    pictures = [path for path in files if path.suffix == ".jpg"]
    assert len(pictures) >= 3
    for picture in pictures:
        assert cv2.imread(str(picture)) is not None
        assert picture.name in (ROOT / "samples" / "README.md").read_text(encoding="utf-8")
