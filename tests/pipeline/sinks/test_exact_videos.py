"""Transparency and exact masks in videos, read back by FFmpeg's own program."""

import subprocess
from fractions import Fraction

import cv2
import numpy as np
import pytest

from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink

pytestmark = pytest.mark.needs_program("ffmpeg")

H, W = 90, 122
STAMPS_S = (0.0, 0.04, 0.2, 0.24, 1.0)


def masks():
    """A soft disk that moves over a ramp of all values."""
    for number in range(len(STAMPS_S)):
        mask = np.zeros((H, W), np.uint8)
        cv2.circle(mask, (30 + 14 * number, 40), 22, 255, -1)
        mask = cv2.GaussianBlur(mask, (0, 0), 2)
        mask[70:] = np.linspace(0, 255, W).astype(np.uint8)
        yield mask


def image():
    y, x = np.mgrid[:H, :W]
    return np.dstack((x * 2, 255 - y * 2, (x + y) % 256)).astype(np.uint8)


@pytest.fixture
def save(tmp_path, make_info, make_frame):
    def write(name, mode, size_hw=(H, W), task="binary", alpha=None, live=False):
        path = tmp_path / name
        info = make_info(time_base=Fraction(1, 1000), live=live)
        with open_sink(str(path), info, Renderer(Look(mode=mode), task)) as out:
            for number, mask in enumerate(masks()):
                frame = make_frame(image()[: size_hw[0], : size_hw[1]].copy(), number, STAMPS_S[number])
                frame.mask, frame.view = mask[: size_hw[0], : size_hw[1]], frame.image
                frame.alpha = alpha
                out.write(frame)
        return path

    return write


def read(path, pix_fmt, channels, size_hw=(H, W)):
    decoder = ["-c:v", "libvpx-vp9"] if path.suffix == ".webm" else []  # FFmpeg's own leaves opacity out
    command = ["ffmpeg", "-v", "error", *decoder, "-i", path, "-vsync", "0", "-f", "rawvideo", "-pix_fmt", pix_fmt, "-"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *size_hw, channels)


def stamps_s(path):
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v",
        "-show_entries",
        "packet=pts_time",
        "-of",
        "csv=p=0",
        path,
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return sorted(float(line.strip(",")) for line in said.split())


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_a_cutout_is_transparent(save, suffix, live, said):
    path = save(f"out{suffix}", "cutout", live=live)
    seen = read(path, "bgra", 4)
    expected = np.stack(list(masks()))
    assert np.abs(seen[..., 3].astype(int) - expected).max() <= 2
    assert np.abs(seen[..., :3].astype(int) - image()).mean() < (
        2 if suffix == ".mov" else 8
    )  # half the colors in .webm
    assert stamps_s(path) == pytest.approx(STAMPS_S, abs=2e-3)
    assert any("with transparency" in line for line in said)


def test_what_the_source_hides_stays_hidden(save):
    alpha = np.full((H, W), 255, np.uint8)
    alpha[:, : W // 2] = 0
    seen = read(save("out.mov", "cutout", alpha=alpha), "bgra", 4)
    assert seen[:, :, : W // 2, 3].max() <= 2
    assert seen[..., 3].max() >= 253


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_h264_has_no_transparency_and_says_so(save, suffix, live, said):
    save(f"out{suffix}", "cutout", live=live)
    told = "it has no transparency, the subject is on its background; .mov and .webm have"
    assert sum(told in line for line in said) == 1


@pytest.mark.parametrize("size_hw", [(H, W), (35, 51)])
def test_masks_in_ffv1_are_exact(save, size_hw):
    """Odd sizes too: gray has no halves."""
    path = save("out.mkv", "mask", size_hw)
    expected = np.stack([mask[: size_hw[0], : size_hw[1]] for mask in masks()])
    assert np.array_equal(read(path, "gray", 1, size_hw)[..., 0], expected)
    assert stamps_s(path) == pytest.approx(STAMPS_S, abs=1e-3)


@pytest.mark.parametrize("live", [False, True])
def test_class_numbers_in_ffv1_are_exact(save, live):
    path = save("out.mkv", "mask", task="classes", live=live)
    assert np.array_equal(read(path, "gray", 1)[..., 0], np.stack(list(masks())))


def test_a_mask_of_another_size_keeps_its_values(tmp_path, make_info, make_frame):
    path = tmp_path / "out.mkv"
    with open_sink(str(path), make_info(), Renderer(Look(mode="mask"), "classes")) as out:
        for number, side in enumerate((32, 48)):
            frame = make_frame(np.zeros((side, side, 3), np.uint8), number)
            frame.mask = np.zeros((side, side), np.uint8)
            frame.mask[: side // 2] = 7
            frame.view = frame.image
            out.write(frame)
    assert set(np.unique(read(path, "gray", 1, (32, 32)))) == {0, 7}


def test_webm_plays_as_vp9(save):
    path = save("out.webm", "overlay")
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name,pix_fmt", "-of", "csv=p=0", path]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "vp9,yuv420p"
    assert np.abs(read(path, "bgr24", 3).astype(int) - image()).mean() < 10
