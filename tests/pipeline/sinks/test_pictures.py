import errno
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import open_sink, pictures
from pipeline.sinks.options import SinkOptions
from pipeline.sinks.pictures import FolderSink, OnePictureSink, write_picture


def rendering(mode, task="binary"):
    return Renderer(Look(mode=mode), task)


@pytest.fixture
def image():
    return np.random.default_rng(2).integers(0, 256, (31, 17, 3), np.uint8)


def rendered(make_frame, image, renderer, **facts):
    frame = make_frame(image, **facts)
    frame.view = renderer(frame.image, frame.mask)
    return frame


@pytest.fixture
def save(tmp_path, make_info, make_frame, image):
    """``save("out.png", mode)``: writes the picture; gives its path."""

    def write(name, mode, task="binary"):
        renderer = rendering(mode, task)
        sink = open_sink(str(tmp_path / name), make_info(fps=None, frame_count=1), renderer)
        sink.write(rendered(make_frame, image, renderer, name="p"))
        sink.close()
        return tmp_path / name

    return write


@pytest.mark.parametrize("task", ["binary", "classes"])
@pytest.mark.parametrize("name", ["out/", "out.png", "out.bmp", "out.tif"])
def test_masks_are_grey_of_the_frames_size_with_exactly_their_values(save, image, read_picture, name, task):
    path = save(name, "mask", task)
    mask = read_picture(path / "p.png" if path.is_dir() else path)
    assert (mask.dtype, mask.shape) == (np.uint8, (31, 17))
    np.testing.assert_array_equal(mask, image[..., 2])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".JPG"])
def test_class_numbers_are_not_written_into_what_would_change_them(save, tmp_path, suffix):
    with pytest.raises(SinkError, match=r"expected .png, .bmp or .tif: this format would change the class numbers$"):
        save(f"out{suffix}", "mask", "classes")
    assert os.listdir(tmp_path) == []
    assert save(f"out{suffix}", "overlay", "classes").is_file()


@pytest.mark.parametrize("name", ["out/", "out.png"])
def test_a_cutout_has_the_mask_as_its_alpha_channel(save, image, read_picture, name):
    path = save(name, "cutout")
    picture = read_picture(path / "p.png" if path.is_dir() else path)
    assert picture.shape == (31, 17, 4)
    np.testing.assert_array_equal(picture[..., :3], image)
    np.testing.assert_array_equal(picture[..., 3], image[..., 2])


def test_a_cutout_without_alpha_channel_is_the_view(tmp_path, make_info, make_frame, read_picture, picture_hwc):
    frame = rendered(make_frame, picture_hwc, rendering("cutout"))
    sink = OnePictureSink(str(tmp_path / "out.jpg"), make_info(frame_count=1), rendering("cutout"))
    sink.write(frame)
    picture = read_picture(tmp_path / "out.jpg")
    np.testing.assert_allclose(picture[5, 5], frame.view[5, 5], atol=8)  # the colour behind, not the picture
    np.testing.assert_allclose(picture[45, 80], picture_hwc[45, 80], atol=8)
    assert abs(int(picture[5, 5, 1]) - int(picture_hwc[5, 5, 1])) > 50


@pytest.mark.parametrize("mode", ["overlay", "side", "contour", "blur", "replace", "heatmap"])
def test_other_modes_are_the_view(save, make_frame, image, read_picture, mode):
    view = rendered(make_frame, image, rendering(mode)).view
    np.testing.assert_array_equal(read_picture(save("out/", mode) / "p.png"), view)


def test_a_single_pixel(tmp_path, make_info, make_frame, renderer, read_picture):
    with_one = np.full((1, 1, 3), (1, 2, 3), np.uint8)
    sink = FolderSink(str(tmp_path / "out"), make_info(), renderer)
    sink.write(make_frame(with_one, name="p"))
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "p.png"), with_one)


@pytest.mark.parametrize("name", ["a b", "ünïcode", "100%d", "-dash", "a:b", "a.b.c", "x" * 245, "deep/er/p"])
def test_names_become_file_names(tmp_path, make_info, make_frame, renderer, image, name):
    sink = FolderSink(str(tmp_path / "out"), make_info(), renderer)
    sink.write(make_frame(image, name=name))
    assert (tmp_path / "out" / f"{name}.png").is_file()
    assert sum(len(files) for _, _, files in os.walk(tmp_path)) == 1


def test_a_name_that_is_too_long_is_one_sentence(tmp_path, make_info, make_frame, renderer, image):
    sink = FolderSink(str(tmp_path), make_info(), renderer)
    with pytest.raises(SinkError, match=r"cannot be written \(File name too long\)$"):
        sink.write(make_frame(image, name="x" * 300))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_it_is_the_users_choice(save, umask, mode):
    before = os.umask(umask)
    try:
        assert save("out.png", "overlay").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_what_was_there_is_replaced(save, tmp_path, read_picture):
    (tmp_path / "out.png").write_bytes(b"old")
    assert read_picture(save("out.png", "mask")).shape == (31, 17)
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_link_is_replaced_and_what_it_points_to_stays(save, tmp_path):
    (tmp_path / "other.txt").write_text("years")
    (tmp_path / "out.png").symlink_to(tmp_path / "other.txt")
    assert not save("out.png", "mask").is_symlink()
    assert (tmp_path / "other.txt").read_text() == "years"


def test_a_folder_does_not_overwrite_its_source_and_keeps_what_is_before(
    tmp_path, make_info, make_frame, renderer, image
):
    source = tmp_path / "b.png"
    source.write_bytes(b"precious")
    sink = FolderSink(str(tmp_path), make_info(paths=(str(source),)), renderer)
    sink.write(make_frame(image, name="a"))
    with pytest.raises(SinkError, match=r"b.png: expected an output of its own, got a picture of the source"):
        sink.write(make_frame(image, name="b"))
    assert source.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_nor_through_a_linked_folder(tmp_path, make_info, make_frame, renderer, image):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    source = tmp_path / "real" / "b.png"
    source.write_bytes(b"precious")
    sink = FolderSink(str(tmp_path / "link"), make_info(paths=(str(source),)), renderer)
    with pytest.raises(SinkError, match="got a picture of the source"):
        sink.write(make_frame(image, name="b"))
    assert source.read_bytes() == b"precious"


@pytest.mark.parametrize("count", [0, 2, 300, None])
def test_one_picture_needs_a_source_of_one(tmp_path, make_info, renderer, count):
    got = "an unknown number of" if count is None else count
    with pytest.raises(SinkError, match=rf"expected a source of one picture, got {got} frames: write a video"):
        OnePictureSink(str(tmp_path / "out.png"), make_info(frame_count=count), renderer)


@pytest.mark.parametrize("name", ["file/out.png", "file/out/", "file/deep/out/"])
def test_below_a_file_nothing_can_be_made(tmp_path, make_info, renderer, name):
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=r"cannot be made \(.*\): choose another --output$"):
        open_sink(str(tmp_path / name), make_info(frame_count=1), renderer)


@pytest.mark.parametrize("spec", ["/proc/x.png", "/proc/out"])
def test_where_not_even_root_can_write(make_info, make_frame, renderer, image, spec):
    with pytest.raises(SinkError, match=r"/proc.*: cannot be (made|written)"):
        open_sink(spec, make_info(frame_count=1), renderer).write(make_frame(image))


def test_no_permission_is_said_before_any_work(tmp_path, make_info, renderer, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SinkError, match=r"cannot be written \(no permission\): choose another --output$"):
        FolderSink(str(tmp_path), make_info(), renderer)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(save, tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr(pictures.os, "replace", fail)
    with pytest.raises((SinkError, KeyboardInterrupt)) as caught:
        save("out.png", "mask")
    if isinstance(failure, OSError):
        assert str(caught.value).endswith("out.png: cannot be written (No space left on device)")
    assert os.listdir(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


@pytest.mark.parametrize(("suffix", "shape"), [(".webp", (2, 16_400, 3)), (".jpg", (2, 70_000, 3))])
def test_a_size_that_a_format_cannot_hold_is_one_sentence(tmp_path, suffix, shape):
    path = tmp_path / f"out{suffix}"
    with pytest.raises(
        SinkError, match=rf"OpenCV cannot write this kind of picture at {shape[1]}×2: use .png$"
    ) as caught:
        write_picture(path, np.zeros(shape, np.uint8))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_frame_without_mask_is_a_bug(tmp_path, make_info, make_frame, renderer, image):
    frame = make_frame(image)
    frame.mask = None
    with pytest.raises(ValueError, match="has no mask or view yet"):
        FolderSink(str(tmp_path), make_info(), renderer).write(frame)


def test_written_tells_where(tmp_path, make_info, renderer):
    assert FolderSink("out", make_info(), renderer).written == f"out{os.sep}"
    os.rmdir("out")
    path = str(tmp_path / "a.png")
    assert OnePictureSink(path, make_info(frame_count=1), renderer).written == path


def test_discard_keeps_complete_pictures(save, tmp_path, make_info, make_frame, renderer, image):
    sink = FolderSink(str(tmp_path), make_info(), renderer)
    sink.write(make_frame(image, name="a"))
    sink.discard()
    sink.close()
    assert cv2.imread(str(Path(tmp_path, "a.png"))) is not None


def test_a_second_run_of_a_live_source_replaces_no_picture(make_info, make_frame, image, tmp_path, read_picture):
    renderer = rendering("mask")
    for run in range(3):
        sink = FolderSink(str(tmp_path), make_info(live=True), renderer, SinkOptions(min_free_bytes=0))
        for index in range(2):
            sink.write(rendered(make_frame, image + np.uint8(10 * run + index), renderer, name=f"yard_{index:06d}"))
        sink.close()
    assert sorted(os.listdir(tmp_path)) == [f"yard_{number:06d}.png" for number in range(6)]
    for number in range(6):
        expected = (image + np.uint8(10 * (number // 2) + number % 2))[..., 2]
        np.testing.assert_array_equal(read_picture(tmp_path / f"yard_{number:06d}.png"), expected)


def test_a_live_folder_that_is_taken_away_or_full_goes_on(make_info, make_frame, image, tmp_path, monkeypatch):
    room_bytes = [10**9]
    monkeypatch.setattr("pipeline.sinks.disk.os.statvfs", lambda _: SimpleNamespace(f_bavail=room_bytes[0], f_frsize=1))
    renderer, folder = rendering("mask"), tmp_path / "pictures"
    sink = FolderSink(str(folder), make_info(live=True), renderer, SinkOptions(min_free_bytes=1000))
    assert sink.comes_back
    sink.write(rendered(make_frame, image, renderer, name="yard_000000"))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match="cannot be written"):
        sink.write(rendered(make_frame, image, renderer, name="yard_000001"))
    room_bytes[0] = 0
    assert not sink.again()
    room_bytes[0] = 10**9
    assert sink.again()
    sink.write(rendered(make_frame, image, renderer, name="yard_000002"))
    assert os.listdir(folder) == ["yard_000002.png"]
