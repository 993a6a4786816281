# Bundles whose programs take NV12: how decoded pictures reach them, and what the rest of the pipeline sees of such frames.

from fractions import Fraction

import av
import cv2
import numpy as np
import onnx
import pytest
from av.video.reformatter import Colorspace
from onnx import TensorProto, helper
from skimage import data

from pipeline.errors import ShapeError
from pipeline.frames.frame import Frame
from pipeline.frames.nv12 import to_bgr, to_nv12
from pipeline.sources import open_source
from pipeline.sources.decoded import ToPixels
from pipeline.sources.yuv4mpeg import Yuv4mpegReader


def photo(height=96, width=128):
    return np.ascontiguousarray(cv2.resize(data.astronaut()[..., ::-1], (width, height), interpolation=cv2.INTER_AREA))


@pytest.fixture
def luma_bundle(make_bundle):
    """Its mask is the frame's luma, as it is in NV12: 16 to 235."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["frames"], ["rows"], start=1, end=2),
        helper.make_node("Div", ["rows", "three"], ["chroma_rows"]),
        helper.make_node("Mul", ["chroma_rows", "two"], ["height"]),
        helper.make_node("Slice", ["numbers", "zero", "height", "one"], ["luma"]),
        helper.make_node("Cast", ["luma"], ["masks"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "luma",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", "R", "W"])],
        [helper.make_tensor_value_info("masks", TensorProto.UINT8, ["N", "H", "W"])],
        initializer=[
            helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in {"zero": 0, "one": 1, "two": 2, "three": 3}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return make_bundle("luma", model.SerializeToString(), pixels="nv12")


def decoded_luma(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="yuv420p")[: frame.height] for frame in container.decode(video=0)]


def frames_of(spec, pixels):
    with open_source(str(spec)) as source:
        source.pixels = pixels
        return list(source)


# --- a frame


def test_a_frame_of_nv12_is_bgr_for_whoever_asks():
    nv12 = to_nv12(photo())
    frame = Frame(nv12, 0, 0.0, "cam", "a", format="nv12")
    assert frame.size_hw == (96, 128)
    np.testing.assert_array_equal(frame.image, to_bgr(nv12))
    assert frame.image is frame.image  # converted once
    assert frame.as_pixels("nv12") is nv12
    assert frame.as_pixels("bgr") is frame.image


def test_a_frame_of_bgr_is_converted_for_an_engine_of_nv12():
    frame = Frame(photo(), 0, 0.0, "cam", "a")
    assert frame.image is frame.pixels is frame.as_pixels("bgr")
    np.testing.assert_array_equal(frame.as_pixels("nv12"), to_nv12(photo()))


@pytest.mark.parametrize("shape", [(95, 128), (96, 127)])
def test_odd_sides_are_refused_in_one_line(shape):
    with pytest.raises(ShapeError, match=r"^frame 3 of cam: expected even sides, as NV12 has, got .* --pixels bgr$"):
        Frame(np.zeros((*shape, 3), np.uint8), 3, 0.0, "cam", "a").as_pixels("nv12")


@pytest.mark.parametrize("shape", [(145, 128), (144, 127)])
def test_what_cannot_be_nv12_is_no_frame(shape):
    with pytest.raises(ShapeError, match=r"frame 0 of cam: expected \(H·3/2, W\) uint8"):
        Frame(np.zeros(shape, np.uint8), 0, 0.0, "cam", "a", format="nv12")


def test_a_picture_of_bgr_is_no_nv12():
    with pytest.raises(ShapeError, match=r"got \(96, 128, 3\) uint8: .*format='bgr'"):
        Frame(photo(), 0, 0.0, "cam", "a", format="nv12")


# --- sources


def test_a_video_gives_the_planes_that_were_decoded(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", [photo(720, 96), photo(720, 96)[:, ::-1]])
    frames, as_bgr = frames_of(path, "nv12"), frames_of(path, "bgr")
    for frame, luma, other in zip(frames, decoded_luma(path), as_bgr, strict=True):
        np.testing.assert_array_equal(frame.pixels[:720], luma)
        np.testing.assert_array_equal(frame.image, other.image)  # nothing is lost on the way
        assert (frame.pts_s, frame.name, frame.index) == (other.pts_s, other.name, other.index)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv420p", ".mp4"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("ffv1", "bgr0", ".mkv"),
        ("libx264", "yuv444p", ".mp4"),
    ],
)
def test_other_matrices_ranges_and_formats_become_the_one_of_programs(tmp_path, write_video, codec, pix_fmt, suffix):
    # 96 lines: FFmpeg reads these as BT.601 where nothing is said.
    colours = [(200, 60, 30), (30, 180, 60), (40, 50, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    images = [np.full((96, 64, 3), colour, np.uint8) for colour in colours]
    path = write_video(tmp_path / f"a{suffix}", images, codec=codec, pix_fmt=pix_fmt, g="1")
    for frame, other in zip(frames_of(path, "nv12"), frames_of(path, "bgr"), strict=True):
        assert frame.pixels.shape == (144, 64)
        np.testing.assert_allclose(frame.image[48, 32], other.image[48, 32], atol=4)


@pytest.mark.parametrize("width", [64, 66])  # rows with and without a rest behind them
@pytest.mark.parametrize("made_as", ["yuv420p", "nv12"])
@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
def test_values_of_limited_range_are_taken_as_they_are(width, made_as, color_range):
    planes = np.random.default_rng(0).integers(16, 236, (72, width), np.uint8)
    decoded = av.VideoFrame.from_ndarray(planes, format=made_as)
    decoded.colorspace, decoded.color_range = Colorspace.ITU709, color_range
    expected = planes.copy()
    if made_as == "yuv420p":
        chroma = planes[48:].reshape(2, 24, width // 2)
        expected[48:, 0::2], expected[48:, 1::2] = chroma
    got, kind, _, _ = ToPixels("nv12")(decoded)
    assert kind == "nv12"
    assert got.flags.c_contiguous
    assert np.array_equal(got, expected) == (color_range == 1)


def test_a_turned_video_stays_bgr(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", [photo()] * 2, rotation=90)
    (frame, _), (other, _) = frames_of(path, "nv12"), frames_of(path, "bgr")
    np.testing.assert_array_equal(frame.pixels, other.pixels)
    assert (frame.format, frame.pixels.shape) == ("bgr", (128, 96, 3))


def test_a_video_of_odd_sides_stays_bgr(tmp_path, write_video):
    path = write_video(tmp_path / "a.mkv", [photo(95, 127)] * 2, codec="ffv1", pix_fmt="bgr0")
    assert [frame.pixels.shape for frame in frames_of(path, "nv12")] == [(95, 127, 3)] * 2


def test_pictures_of_a_pipe():
    i420 = (
        av.VideoFrame.from_ndarray(photo(), format="bgr24")
        .reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        .to_ndarray()
    )
    content = b"YUV4MPEG2 W128 H96 F25:1 C420\n" + b"FRAME\n" + i420.tobytes()
    reader = Yuv4mpegReader("nv12")
    ((picture, kind, *_),) = feed(reader, content)
    assert kind == "nv12"
    np.testing.assert_array_equal(picture[:96], i420[:96])
    chroma = i420[96:].reshape(2, 48, 64)
    np.testing.assert_array_equal(picture[96:, 0::2], chroma[0])
    np.testing.assert_array_equal(picture[96:, 1::2], chroma[1])


def feed(reader, content):
    pictures = []
    while content:
        space = reader.space()
        count = min(len(space), len(content))
        space[:count], content = content[:count], content[count:]
        pictures += reader.received(count)
    return pictures


# --- the whole command


def masks_of(folder):
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("more", [[], ["--fps", "500"]], ids=["engine", "governor"])
def test_masks_of_a_video_come_from_its_planes(main, tmp_path, write_video, luma_bundle, more):
    # One scene, so that the governor has the first frame's mask for all.
    path = write_video(tmp_path / "a.mp4", [photo()] * 3, crf="0")
    done = main(*("--source", path, "--output", tmp_path / "out", "--render", "mask", *more), model=luma_bundle.folder)
    assert done.status == 0, done.err
    expected = [frame.pixels[:96] for frame in frames_of(path, "nv12")]
    np.testing.assert_allclose(masks_of(tmp_path / "out"), expected, atol=1)


def test_pictures_are_converted_and_odd_ones_refused(main, refused, tmp_path, write_picture, luma_bundle):
    path = write_picture(tmp_path / "a.png", photo())
    done = main("--source", path, "--output", tmp_path / "out", "--render", "mask", model=luma_bundle.folder)
    assert done.status == 0, done.err
    np.testing.assert_array_equal(masks_of(tmp_path / "out")[0], to_nv12(photo())[:96])
    odd = write_picture(tmp_path / "odd.png", photo(95, 127))
    line = refused("--source", odd, "--output", tmp_path / "none", model=luma_bundle.folder)
    assert (
        "frame 0 of odd.png: expected even sides, as NV12 has, got 95×127: compile the bundle with --pixels bgr" in line
    )


def test_what_is_shown_is_bgr(main, tmp_path, write_video, luma_bundle, read_video):
    path = write_video(tmp_path / "a.mp4", [photo()] * 3, fps=Fraction(25))
    for mode in ("side", "cutout", "contour"):
        out = tmp_path / f"{mode}.mp4"
        done = main("--source", path, "--output", out, "--render", mode, model=luma_bundle.folder)
        assert done.status == 0, done.err
    shown, frame = read_video(tmp_path / "side.mp4"), frames_of(path, "bgr")[0]
    assert np.abs(shown.images[0][:, :128].astype(int) - frame.image).mean() < 6


def test_smoothing_sees_bgr(main, tmp_path, write_video, luma_bundle):
    path = write_video(tmp_path / "a.mp4", [photo()] * 4)
    done = main(
        *("--source", path, "--output", tmp_path / "out", "--render", "mask", "--smooth", "on", "--refine-edges"),
        model=luma_bundle.folder,
    )
    assert done.status == 0, done.err
    assert len(masks_of(tmp_path / "out")) == 4
