"""``python -m pipeline`` as people and scripts use it; in this process, except where the process is what is tested."""

import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.builds.model_name import PUBLISHED, open_model
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.command import job as command
from pipeline.errors import BackendUnavailableError, SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.own_process import module_command
from pipeline.sources.base import Source

ROOT = Path(__file__).parents[3]


def leftovers(folder):
    """What a run must never leave behind."""
    return [name for _, folders, files in os.walk(folder) for name in folders + files if name.startswith(".")]


@pytest.fixture
def clip(tmp_path, write_video, red_images):
    (tmp_path / "in").mkdir()
    return write_video(tmp_path / "in" / "clip.mp4", red_images, movflags="+faststart")


@pytest.fixture
def pictures(tmp_path, write_picture):
    """A folder of pictures, one of each awkward kind, and their BGR content."""
    rng = np.random.default_rng(8)
    folder, content = tmp_path / "pics", {}
    for name, shape in (("one", (1, 1, 3)), ("odd", (31, 17, 3)), ("ü b:%d", (40, 60, 3)), ("-dash", (8, 8, 3))):
        content[name] = rng.integers(0, 256, shape, np.uint8)
        write_picture(folder / f"{name}.png", content[name])
    return folder, content


# What comes out


def test_a_video_becomes_a_video_with_its_frames_times_and_rate(main, clip, tmp_path, read_video, red_images):
    done = main("--source", clip, "--output", tmp_path / "out.mp4", "--render", "mask")
    assert (done.status, done.out, done.err) == (0, [str(tmp_path / "out.mp4")], [])
    seen = read_video(tmp_path / "out.mp4")
    assert seen.fps == 25
    assert seen.pts_s == pytest.approx([number / 25 for number in range(12)])
    assert seen.size_hw == (32, 48)
    for image, given in zip(seen.images, red_images, strict=True):
        np.testing.assert_allclose(image[16, 8], int(given[16, 8, 2]), atol=14)
        np.testing.assert_allclose(image[16, 45], 255, atol=14)
    assert leftovers(tmp_path) == []


def test_a_variable_rate_keeps_its_times(main, tmp_path, write_video, read_video, red_images):
    pts = [0, 40, 75, 300, 301, 500, 900, 1000, 1100, 2000, 2500, 3000]
    source = write_video(tmp_path / "in.mkv", red_images, pts=pts, time_base=Fraction(1, 1000))
    for name in ("out.mp4", "out.mkv"):
        assert main("--source", source, "--output", tmp_path / name).status == 0
        assert read_video(tmp_path / name).pts_s == pytest.approx(read_video(source).pts_s, abs=0.001)


@pytest.mark.parametrize("fps", ["24000/1001", "25", "30000/1001"])
def test_the_rate_stays(main, tmp_path, write_video, read_video, red_images, fps):
    source = write_video(tmp_path / "in.mp4", red_images, fps=fps)
    assert main("--source", source, "--output", tmp_path / "out.mp4").status == 0
    assert read_video(tmp_path / "out.mp4").fps == Fraction(fps)


def test_a_rotated_video_comes_out_upright(main, tmp_path, write_video, read_video):
    source = write_video(tmp_path / "in.mp4", [np.full((32, 64, 3), 90, np.uint8)] * 3, rotation=90)
    assert main("--source", source, "--output", tmp_path / "out.mp4").status == 0
    assert read_video(tmp_path / "out.mp4").size_hw == (64, 32)


def test_masks_of_pictures_are_grey_and_exact(main, pictures, tmp_path, read_picture):
    folder, content = pictures
    assert main("--source", folder, "--output", tmp_path / "out", "--render", "mask").status == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"{name}.png" for name in content)
    for name, image in content.items():
        mask = read_picture(tmp_path / "out" / f"{name}.png")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, image[..., 2])
    assert leftovers(tmp_path) == []


def test_class_maps_are_the_class_numbers(main, class_bundle, tmp_path, write_picture, read_picture):
    classes = np.array([[0, 1, 2, 1], [2, 2, 0, 1]], np.uint8)
    write_picture(tmp_path / "a.png", np.dstack([classes * 0, classes * 0, classes]))
    done = main(
        "--source", tmp_path / "a.png", "--output", tmp_path / "m.png", "--render", "mask", model=class_bundle.folder
    )
    assert done.status == 0
    np.testing.assert_array_equal(read_picture(tmp_path / "m.png"), classes)


def test_a_cutout_has_an_alpha_channel(main, pictures, tmp_path, read_picture):
    folder, content = pictures
    assert main("--source", folder, "--output", tmp_path / "out", "--render", "cutout").status == 0
    for name, image in content.items():
        np.testing.assert_array_equal(read_picture(tmp_path / "out" / f"{name}.png"), np.dstack([image, image[..., 2]]))


def test_the_background_is_the_colour_or_the_picture_that_is_given(main, tmp_path, write_picture, read_picture):
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:15, 5:15] = (10, 20, 255)
    source, behind = write_picture(tmp_path / "in.png", image), write_picture(tmp_path / "b.png", image[::-1] + 7)
    for background, expected in (("#ff8000", (0, 128, 255)), (behind, (7, 7, 7))):
        arguments = ("--source", source, "--render", "replace", "--background", background)
        assert main(*arguments, "--output", tmp_path / "out.png").status == 0
        shown = read_picture(tmp_path / "out.png")
        np.testing.assert_array_equal(shown[0, 0], expected)
        np.testing.assert_array_equal(shown[10, 10], image[10, 10])


def test_a_picture_is_masked_as_it_is_shown(main, tmp_path, write_picture, read_picture):
    jpeg = write_picture(tmp_path / "a.jpg", np.full((16, 40, 3), 99, np.uint8)).read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    assert main("--source", tmp_path / "a.jpg", "--output", tmp_path / "m.png", "--render", "mask").status == 0
    assert read_picture(tmp_path / "m.png").shape == (40, 16)


@pytest.mark.parametrize("name", ["one", "odd"])
def test_a_picture_of_an_odd_size_becomes_a_video(main, pictures, tmp_path, read_video, name):
    folder, content = pictures
    assert main("--source", folder / f"{name}.png", "--output", tmp_path / "out.mp4").status == 0
    height, width = content[name].shape[:2]
    seen = read_video(tmp_path / "out.mp4")
    assert (seen.size_hw, len(seen.images)) == ((height + height % 2, width + width % 2), 1)


@pytest.mark.parametrize("mode", ["overlay", "mask", "side", "contour", "cutout", "blur", "replace", "heatmap"])
@pytest.mark.parametrize("task", ["binary", "classes"])
def test_every_mode_takes_every_size_with_all_that_can_be_drawn(
    main, pictures, class_bundle, red_bundle, tmp_path, mode, task
):
    model = (class_bundle if task == "classes" else red_bundle).folder
    arguments = ("--source", pictures[0], "--render", mode, "--hud", "--legend")
    done = main(*arguments, "--output", tmp_path / "out", "--output", tmp_path / "out.mp4", model=model)
    assert (done.status, done.err) == (0, [])
    assert len(os.listdir(tmp_path / "out")) == 4


def test_two_stars_keep_the_folders(main, tmp_path, write_picture):
    for name in ("a/x.png", "a/b/x.png", "x.png"):
        write_picture(tmp_path / "in" / name, np.zeros((2, 2, 3), np.uint8))
    assert main("--source", f"{tmp_path}/in/**/*.png", "--output", tmp_path / "out").status == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["a/b/x.png", "a/x.png", "x.png"]


def test_pictures_with_one_stem_both_come_out(main, tmp_path, write_picture, read_picture):
    for value, name in enumerate(("x.png", "x.bmp", "x.png.png")):
        write_picture(tmp_path / "in" / name, np.full((2, 2, 3), value, np.uint8))
    assert main("--source", tmp_path / "in", "--output", tmp_path / "out", "--render", "mask").status == 0
    masks = {name: int(read_picture(tmp_path / "out" / name)[0, 0]) for name in os.listdir(tmp_path / "out")}
    assert masks == {"x.png.png": 0, "x.bmp.png": 1, "x.png.png.png": 2}


def test_several_outputs_at_once(main, clip, tmp_path, read_video):
    outputs = [tmp_path / "a.mp4", tmp_path / "b.mkv", tmp_path / "c", "null"]
    done = main("--source", clip, *itertools.chain(*(("--output", output) for output in outputs)))
    assert done.status == 0
    assert done.out == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mkv"), f"{tmp_path / 'c'}{os.sep}"]
    assert [len(read_video(tmp_path / name).images) for name in ("a.mp4", "b.mkv")] == [12, 12]
    assert sorted(os.listdir(tmp_path / "c"))[:2] == ["clip_000000.png", "clip_000001.png"]


def test_frames_read_are_frames_written_and_dropped(main, clip, tmp_path):
    for drop in ("auto", "never"):
        main("--source", clip, "--output", tmp_path / drop, "--drop", drop)
        assert len(os.listdir(tmp_path / drop)) == 12
    done = main("--source", clip, "--output", tmp_path / "latest", "--drop", "latest", quiet=False)
    dropped = next((int(line.split()[-2]) for line in done.err if line.endswith("dropped")), 0)
    assert len(os.listdir(tmp_path / "latest")) + dropped == 12


def test_max_frames(main, clip, tmp_path, read_video):
    main("--source", clip, "--output", tmp_path / "out.mp4", "--max-frames", "5")
    assert len(read_video(tmp_path / "out.mp4").images) == 5


def test_what_is_said_goes_to_standard_error_and_the_result_to_standard_output(main, clip, tmp_path):
    done = main("--source", clip, "--output", tmp_path / "out.mp4", quiet=False)
    assert done.out == [str(tmp_path / "out.mp4")]
    assert done.err[0] == "source: clip.mp4, h264, 48×32, 25 FPS"
    assert done.err[1].startswith("model: red, fp32, 1×1 inside, on ONNX Runtime ")
    assert done.err[2].startswith("program: it does not count ")
    assert done.err[3].endswith("out.mp4: H.264 by the CPU (x264)")
    assert done.err[4].startswith("12 frames in ")
    assert [line.split()[0] for line in done.err[5:]] == ["decode", "engine", "render", "write"]


@pytest.mark.parametrize(
    ("manifest", "advised"),
    [
        ({"precision": "fp32"}, False),
        ({"precision": "fp16"}, True),
        ({"precision": "int8"}, True),
        ({"precision": "int8", "calibration": {"graph": "cpu"}}, False),
    ],
)
def test_a_program_that_is_slower_here_than_fp32_is_told(main, red_bundle, tmp_path, manifest, advised):
    files = {PROGRAM_NAME: red_bundle.program_path.read_bytes()}
    bundle = Bundle.write(tmp_path / "bundle", replace(red_bundle.manifest, **manifest), files)
    arguments = ("--source", "test://?size=8x8&frames=2", "--output", "null")
    done = main(*arguments, model=bundle.folder, quiet=False)
    assert done.status == 0
    assert sum("--precision fp32" in line for line in done.err) == advised
    assert main(*arguments, model=bundle.folder).err == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--save",), "clip_overlay.mp4"),
        (("--save", "--render", "mask"), "clip_mask.mp4"),
        (("--save", "x.mkv"), "x.mkv"),
    ],
)
def test_save_makes_a_name(main, clip, tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    assert main("--source", clip, *arguments).out == [name]
    assert (tmp_path / name).is_file()


def test_save_with_a_source_that_is_no_file(main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("--source", "test://?size=8x8&frames=1", "--save").out == ["test_overlay.mp4"]


def test_a_configuration_file(main, clip, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"source: {clip}\noutput: [{tmp_path}/a, {tmp_path}/b]\nrender: mask\nmax-frames: 2\n"
    )
    assert main("--config", tmp_path / "c.yaml").status == 0
    assert len(os.listdir(tmp_path / "a")) == len(os.listdir(tmp_path / "b")) == 2


# What is refused


@pytest.mark.parametrize("source", ["test://?size=8x8&frames=2", "/dev/video99", "rtsp://127.0.0.1:9/x"])
@pytest.mark.parametrize("arguments", [(), ("--show",), ("--headless",), ("--fps", "5")])
def test_without_an_output_nothing_is_opened(refused, monkeypatch, source, arguments):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pipeline.command.job.open_sources", lambda *_: pytest.fail("a source was opened"))
    monkeypatch.setattr("pipeline.command.job.read_model", lambda *_, **__: pytest.fail("a model was opened"))
    assert "--output null" in refused("--source", source, *arguments)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.mp4", "nowhere.mp4: no such file"),
        ("nowhere.png", "nowhere.png: no such file"),
        ("nowhere/*.png", "nowhere/*.png: expected pictures"),
        ("a" * 5000, "no such file"),
        ("rtmp://me:secret@cam/1", "rtmp://…: expected a camera number"),
        ("/dev/video99", "/dev/video99: no such camera"),
        ("/dev/null", "/dev/null: expected a camera"),
        ("test://?size=0x0", "expected a form such as test://"),
    ],
)
def test_sources_that_are_none(refused, tmp_path, source, message):
    line = refused("--source", source, "--output", tmp_path / "out")
    assert message in line
    assert "secret" not in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.mp4", b"not a video\n" * 50),
        ("empty.mp4", b""),
        ("empty.png", b""),
        ("text.png", b"not a picture"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("concat.mp4", b"ffconcat version 1.0\nfile clip.mp4\n"),
    ],
)
def test_files_that_are_none(refused, clip, tmp_path, name, content):
    (clip.parent / name).write_bytes(content)
    for output in ("out.mp4", "out.mkv"):
        line = refused("--source", clip.parent / name, "--output", tmp_path / output)
        assert f"{name}: expected a " in line
    assert os.listdir(tmp_path) == ["in"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("content", [(), ("notes.txt",)])
def test_folders_without_pictures(refused, tmp_path, content):
    (tmp_path / "in").mkdir()
    for name in content:
        (tmp_path / "in" / name).touch()
    assert "got a folder with none" in refused("--source", tmp_path / "in", "--output", tmp_path / "out")


def test_a_png_header_that_claims_the_machines_memory(refused, tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    parts = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    line = refused("--source", tmp_path / "bomb.png", "--output", tmp_path / "out.png")
    assert "bomb.png: expected a picture of at most" in line
    assert os.listdir(tmp_path) == ["bomb.png"]


@pytest.mark.parametrize("movflags", ["+faststart", None])
@pytest.mark.parametrize("output", ["out.mp4", "out.mkv"])
def test_a_video_cut_in_the_middle_leaves_no_output(refused, tmp_path, write_video, movflags, output):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)]
    whole = write_video(tmp_path / "whole.mp4", images, movflags=movflags).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    line = refused("--source", tmp_path / "cut.mp4", "--output", tmp_path / output)
    assert "cut off" in line
    assert sorted(os.listdir(tmp_path)) == ["cut.mp4", "whole.mp4"]


def test_what_is_cut_off_is_kept_under_a_name_that_says_so(refused, tmp_path, write_video, read_video):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)]
    whole = write_video(tmp_path / "whole.mp4", images, movflags="+faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    outputs = ["--output", tmp_path / "out.mp4", "--output", tmp_path / "out.jsonl"]
    line = refused("--source", tmp_path / "cut.mp4", *outputs, "--on-truncated", "keep")
    assert f"kept as {tmp_path / 'out.cut-off.mp4'}, {tmp_path / 'out.cut-off.jsonl'}" in line
    assert sorted(os.listdir(tmp_path)) == ["cut.mp4", "out.cut-off.jsonl", "out.cut-off.mp4", "whole.mp4"]
    frames = len(read_video(tmp_path / "out.cut-off.mp4").images)
    assert 0 < frames < 20
    assert len((tmp_path / "out.cut-off.jsonl").read_text().splitlines()) == frames


def test_one_damaged_picture_does_not_cost_the_others(refused, pictures, tmp_path):
    (pictures[0] / "odd.png").write_bytes((pictures[0] / "odd.png").read_bytes()[:50])
    line = refused("--source", pictures[0], "--output", tmp_path / "out")
    assert "odd.png: expected a picture, got a file that is none or is damaged" in line
    assert sorted(os.listdir(tmp_path / "out")) == ["-dash.png", "one.png", "ü b:%d.png"]


def test_a_name_cannot_write_a_second_line(refused, tmp_path):
    line = refused("--source", f"{tmp_path}/a\nerror: b\x1bc\r.png", "--output", tmp_path / "out")
    assert line.endswith("a error: b c .png: no such file")


@pytest.mark.parametrize("name", ["clip.mp4", "p.png"])
@pytest.mark.parametrize("through", ["itself", "symlink"])
def test_an_output_over_the_source(refused, clip, tmp_path, write_picture, name, through):
    write_picture(clip.parent / "p.png", np.zeros((2, 2, 3), np.uint8))
    source = clip.parent / name
    before = source.read_bytes()
    output = source
    if through == "symlink":
        output = tmp_path / f"link{source.suffix}"
        output.symlink_to(source)
    assert "expected an output of its own, got the source itself" in refused("--source", source, "--output", output)
    assert source.read_bytes() == before
    assert leftovers(tmp_path) == []


def test_a_folder_of_pictures_over_itself(refused, pictures):
    folder = pictures[0]
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert "got a picture of the source" in refused("--source", folder, "--output", folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{tmp}/file/out.mp4", "cannot be written"),
        ("{tmp}/file/out/", "cannot be made"),
        ("{tmp}/file/out.png", "cannot be made"),
        ("{tmp}/file", "expected a folder or a name that ends in one of"),
        ("/proc/x.mp4", "cannot be written"),
        ("/proc/x.png", "cannot be written"),
        ("/proc/x", "cannot be made"),
        ("{tmp}/out.avi", "expected a name that ends in one of"),
        ("{tmp}/out.xyz", "expected a name that ends in one of"),
        ("ftp://a/b", "expected a video (out.mp4), a picture (out.png), a folder, results"),
        ("", "expected a video (out.mp4), a picture (out.png), a folder, results"),
    ],
)
def test_outputs_that_cannot_be(refused, tmp_path, output, message):
    (tmp_path / "file").write_text("years")
    assert message in refused("--source", "test://?size=8x8&frames=1", "--output", output.format(tmp=tmp_path))
    assert (tmp_path / "file").read_text() == "years"
    assert os.listdir(tmp_path) == ["file"]


def test_an_output_is_refused_before_the_source_is_opened(refused, tmp_path):
    assert "--output" in refused("--source", "nowhere.mp4", "--output", tmp_path / "out.xyz")


@pytest.mark.parametrize("second", ["/proc/x.mp4", "{tmp}/out.png", "{clip}"])
def test_a_second_output_that_cannot_be_takes_the_first_with_it(refused, clip, tmp_path, second):
    second = second.format(tmp=tmp_path, clip=clip)
    refused("--source", clip, "--output", tmp_path / "out.mp4", "--output", second)
    assert os.listdir(tmp_path) == ["in"]
    assert leftovers(tmp_path) == []


def test_a_video_does_not_fit_into_a_picture(refused, clip, tmp_path):
    line = refused("--source", clip, "--output", tmp_path / "out.png")
    assert "out.png: expected a source of one picture, got 12 frames: write a video (out.mp4) or a folder" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--alpha", "2"), "--alpha: expected a number from 0 to 1, got 2"),
        (("--render", "glow"), "--render: invalid choice: 'glow'"),
        (("--palette", "nowhere.yaml"), "nowhere.yaml"),
        (("--background", "nowhere.png"), "--background: expected #rrggbb or a picture: nowhere.png: cannot be read"),
        (("--background", "#ggg"), "#ggg"),
        (("--model", "./nowhere"), "nowhere: expected a bundle folder, got nothing"),
        (("--config", "nowhere.yaml"), "--config nowhere.yaml: cannot be read"),
        (("--frobnicate",), "unrecognized arguments: --frobnicate"),
        ((), "expected a source: "),
    ],
)
def test_options_that_are_wrong(refused, tmp_path, arguments, message):
    source = ("--source", "test://?size=8x8&frames=1", "--output", str(tmp_path / "out.mp4")) if arguments else ()
    assert message in refused(*source, *arguments)
    assert os.listdir(tmp_path) == []


def test_a_changed_bundle(refused, make_bundle, tmp_path):
    bundle = make_bundle()
    bundle.program_path.write_bytes(b"evil")
    line = refused("--source", "test://?size=8x8&frames=1", "--output", tmp_path / "out.mp4", model=bundle.folder)
    assert "program.onnx: expected sha256" in line
    assert os.listdir(tmp_path) == ["bundle"]


def test_frames_of_another_size_than_compiled(refused, make_bundle, tmp_path):
    bundle = make_bundle(frame_size_hw=(720, 1280))
    line = refused("--source", "test://?size=8x4&frames=1", "--output", tmp_path / "out.mp4", model=bundle.folder)
    assert "expected 720×1280 (height × width), got 4×8: compile with --frame 4x8" in line
    assert os.listdir(tmp_path) == ["bundle"]


# What breaks on the way


class Camera(Source):
    """Twenty pictures, then it is unplugged."""

    info = SourceInfo("cam", "camera", fps=Fraction(30), live=True)

    def __iter__(self):
        for number in range(20):
            yield Frame(np.full((32, 48, 3), 10 * number, np.uint8), number, number / 30, "cam", f"cam_{number:06d}")
        raise SourceError("cam: was it unplugged?")


def test_a_recording_whose_camera_failed_is_kept(refused, tmp_path, monkeypatch, read_video):
    monkeypatch.setattr(command, "open_sources", lambda *_, **__: [Camera()])
    line = refused("--source", "0", "--output", tmp_path / "out.mp4", "--drop", "never")
    assert line == "error: cam: was it unplugged?"
    assert len(read_video(tmp_path / "out.mp4").images) == 20
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_a_bug_is_not_hidden_and_leaves_nothing(main, clip, tmp_path, monkeypatch):
    def bug(*_, **__):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(command, "run", bug)
    with pytest.raises(ZeroDivisionError, match="bug"):
        main("--source", clip, "--output", tmp_path / "out.mp4")
    assert os.listdir(tmp_path) == ["in"]


def test_an_output_that_cannot_be_finished_does_not_cost_the_other(refused, clip, tmp_path, monkeypatch, read_video):
    replace = os.replace

    def fail_for_a(source, target):
        if str(target).endswith("a.mp4"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_a)
    line = refused("--source", clip, "--output", tmp_path / "a.mp4", "--output", tmp_path / "b.mp4")
    assert "a.mp4: cannot be finished (no space left on device)" in line
    assert len(read_video(tmp_path / "b.mp4").images) == 12
    assert sorted(os.listdir(tmp_path)) == ["b.mp4", "in"]


# --model by name


@pytest.fixture
def cached(red_bundle, tmp_path, monkeypatch):
    """Where a network of this name lies once it is compiled."""
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.version.version", lambda: "1.2.3")
    monkeypatch.setattr("pipeline.builds.model_name.is_here", lambda _: False)
    folder = tmp_path / "cache" / "bundles" / "1.2.3" / "silueta"
    folder.parent.mkdir(parents=True)
    return folder


def test_a_network_that_was_compiled_starts_at_once(main, cached, red_bundle, tmp_path):
    shutil.copytree(red_bundle.folder, cached)
    done = main("--source", "test://?size=8x8&frames=2", "--output", tmp_path / "out", model="silueta", quiet=False)
    assert done.status == 0
    assert "model: red" in done.err[1]


@pytest.fixture
def compiler(red_bundle, monkeypatch):
    """What stands in for the process that compiles: gets its arguments, and writes a bundle unless it is told to fail."""
    calls = SimpleNamespace(arguments=[], fails=lambda _: False)

    def compile_it(arguments, **_):
        calls.arguments.append(arguments)
        if calls.fails(arguments):
            return subprocess.CompletedProcess(arguments, 2)
        Bundle.write(arguments[arguments.index("--output") + 1], red_bundle.manifest, {"program.onnx": b"x"})
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr("subprocess.run", compile_it)
    return calls


@pytest.mark.parametrize("there", ["nothing", "a damaged bundle"])
def test_a_network_is_compiled_once_by_another_process(cached, compiler, there, said):
    if there == "a damaged bundle":
        cached.mkdir()
    for _ in range(2):
        assert open_model("silueta").folder == cached
    assert compiler.arguments == [[*module_command("compile"), "--model", "silueta", "--output", str(cached)]]
    assert len(said) == 1
    assert ("compiling once into" if there == "nothing" else "done now") in said[0]


@pytest.fixture
def computes_in_bf16(monkeypatch):
    """``computes_in_bf16(openvino, processor)``: whether OpenVINO is here, and a processor with BF16."""

    def now(openvino, processor):
        monkeypatch.setattr("pipeline.builds.model_name.is_here", lambda kind: openvino and kind.name == "openvino")
        monkeypatch.setattr("pipeline.builds.model_name.has_bf16", lambda _: processor)

    return now


def test_for_openvino_on_a_processor_with_bf16_it_is_compiled_with_what_that_would_spoil(
    cached, compiler, computes_in_bf16, said
):
    with_layers = cached.with_name("silueta.openvino")
    computes_in_bf16(True, True)
    for _ in range(2):
        assert open_model("silueta").folder == with_layers
    given = ["--model", "silueta", "--target", "openvino", "--output", str(with_layers)]
    assert compiler.arguments == [[*module_command("compile"), *given]]
    computes_in_bf16(False, True)
    assert open_model("silueta").folder == with_layers  # which is as good without OpenVINO
    assert len(compiler.arguments) == len(said) == 1


@pytest.mark.parametrize(("openvino", "processor"), [(False, True), (True, False)])
def test_without_bf16_none_is_searched_for(cached, compiler, computes_in_bf16, openvino, processor):
    computes_in_bf16(openvino, processor)
    assert open_model("silueta").folder == cached
    assert "--target" not in compiler.arguments[0]


def test_what_was_compiled_before_openvino_came_is_taken_and_the_log_says_how_to_renew_it(
    cached, compiler, computes_in_bf16, said
):
    open_model("silueta")
    said.clear()
    computes_in_bf16(True, True)
    assert open_model("silueta").folder == cached
    assert len(compiler.arguments) == 1
    assert len(said) == 1
    assert f"{cached} was compiled without OpenVINO" in said[0]
    shutil.rmtree(cached)  # as it says
    assert open_model("silueta").folder == cached.with_name("silueta.openvino")


def half(arguments):
    return "fp16" in arguments


@pytest.mark.parametrize(
    ("gpu", "torch", "fails", "precisions", "suffix"),
    [
        (True, True, None, [True], ".fp16"),
        (True, True, half, [True, False], ""),
        (True, False, None, [False], ""),
        (False, True, None, [False], ""),
    ],
)
def test_a_network_is_compiled_in_fp16_for_a_gpu(cached, compiler, monkeypatch, gpu, torch, fails, precisions, suffix):
    monkeypatch.setattr("pipeline.builds.model_name.usable_runtime", lambda: "tensorrt" if gpu else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: torch if name == "torch" else pytest.fail(name))
    compiler.fails = fails or compiler.fails
    assert open_model("silueta", on_gpu=True).folder == cached.with_name(f"silueta{suffix}")
    assert [half(arguments) for arguments in compiler.arguments] == precisions
    assert open_model("silueta").folder == cached  # which a CPU runs faster


def test_a_network_that_was_compiled_for_a_cpu_serves_where_it_cannot_be_compiled_anew(
    cached, compiler, red_bundle, monkeypatch, said
):
    shutil.copytree(red_bundle.folder, cached)
    monkeypatch.setattr("pipeline.builds.model_name.usable_runtime", lambda: "tensorrt")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert open_model("silueta", on_gpu=True).folder == cached
    assert said == []
    assert compiler.arguments == []


def test_a_gpu_that_cannot_be_used_is_not_compiled_for(cached, compiler, monkeypatch, said):
    def lacking():
        raise BackendUnavailableError("no TensorRT")

    monkeypatch.setattr("pipeline.builds.model_name.usable_runtime", lacking)
    assert open_model("silueta", on_gpu=True, quiet=True).folder == cached
    assert [half(arguments) for arguments in compiler.arguments] == [False]
    assert "--quiet" in compiler.arguments[0]
    assert len(said) == 1


def test_a_network_that_cannot_be_compiled_is_one_line(refused, cached, compiler, tmp_path):
    compiler.fails = lambda _: True
    line = refused("--source", "test://?size=8x8&frames=2", "--output", tmp_path / "out", model="nosuch")
    assert re.fullmatch(r"error: python -m compile --model nosuch .*: ended with status 2", line)


def test_why_a_network_cannot_be_compiled_comes_from_the_process_that_tried(refused, cached, tmp_path):
    line = refused("--source", "test://?size=8x8&frames=2", "--output", tmp_path / "out", model="nosuch")
    assert re.match(r"error: weights: expected one of u2netp, .*, got 'nosuch'", line)


@pytest.mark.parametrize(("runtime", "name"), [("tensorrt", "u2netp-fp16"), (None, "u2netp")])
def test_of_a_network_that_comes_with_the_package_a_gpu_takes_fp16(monkeypatch, runtime, name, said):
    monkeypatch.setattr("pipeline.builds.model_name.usable_runtime", lambda: runtime)
    assert open_model("u2netp", on_gpu=True) == Bundle.read(PUBLISHED / name)
    assert open_model("u2netp") == Bundle.read(PUBLISHED / "u2netp")
    assert said == []


# A process of its own


def test_the_command_from_any_folder(cli, red_bundle, tmp_path, read_video):
    source = "test://?size=64x48&frames=5"
    arguments = ("--source", source, "--model", red_bundle.folder, "--output", "out.mp4")
    done = cli("pipeline", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "out.mp4\n")
    assert "5 frames in" in done.stderr
    assert len(read_video(tmp_path / "out.mp4").images) == 5


def test_a_mistake_is_one_line_and_status_2(cli, red_bundle, tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    done = cli("pipeline", "--source", "a.mp4", "--model", red_bundle.folder, "--output", "b.mp4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: a.mp4: expected a video, got a file that is none or is cut off (invalid data found when processing input)"
    ]


def test_opencv_says_nothing_of_its_own(cli, red_bundle, tmp_path):
    arguments = ("--model", red_bundle.folder, "--output", tmp_path / "out")
    done = cli("pipeline", "--source", "/dev/null", *arguments)
    assert done.stderr.splitlines() == [
        "error: /dev/null: expected a camera, got a device that gives no pictures: is another program using it?"
    ]
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    done = cli("pipeline", "--source", tmp_path / "a.jpg", *arguments, "--quiet")
    assert len(done.stderr.splitlines()) == 1


def test_help_is_status_0(cli):
    done = cli("pipeline", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m pipeline")


def test_a_name_that_is_no_utf_8(red_bundle, tmp_path):
    command = [sys.executable, "-m", "pipeline", "--source", "test://?size=8x8&frames=1", "--output", b"\xff.mp4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [*command, "--model", red_bundle.folder], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"\xff.mp4\n")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff.mp4"]


@pytest.mark.parametrize(
    ("arguments", "in_flight"),
    [((), 3), (("--max-frames", "7"), 1), (("--max-frames", "8"), 3), (("--fps", "30"), 1)],
)
def test_two_frames_at_once_where_there_are_many(main, clip, monkeypatch, arguments, in_flight):
    seen, run = [], command.run

    def watched(source, engine, *more, **named):
        seen.append(engine.in_flight)
        return run(source, engine, *more, **named)

    monkeypatch.setattr(command, "run", watched)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert main("--source", clip, "--output", "null", *arguments).status == 0
    assert seen == [in_flight]
