"""Collecting, writing and reading calibration sets, inside the process."""

import json
import os
import tracemalloc
from collections import Counter
from fractions import Fraction

import cv2
import numpy as np
import pytest

from calibration.sets.calibration_set import is_set, read_set
from calibration.sets.contact_sheet import SheetPicture, draw_sheet
from calibration.sets.frames import HashedFrames, SetWriter, open_calibration
from calibration.sets.selection import Candidate, Look, Pool, brightness_band, choose, split
from pipeline.errors import CalibrationError, SourceError
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sources import open_source

SIZE_HW = (36, 64)


def scene(number, size_hw=SIZE_HW):
    """A picture of its own: coarse blocks of random colours."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(blocks, size_hw[::-1], interpolation=cv2.INTER_NEAREST)


def shifted(number, step):
    """The scene with something that moves through it."""
    image = scene(number)
    left = step * 5 % (SIZE_HW[1] - 10)
    image[12:22, left : left + 8] = image[12:22, left : left + 8] // 2 + 64
    return image


def frames_of(images):
    for index, image in enumerate(images):
        yield Frame(image, index, index / 25, "film", f"{index:06d}")


def film_info(**facts):
    return SourceInfo(**{"name": "film", "description": "made up", "fps": Fraction(25), **facts})


def pool_of(images, capacity=64, moving=True):
    pool = Pool(capacity, moving=moving)
    for index, image in enumerate(images):
        pool.add(image, index, f"{index}", index / 25)
    return pool


def write_set(folder, images, count=32, verify_share=0.2, **facts):
    with SetWriter(folder, film_info(**facts), count) as writer:
        for frame in frames_of(images):
            writer.add(frame)
        return writer.finish(verify_share)


@pytest.fixture
def film():
    """Five scenes with hard cuts, ten frames each."""
    return [shifted(number, step) for number in range(5) for step in range(10)]


@pytest.fixture
def some_set(tmp_path, film):
    return write_set(tmp_path / "set", film)[0]


def hidden(folder):
    return [name for _, folders, files in os.walk(folder) for name in folders + files if name.startswith(".")]


# Choosing


def test_near_duplicates_are_dropped():
    rng = np.random.default_rng(0)
    noisy = [np.clip(scene(1) + rng.normal(0, 4, (*SIZE_HW, 3)), 0, 255).astype(np.uint8) for _ in range(20)]
    pool = pool_of([*noisy, scene(2), *noisy])
    assert [candidate.index for candidate in pool.result()] == [0, 20]
    assert pool.seen.frames == 41
    assert pool.seen.duplicates == 39


def test_dark_frames_of_different_things_are_no_duplicates():
    pool = pool_of([(scene(number) * 0.06).astype(np.uint8) for number in range(3)], moving=False)
    assert len(pool.result()) == 3
    assert {candidate.scene for candidate in pool.result()} == {1, 2, 3}


@pytest.mark.parametrize("value", [0, 90, 255])
def test_frames_of_one_colour_are_blank_also_with_noise(value):
    noise = np.random.default_rng(0).normal(value, 3, (90, 160, 3))
    assert Look.of(np.clip(noise, 0, 255).astype(np.uint8)).blank
    assert Look.of(np.full((1, 1, 3), value, np.uint8)).blank


def test_cuts_bound_scenes_and_one_that_comes_back_is_the_same():
    order = [1, 2, 1, 3, 2]
    pool = pool_of([shifted(number, step) for number in order for step in range(8)])
    for candidate in pool.result():
        assert candidate.scene == order[candidate.index // 8]


def test_a_light_switched_on_starts_no_scene():
    dim = [(shifted(1, step) * 0.5).astype(np.uint8) for step in range(8)]
    pool = pool_of([*dim, *(shifted(1, step) for step in range(8)), scene(2)])
    assert {candidate.scene for candidate in pool.result() if candidate.index < 16} == {1}
    assert pool.result()[-1].scene == 2


def test_a_fade_through_black_separates_scenes():
    fades = [0.8, 0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.0]
    first = [(scene(1) * share).astype(np.uint8) for share in (1, *fades)]
    second = [(scene(2) * share).astype(np.uint8) for share in (*reversed(fades), 1)]
    result = pool_of([*first, *second]).result()
    for candidate in result:
        assert candidate.scene == (1 if candidate.index < len(first) else 2)
    assert {candidate.scene for candidate in result} == {1, 2}


def test_similar_pictures_of_a_folder_are_one_scene():
    images = [shifted(1, 0), shifted(2, 0), shifted(1, 6), shifted(3, 0)]
    assert [candidate.scene for candidate in pool_of(images, moving=False).result()] == [1, 2, 1, 3]


def test_a_full_pool_keeps_the_most_different():
    similar = [shifted(1, step) for step in range(12)]
    pool = pool_of([*similar, *(scene(number) for number in range(2, 7))], capacity=6)
    indices = [candidate.index for candidate in pool.result()]
    assert len(indices) == 6
    assert set(range(12, 17)) <= set(indices)


def candidates_of(scenes, brightness=None):
    rng = np.random.default_rng(4)
    brightness = brightness or [0.4] * len(scenes)
    return [
        Candidate(index, f"{index}", float(index), value, number, rng.normal(size=768).astype(np.float32))
        for index, (number, value) in enumerate(zip(scenes, brightness, strict=True))
    ]


def test_a_long_scene_leaves_room_for_short_ones():
    chosen = choose(candidates_of([1] * 90 + [2] * 5 + [3] * 5), 15)
    assert Counter(candidate.scene for candidate in chosen) == {1: 5, 2: 5, 3: 5}


def test_few_dark_frames_among_many_bright_ones_are_chosen():
    chosen = choose(candidates_of(range(100), [0.05] * 4 + [0.6] * 96), 8)
    assert sum(candidate.brightness < 0.1 for candidate in chosen) == 4


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("sizes", [(1, 1), (90, 3), (40, 40), (5, 1, 70, 9, 30), tuple([1] * 50)])
@pytest.mark.parametrize("count", [2, 24, 400])
def test_no_scene_is_in_both_splits(share, sizes, count):
    candidates = candidates_of([number for number, size in enumerate(sizes) for _ in range(size)])
    parts = split(candidates, count, share)
    assert parts.by == "scenes"
    assert parts.calibration
    assert parts.verification
    assert not {c.scene for c in parts.calibration} & {c.scene for c in parts.verification}
    assert len(parts.calibration) + len(parts.verification) <= count
    if count < min(sizes):
        assert len(parts.calibration) + len(parts.verification) == count


def test_the_share_is_met_where_scenes_allow_it():
    candidates = candidates_of(range(200), list(np.linspace(0.02, 0.9, 200)))
    parts = split(candidates, 100, 0.2)
    assert (len(parts.calibration), len(parts.verification)) == (80, 20)
    for part in (parts.calibration, parts.verification):
        assert len({brightness_band(candidate.brightness) for candidate in part}) == 5


def test_the_larger_part_is_for_calibration():
    parts = split(candidates_of([1] * 10 + [2]), 11, 0.5)
    assert (len(parts.calibration), len(parts.verification)) == (10, 1)


def test_one_scene_is_split_in_time_with_a_gap():
    parts = split(candidates_of([1] * 100), 50, 0.2)
    assert parts.by == "time"
    assert (len(parts.calibration), len(parts.verification)) == (40, 10)
    assert parts.verification[0].index - parts.calibration[-1].index > 4
    every = split(candidates_of([1] * 100), 100, 0.2)
    assert (every.calibration[-1].index, every.verification[0].index) == (75, 80)
    two = split(candidates_of([1, 1]), 50, 0.2)
    assert ([c.index for c in two.calibration], [c.index for c in two.verification]) == ([0], [1])


# Writing


def test_a_set_holds_the_frames_as_they_were(some_set, film):
    assert some_set.split_by == "scenes"
    assert len(some_set.calibration) + len(some_set.verification) == len(some_set.entries) > 10
    for entry in some_set.entries:
        np.testing.assert_array_equal(cv2.imread(str(some_set.folder / entry.name)), film[entry.index])
        assert entry.pts_s == pytest.approx(entry.index / 25)
    apart = {
        split: {entry.index // 10 for entry in some_set.entries if entry.split == split}
        for split in ("calibration", "verification")
    }
    assert not apart["calibration"] & apart["verification"]
    assert apart["calibration"] | apart["verification"] == set(range(5))
    assert sorted(os.listdir(some_set.folder)) == [
        "calibration",
        "contact_sheet.png",
        "manifest.json",
        "report.txt",
        "verification",
    ]
    assert hidden(some_set.folder.parent) == []


def test_reading_gives_what_was_written(some_set):
    assert is_set(some_set.folder)
    assert read_set(some_set.folder) == some_set


def test_two_runs_give_the_same_set(some_set, tmp_path, film):
    again, _ = write_set(tmp_path / "again", film)
    assert again.sha256 == some_set.sha256
    assert again.entries == some_set.entries
    other, _ = write_set(tmp_path / "other", film, verify_share=0.4)
    assert other.sha256 != some_set.sha256


def test_a_set_is_replaced(some_set, film):
    written, _ = write_set(some_set.folder, film[:20], count=6)
    assert len(written.entries) == 6
    assert read_set(some_set.folder) == written
    assert hidden(some_set.folder.parent) == []


def test_memory_and_disk_do_not_grow_with_the_source(tmp_path):
    def collect(count):
        pool_sizes = set()
        with SetWriter(tmp_path / "set", film_info(), 8) as writer:
            tracemalloc.start()
            for index in range(count):
                writer.add(Frame(scene(index), index, index / 25, "film", f"{index}"))
                if index % 100 == 99:
                    pool_sizes.add(sum(name.endswith(".png") for _, _, names in os.walk(tmp_path) for name in names))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return pool_sizes, peak

    collect(100)
    sizes, peak = collect(200)
    more_sizes, more_peak = collect(2000)
    assert sizes == more_sizes == {16}
    assert more_peak < 1.2 * peak + 50_000
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [np.zeros((*SIZE_HW, 3), np.uint8)] * 3,
            r"got 0 of 3 read \(0 near-duplicates, 3 of one color\): is the lens covered",
        ),
        ([scene(1)], r"film: expected at least 2 frames that differ, got 1 of 1 read .*: give more scenes"),
        ([scene(1)] * 9, r"got 1 of 9 read \(8 near-duplicates, 0 of one color\)"),
    ],
)
def test_what_makes_no_set_is_refused_and_leaves_nothing(tmp_path, images, message):
    with pytest.raises(CalibrationError, match=message):
        write_set(tmp_path / "set", images)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path, film, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(
        CalibrationError, match=r"set: cannot be written \(No space left on device\): make room, or choose"
    ):
        write_set(tmp_path / "set", film)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_at_the_end_leaves_the_old_set(some_set, film, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calibration.sets.frames.draw_sheet", full)
    with pytest.raises(CalibrationError, match="No space left on device"):
        write_set(some_set.folder, film[:20])
    monkeypatch.undo()
    assert read_set(some_set.folder) == some_set
    assert hidden(some_set.folder.parent) == []


def test_other_folders_are_not_overwritten(tmp_path, some_set, film):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"1")
    with pytest.raises(
        CalibrationError, match=r"photos: expected a new folder .* \(mine\.jpg\): choose another --output"
    ):
        SetWriter(tmp_path / "photos", film_info())
    (some_set.folder / "notes.txt").write_bytes(b"1")
    with pytest.raises(CalibrationError, match=r"got a folder with other files \(notes\.txt\)"):
        SetWriter(some_set.folder, film_info())
    with pytest.raises(CalibrationError, match="expected a folder for the set, got a file"):
        SetWriter(tmp_path / "photos" / "mine.jpg", film_info())
    with pytest.raises(CalibrationError, match=r"cannot be written \(.*mine.jpg is a file\)"):
        SetWriter(tmp_path / "photos" / "mine.jpg" / "set", film_info())


def test_a_set_is_not_collected_from_itself(some_set):
    info = open_source(str(some_set.folder / "calibration")).info
    with pytest.raises(CalibrationError, match="expected a folder apart from the source"):
        SetWriter(some_set.folder, info)


# Reading


def rewrite(some_set, **entries):
    path = some_set.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_changed_byte_is_refused(some_set):
    path = some_set.verification[0]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    expected = next(entry.sha256 for entry in some_set.entries if some_set.folder / entry.name == path)[:12]
    with pytest.raises(
        CalibrationError, match=rf"{path.name}: expected sha256 {expected}…, got [0-9a-f]{{12}}…: .*again"
    ):
        read_set(some_set.folder)


def test_a_missing_picture_is_refused(some_set):
    some_set.calibration[0].unlink()
    with pytest.raises(
        CalibrationError, match="expected a picture of the set, got no such file: collect the set again"
    ):
        read_set(some_set.folder)


def test_a_picture_too_many_is_refused(some_set):
    (some_set.folder / "calibration" / "mine.png").write_bytes(b"1")
    count = len(some_set.entries)
    with pytest.raises(
        CalibrationError, match=rf"expected {count} pictures, got {count + 1}, .* calibration/mine.png: remove"
    ):
        read_set(some_set.folder)


def test_a_changed_manifest_is_refused(some_set):
    entries = json.loads((some_set.folder / "manifest.json").read_text())["files"]
    entries[0]["scene"] += 1
    rewrite(some_set, files=entries)
    with pytest.raises(
        CalibrationError, match=r"manifest\.json: expected sha256 [0-9a-f]{12}… of its files, got [0-9a-f]{12}"
    ):
        read_set(some_set.folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"schema": 99},
        {"kind": "bundle"},
        {"files": 5},
        {"files": [5]},
        {"files": [{"name": "calibration/00000000.png"}]},
    ],
)
def test_a_manifest_of_another_form_is_refused(some_set, entries):
    rewrite(some_set, **entries)
    with pytest.raises(CalibrationError, match=r"manifest\.json: expected the manifest of a calibration set, schema 1"):
        read_set(some_set.folder)


@pytest.mark.parametrize(
    "name", ["../secret.png", "calibration/../../secret.png", "/etc/passwd", "calibration/x.png", 5]
)
def test_a_manifest_reads_nothing_outside_its_folder(some_set, name):
    entries = json.loads((some_set.folder / "manifest.json").read_text())["files"]
    entries[0]["name"] = name
    rewrite(some_set, files=entries)
    with pytest.raises(CalibrationError, match="expected the manifest of a calibration set"):
        read_set(some_set.folder)


def test_notes_beside_the_pictures_do_no_harm(some_set):
    (some_set.folder / "calibration.txt").write_bytes(b"1")
    assert read_set(some_set.folder) == some_set


def test_no_set_is_told(tmp_path):
    with pytest.raises(CalibrationError, match=r"expected a calibration set with manifest\.json, cannot read it"):
        read_set(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(CalibrationError, match="expected the manifest of a calibration set"):
        read_set(tmp_path)


# As --calib


def test_a_set_gives_its_calibration_frames(some_set):
    with open_calibration(str(some_set.folder)) as source:
        frames = list(source)
    assert source.info.frame_count == len(frames) == len(some_set.calibration)
    for frame, path in zip(frames, some_set.calibration, strict=True):
        np.testing.assert_array_equal(frame.image, cv2.imread(str(path)))


def test_a_damaged_set_is_not_taken_for_a_folder_of_pictures(some_set):
    some_set.calibration[0].unlink()
    with pytest.raises(CalibrationError, match="got no such file"):
        open_calibration(str(some_set.folder))


def test_any_source_gives_its_most_different_frames(tmp_path, film):
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(film + film):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), image)
    with open_calibration(str(tmp_path / "pictures"), 10) as source:
        first, second = list(source), list(source)
    assert len(first) == 10
    assert {frame.index // 10 for frame in first} == set(range(5))
    for frame, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(frame.image, film[frame.index])
        np.testing.assert_array_equal(frame.image, again.image)


def test_a_source_that_shows_nothing_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(CalibrationError, match=r"black\.png: expected frames to calibrate on, got 1 of one color"):
        list(open_calibration(str(tmp_path / "black.png")))
    with pytest.raises(SourceError, match="no such file"):
        open_calibration(str(tmp_path / "none.mp4"))


def test_the_hash_tells_which_frames_were_used(film):
    def sha256_of(images):
        hashed = HashedFrames(frames_of(images))
        assert len(list(hashed)) == len(images)
        return hashed.sha256

    changed = [*film[:4], film[4].copy()]
    changed[4][3, 3, 1] ^= 1
    keys = {sha256_of(film[:5]), sha256_of(changed), sha256_of(film[:4]), sha256_of(film[4::-1])}
    assert len(keys) == 4
    assert sha256_of(film[:5]) == sha256_of([np.asfortranarray(image) for image in film[:5]])


# What it looks like


@pytest.mark.parametrize("count", [1, 12, 400])
def test_the_sheet_shows_every_picture_in_its_colour(tmp_path, count):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((30, 40, 3), (0, 255, 0), np.uint8))
    pictures = [
        SheetPicture(tmp_path / "a.png", "verification" if n % 2 else "calibration", n, 61.5) for n in range(count)
    ]
    sheet = draw_sheet("Ünïcode " * 40, pictures)
    assert sheet.shape[1] == 1920
    green = np.all(sheet == (0, 255, 0), axis=2).astype(np.uint8)
    assert cv2.connectedComponents(green, connectivity=4)[0] - 1 == count
    orange = np.all(sheet[64:] == (40, 150, 245), axis=2)
    assert bool(orange.any()) == (count > 1)


def test_the_report_says_what_is_not_covered(tmp_path, film):
    _, report = write_set(tmp_path / "set", film + film + [np.zeros((*SIZE_HW, 3), np.uint8)], count=200)
    assert report == (tmp_path / "set" / "report.txt").read_text()
    assert "101 frames read" in report
    assert "1 blank frame dropped" in report
    assert "from 5 scenes" in report
    assert "not covered: very dark" in report
    assert "of 200 frames: the source shows no more that differ" in report


def test_one_scene_is_told_in_the_report_and_the_manifest(tmp_path):
    written, report = write_set(tmp_path / "set", [shifted(1, step) for step in range(10)])
    assert "note: one scene" in report
    assert read_set(tmp_path / "set").split_by == written.split_by == "time"


def test_pictures_of_a_benchmark_are_scenes_of_their_own(ecssd):
    pool = Pool(64, moving=False)
    for frame in list(open_source(str(ecssd / "images")))[:80]:
        pool.add(frame.image, frame.index, frame.name, frame.pts_s)
    assert pool.seen.duplicates == 0
    assert len({candidate.scene for candidate in pool.result()}) == 64
