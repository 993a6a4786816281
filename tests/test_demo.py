"""What a new user sees first: the sample clip through U²-NetP, every frame with the subject under its mask."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from calibration.agreement import iou
from pipeline.sources.pictures import read_picture

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "samples" / "clip.mp4"
PAGE = """<!doctype html><video id=v muted src="demo.mp4"></video><pre id=out>waiting</pre><script>
const v = document.getElementById('v'), out = document.getElementById('out');
const say = text => { out.textContent = JSON.stringify(text); };
v.onerror = () => say({error: v.error.message});
v.onended = () => say({width: v.videoWidth, height: v.videoHeight, duration_s: v.duration,
  frames: v.getVideoPlaybackQuality().totalVideoFrames});
v.play();
</script>
"""
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=20000"),
)


@pytest.fixture(scope="module")
def demo(u2netp_bundle, tmp_path_factory, cli):
    """The demo's video and, beside it, the masks of its frames."""
    folder = tmp_path_factory.mktemp("demo")
    common = ("pipeline", "--source", CLIP, "--model", u2netp_bundle.folder)
    cli(*common, "--render", "mask", "--output", folder / "masks", check=True)
    cli(*common, "--output", folder / "demo.mp4", check=True)
    return folder


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


@pytest.mark.network
def test_every_frame_has_the_subject_under_its_mask(demo):
    clip, shown = frames_of(CLIP), frames_of(demo / "demo.mp4")
    masks = [read_picture(path)[:, :, 0] for path in sorted((demo / "masks").iterdir())]
    assert len(clip) == len(shown) == len(masks) >= 125
    for index, (before, after, mask) in enumerate(zip(clip, shown, masks, strict=True)):
        assert before.shape == after.shape == (720, 1280, 3)
        assert 0.03 < (mask > 127).mean() < 0.6, index
        inside, outside = mask > 220, mask < 20
        change = np.abs(after.astype(int) - before).mean(axis=2)
        assert change[inside].mean() > 20, index
        assert change[outside].mean() < 6, index
    steady = [iou(one, next_one) for one, next_one in itertools.pairwise(masks)]
    # A hard cut may change the subject, nothing else may.
    assert sum(value < 0.8 for value in steady) <= 2, steady


@pytest.mark.network
@pytest.mark.needs_program("chromium")
def test_a_browser_plays_it(demo, tmp_path):
    (demo / "page.html").write_text(PAGE)
    command = [*CHROMIUM, f"--user-data-dir={tmp_path}", "--dump-dom", (demo / "page.html").as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    told = json.loads(re.search(r'<pre id="out">(.*?)</pre>', page).group(1))
    with av.open(str(CLIP)) as clip:
        stream = clip.streams.video[0]
        frames, duration_s = stream.frames, float(stream.duration * stream.time_base)
    assert told == {"width": 1280, "height": 720, "duration_s": pytest.approx(duration_s, abs=0.05), "frames": frames}


@pytest.mark.network
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
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(demo / "demo.mp4")]
    (stream,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    assert stream["codec_name"] == "h264"
    assert stream["pix_fmt"] == "yuv420p"
    assert stream["color_space"] == "bt709"
    assert stream["color_range"] == "tv"
    assert times(demo / "demo.mp4") == pytest.approx(times(CLIP), abs=1e-3)


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
