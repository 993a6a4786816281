"""Night frames after a day set are told, another day's frames are not; and what is kept of them."""

import shutil
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.drift import watch
from pipeline.drift.farthest import MOST, FarthestFrames
from pipeline.drift.figures import figures_of
from pipeline.drift.summary import Summary
from pipeline.drift.watch import InputDrift
from pipeline.errors import OptionError
from pipeline.frames.frame import Frame, SourceInfo
from tests.conftest import red_program, write_bundle

PICTURES = SourceInfo("yard", "pictures")


@pytest.fixture(scope="module")
def days(ecssd):
    """Bright pictures, the brighter half, whose number ends in 0, and those that end in 5; and the dark ones among the latter."""
    images = {path.name: cv2.imread(str(path)) for path in sorted((ecssd / "images").glob("*.jpg"))}
    luma = {name: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).mean() for name, image in images.items()}
    middle = np.median(list(luma.values()))
    chosen = {
        "seen": [name for name in images if name[-5] == "0" and luma[name] > middle],
        "day": [name for name in images if name[-5] == "5" and luma[name] > middle],
        "dark": [name for name in images if name[-5] == "5" and luma[name] < 75],
    }
    return {kind: [images[name] for name in names] for kind, names in chosen.items()}


@pytest.fixture(scope="module")
def summary(days):
    return Summary.of(np.stack([figures_of(image) for image in days["seen"]]), "frames of the yard by day")


def night(image):
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(64 * (image / 255.0) ** 1.6 + noise, 0, 255).astype(np.uint8)


def fog(image):
    return cv2.addWeighted(image, 0.2, np.full_like(image, 215), 0.8, 0)


def covered(image):
    noise = np.random.default_rng(0).normal(4, 2, image.shape)
    return np.clip(0.03 * image + noise, 0, 255).astype(np.uint8)


def defocused(image):
    return cv2.GaussianBlur(image, (0, 0), 0.03 * image.shape[1])


def show(drift, images, source="yard", start=0, step_s=1.0):
    for index, image in enumerate(images, start):
        drift.written(Frame(image, index, index * step_s, source, str(index)), 0)


def test_another_day_is_silent(days, summary, caplog):
    drift = InputDrift(summary, [PICTURES], files=True)
    with caplog.at_level("INFO", "edgemask"):
        show(drift, days["day"])
    assert caplog.messages == []
    facts = drift.facts("yard")
    assert facts["unlike"] is False
    assert 0 < facts["distance"] < facts["limit"]
    shares = [summary.distance(figures_of(image)).value > summary.limit for image in days["day"]]
    assert np.mean(shares) < 0.05


def test_dark_pictures_are_told(days, summary, caplog):
    drift = InputDrift(summary, [PICTURES], files=True)
    show(drift, days["day"][:20])
    show(drift, days["dark"] * 4, start=20)
    (line,) = caplog.messages
    assert "yard: unlike everything that the model was verified on (frames of the yard by day): darker" in line
    assert drift.facts("yard")["unlike"] is True


@pytest.mark.parametrize(("change", "least"), [(night, 0.95), (fog, 0.9), (covered, 0.95), (defocused, 0.6)])
def test_what_happens_to_cameras_is_told(days, summary, caplog, change, least):
    drift = InputDrift(summary, [PICTURES], files=True)
    show(drift, map(change, days["day"]))
    assert len(caplog.messages) == 1
    shares = [summary.distance(figures_of(change(image))).value > summary.limit for image in days["day"]]
    assert np.mean(shares) > least


def test_it_is_told_once_and_once_that_it_is_over(days, summary, caplog):
    drift = InputDrift(summary, [PICTURES], files=True)
    day, dark = days["day"][:20], [night(image) for image in days["day"][:20]]
    with caplog.at_level("INFO", "edgemask"):
        show(drift, [*day, *dark, *dark, *day, *day])
        assert ["unlike" in message for message in caplog.messages] == [True, False]
        assert "yard: like what the model was verified on again" in caplog.messages[1]
        show(drift, dark)
    assert len(caplog.messages) == 3


def test_a_few_dark_frames_are_no_night(days, summary, caplog):
    drift = InputDrift(summary, [PICTURES], files=True)
    day = days["day"]
    show(drift, [*day[:15], *map(night, day[:4]), *day[15:30], *map(night, day[:4]), *day[:10]])
    assert caplog.messages == []


def test_a_video_is_looked_at_once_a_second_and_a_camera_by_the_clock(days, summary, monkeypatch):
    looked = []
    monkeypatch.setattr(watch, "figures_of", lambda image: looked.append(1) or figures_of(image))
    clock = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    video = SourceInfo("video", "x", fps=Fraction(25))
    camera = SourceInfo("camera", "x", fps=Fraction(25), live=True)
    drift = InputDrift(summary, [video, camera], files=True)
    show(drift, days["day"][:1] * 76, "video", step_s=0.04)
    assert len(looked) == 4
    show(drift, days["day"][:1] * 76, "video", step_s=0.04)  # its time begins again
    assert len(looked) == 8
    for _ in range(50):
        show(drift, days["day"][:1], "camera")
        clock[0] += 0.1
    assert len(looked) == 13
    show(drift, days["day"][:1], "another")
    assert len(looked) == 13
    assert drift.facts("another") is None


def test_the_farthest_frames_are_kept(days, summary, tmp_path):
    farthest = FarthestFrames(str(tmp_path / "far"))
    drift = InputDrift(summary, [PICTURES], farthest, files=True)
    show(drift, days["day"][:3])
    assert list((tmp_path / "far").iterdir()) == []
    frame = night(days["day"][0])
    show(drift, [frame])
    farthest.close()
    (path,) = (tmp_path / "far").iterdir()
    assert path.name.startswith("yard-")
    np.testing.assert_array_equal(cv2.imread(str(path)), frame)


def offered(farthest, source, distance, value=0):
    frame = Frame(np.full((8, 8, 3), value, np.uint8), 0, 0.0, source, "x")
    farthest.offer(frame, distance)
    if farthest._writing is not None:
        farthest._writing.result()


def distances(folder):
    return sorted(float(path.stem.split("-")[-2]) for path in folder.iterdir())


def test_they_are_bounded_and_farther_ones_take_their_place(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("pipeline.drift.farthest.time.monotonic", lambda: clock[0])
    farthest = FarthestFrames(str(tmp_path))
    for number in range(30):
        clock[0] += 100
        offered(farthest, f"camera {number}", 5.0 + number)
    assert distances(tmp_path) == [5.0 + number for number in range(30 - MOST, 30)]
    clock[0] += 100
    offered(farthest, "camera", 6.0)
    assert len(distances(tmp_path)) == MOST
    assert 6.0 not in distances(tmp_path)
    # Frames of a minute are one picture, of which the farthest stays.
    for distance in (50.0, 60.0, 55.0):
        clock[0] += 10
        offered(farthest, "door", distance)
    assert [one for one in distances(tmp_path) if one >= 50] == [60.0]
    farthest.close()


def test_those_of_earlier_runs_count(tmp_path):
    earlier = FarthestFrames(str(tmp_path / "earlier"))
    offered(earlier, "yard", 1.0)
    earlier.close()
    (picture,) = (tmp_path / "earlier").iterdir()
    content = picture.read_bytes()
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None
    with Image.open(picture) as opened:  # another reader of PNG
        assert opened.text == {"Software": "edgemask --drift-frames"}
        opened.load()
    shutil.rmtree(tmp_path / "earlier")
    for number in range(MOST + 4):
        (tmp_path / f"yard-{number}.0-20260101T0000{number:02}Z.png").write_bytes(content)
    (tmp_path / "yard-0.5-20260101T000000Z.png").write_bytes(b"x" * 200)  # named so by somebody else
    farthest = FarthestFrames(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == MOST + 1
    offered(farthest, "yard", 3.0)
    offered(farthest, "yard", 99.0)
    farthest.close()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == MOST + 1
    assert "yard-0.5-20260101T000000Z.png" in kept
    assert [name for name in kept if name.startswith("yard-99.0-")]


def test_names_hold_no_password(tmp_path):
    farthest = FarthestFrames(str(tmp_path))
    offered(farthest, "rtsp://***@door:554/live?token=***", 9.0)
    farthest.close()
    (path,) = tmp_path.iterdir()
    assert path.parent == tmp_path
    assert "/" not in path.name


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match=r"--drift-frames .*: expected a folder for pictures, cannot use it"):
        FarthestFrames(str(tmp_path / "file"))


def test_a_full_disk_ends_nothing(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.drift.farthest.write_whole", full)
    farthest = FarthestFrames(str(tmp_path))
    for distance in (5.0, 6.0, 7.0):
        offered(farthest, f"camera {distance}", distance)
    farthest.close()
    (line,) = caplog.messages
    assert "a frame cannot be kept (No space left on device); the rest goes on" in line


def test_another_bundle_brings_its_own_frames_and_sources_join_and_leave(summary, tmp_path, caplog):
    drift = InputDrift(summary, [])
    camera = SimpleNamespace(info=SourceInfo("door", "a camera", live=True))
    drift.joined(SimpleNamespace(info=SourceInfo("clip", "a file", fps=Fraction(25))))
    drift.joined(camera)
    shown = np.full((60, 80, 3), 128, np.uint8)
    drift.written(Frame(shown, 0, 0.0, "door", "0"), 0)
    drift.written(Frame(shown, 0, 0.0, "clip", "0"), 0)
    assert drift.facts("door") is not None
    assert drift.facts("clip") is None  # no file is watched by itself
    bundle = write_bundle(tmp_path / "other", red_program())
    caplog.set_level("INFO")
    drift.swapped(bundle)
    assert drift.facts("door") is None
    drift.written(Frame(shown, 1, 2.0, "door", "1"), 0)
    assert drift.facts("door") is None
    assert "got one without drift.json" in caplog.text
    drift.left(camera)
    assert drift.facts("door") is None
