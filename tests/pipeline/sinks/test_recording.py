"""Recordings of live sources: what a kill, a full disk and another size leave behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SinkError
from pipeline.sinks import disk, journal, recording
from pipeline.sinks.options import RecordingSwitch, SinkOptions
from pipeline.sinks.recording import RecordingSink

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long
FREE = SinkOptions(min_free_bytes=0)

# Records in a process of its own, as fast as it can or at 30 FPS, and tells the number of each frame that `write` has taken.
RECORDER = """
import sys, time
import numpy as np
from fractions import Fraction
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.sinks import disk, journal, recording
from pipeline.sinks.options import RecordingSwitch, SinkOptions
path, fps, libavformat = sys.argv[1], float(sys.argv[2]), sys.argv[3]
if libavformat:
    recording._HYBRID_FROM_LIBAVFORMAT = (999,)
info = SourceInfo("cam", "", fps=Fraction(30), live=True)
sink = recording.RecordingSink(path, info, Renderer(Look(), "binary"), SinkOptions(min_free_bytes=0))
noise = np.random.default_rng(0)
start_s = time.monotonic()
for index in range(100000):
    if fps:
        time.sleep(max(0, start_s + index / fps - time.monotonic()))
    image = noise.integers(0, 255, (64, 96, 3), np.uint8)
    sink.write(Frame(image, index, index / 30, "cam", "x", view=image))
    print(index, flush=True)
"""


def shown(folder):
    """The names in a folder but for hidden ones."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def frames_of(path):
    """How many frames ffprobe decodes; it must have nothing to say against the file."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "json"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return int(json.loads(done.stdout)["streams"][0]["nb_read_frames"])


def packets_of(path):
    """Time stamp in seconds of each frame, and whether it is a keyframe."""
    command = ["ffprobe", "-v", "error", "-show_entries", "packet=pts_time,flags", "-of", "json", str(path)]
    packets = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["packets"]
    return [(float(packet["pts_time"]), "K" in packet["flags"]) for packet in packets]


def view_of(number, size_hw=(32, 48)):
    return np.full((*size_hw, 3), number % 256, np.uint8)


@pytest.fixture
def live(make_info):
    return make_info(fps=30, live=True)


@pytest.fixture
def open_recording(tmp_path, live, renderer):
    def start(name="out.mp4", **options):
        return RecordingSink(str(tmp_path / name), live, renderer, SinkOptions(**{"min_free_bytes": 0, **options}))

    return start


@pytest.fixture
def record(make_frame):
    """``record(sink, range(60))``: frames of these numbers at 30 FPS."""

    def write(sink, numbers, size_hw=(32, 48)):
        for number in numbers:
            sink.write(make_frame(view_of(number, size_hw), number, number / 30))
        return sink

    return write


@pytest.fixture
def recorder(tmp_path):
    """Starts RECORDER; gives the process."""
    started = []

    def start(name, fps=0, libavformat=""):
        command = [sys.executable, "-c", RECORDER, str(tmp_path / name), str(fps), libavformat]
        job = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        )
        started.append(job)
        return job

    yield start
    for job in started:
        job.kill()
        job.communicate()


def kill_after(job, frames):
    for line in job.stdout:
        if int(line) + 1 >= frames:
            break
    job.kill()
    rest = job.stdout.read().split()
    assert job.wait(WAIT_S) == -signal.SIGKILL
    return int(rest[-1]) + 1 if rest else frames


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize(
    ("name", "fps", "libavformat"),
    [("out.mp4", 30, ""), ("out.mp4", 0, "older"), ("out.mov", 0, ""), ("out.mkv", 0, "")],
    ids=["hybrid at 30 FPS", "fragmented", "mov", "mkv"],
)
def test_a_kill_costs_less_than_a_second(recorder, tmp_path, name, fps, libavformat):
    written = kill_after(recorder(name, fps, libavformat), 75)
    assert written - 30 <= frames_of(tmp_path / name) <= written


@pytest.mark.needs_program("ffprobe")
def test_closed_it_is_an_ordinary_mp4(open_recording, record, tmp_path, read_video):
    sink = record(open_recording(), range(75))
    assert sink.written == str(tmp_path / "out.mp4")
    sink.close()
    sink.close()
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") > 0
    # Its boxes from the outside: no fragment is left.
    boxes, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        boxes.append(content[at + 4 : at + 8])
        at += size if size > 1 else int.from_bytes(content[at + 8 : at + 16], "big")
    assert b"moof" not in boxes
    assert boxes[-1] == b"moov"
    seen = read_video(tmp_path / "out.mp4")
    assert (frames_of(tmp_path / "out.mp4"), seen.codec, seen.pix_fmt, seen.tags) == (75, "h264", "yuv420p", (1, 1, 1))
    assert seen.pts_s == pytest.approx([number / 30 for number in range(75)], abs=1e-4)
    assert [image[16, 24, 0] for image in seen.images] == pytest.approx(list(range(75)), abs=3)


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize("step_s", [1 / 30, 0.1, 0.45, 1.7])
def test_a_keyframe_each_second_whatever_the_rate_turns_out_to_be(open_recording, make_frame, tmp_path, step_s):
    sink = open_recording()
    for number in range(max(8, round(4 / step_s))):
        sink.write(make_frame(view_of(number), number, number * step_s))
    sink.close()
    packets = packets_of(tmp_path / "out.mp4")
    assert [pts_s for pts_s, _ in packets] == pytest.approx(
        [number * step_s for number in range(len(packets))], abs=1e-3
    )
    keyframes = [pts_s for pts_s, is_keyframe in packets if is_keyframe]
    assert keyframes[0] == 0
    assert max(np.diff([*keyframes, packets[-1][0]])) < 1 + step_s


def test_it_grows_while_it_is_written(open_recording, record, tmp_path, read_video):
    sink = record(open_recording(), range(45))
    assert len(read_video(tmp_path / "out.mp4").images) >= 30
    sink.close()


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_files_by_time_hold_every_frame_and_play_alone(open_recording, record, tmp_path, read_video, suffix):
    sink = record(open_recording(f"out{suffix}", segment_s=0.5), range(50))
    sink.close()
    names = [f"out-000{number}{suffix}" for number in (1, 2, 3, 4)]
    assert shown(tmp_path) == names
    assert sink.written == f"{tmp_path / names[0]} … {tmp_path / names[-1]} (4 files)"
    seen = [read_video(tmp_path / name) for name in names]
    assert [len(video.images) for video in seen] == [15, 15, 15, 5]
    assert [video.pts_s[0] for video in seen] == [0, 0, 0, 0]
    values = [image[16, 24, 0] for video in seen for image in video.images]
    assert values == pytest.approx(list(range(50)), abs=3)
    for name in names:
        assert packets_of(tmp_path / name)[0] == (0, True)


def test_files_by_size(open_recording, tmp_path, make_frame, read_video):
    sink = open_recording(segment_bytes=10_000)
    noise = np.random.default_rng(0)
    for number in range(60):
        sink.write(make_frame(noise.integers(0, 255, (32, 48, 3), np.uint8), number, number / 30))
    sink.close()
    names = shown(tmp_path)
    assert len(names) > 2
    assert all((tmp_path / name).stat().st_size < 60_000 for name in names)
    assert sum(len(read_video(tmp_path / name).images) for name in names) == 60


def test_another_size_begins_another_file(open_recording, record, tmp_path, read_video):
    sink = record(open_recording(), range(20))
    record(sink, range(20, 40), (64, 64))
    record(sink, range(400, 410), (31, 47))
    record(sink, range(410, 420), (32, 48))  # once made even, the size stays
    sink.close()
    seen = {name: read_video(tmp_path / name) for name in shown(tmp_path)}
    assert {name: (video.size_hw, len(video.images)) for name, video in seen.items()} == {
        "out-0002.mp4": ((64, 64), 20),
        "out-0003.mp4": ((32, 48), 20),
        "out.mp4": ((32, 48), 20),
    }


@pytest.mark.parametrize(("options", "kept"), [({"keep_segments": 2}, [5, 6]), ({"keep_bytes": 1}, [6])])
def test_the_oldest_files_go(open_recording, record, tmp_path, options, kept):
    (tmp_path / "out-0001.mp4.txt").touch()
    sink = record(open_recording(segment_s=0.5, **options), range(90))
    sink.close()
    assert shown(tmp_path) == ["out-0001.mp4.txt", *(f"out-000{number}.mp4" for number in kept)]
    assert str(tmp_path / f"out-000{kept[0]}.mp4") in sink.written


def test_files_of_earlier_runs_stay_where_no_limit_is_given(open_recording, record, tmp_path):
    (tmp_path / "out-0007.mp4").write_bytes(b"old")
    record(open_recording(segment_s=0.5), range(20)).close()
    assert shown(tmp_path) == ["out-0007.mp4", "out-0008.mp4", "out-0009.mp4"]
    assert (tmp_path / "out-0007.mp4").read_bytes() == b"old"


def test_files_of_earlier_runs_count_and_are_the_oldest(open_recording, record, tmp_path):
    for run in (1, 2, 3):  # two files each
        record(open_recording(segment_s=0.5, keep_segments=3), range(20)).close()
        last = [f"out-{number:04d}.mp4" for number in range(1, 2 * run + 1)][-3:]
        assert shown(tmp_path) == last


@pytest.mark.parametrize(
    "options", [{"keep_segments": 1}, {"keep_bytes": 1}, {"keep_segments": 1, "min_free_bytes": 1 << 62}]
)
def test_what_is_not_ours_is_never_deleted(open_recording, record, tmp_path, options):
    """Whatever its name: of the user, changed since, exchanged, linked, or recorded without a limit."""
    record(open_recording(segment_s=0.5, keep_segments=100), range(45)).close()  # three files
    record(open_recording(segment_s=0.5), range(20)).close()  # 4 and 5, without a limit
    theirs = {"out.mp4", "out-2024.mp4", "out-20240501.mp4", "out-0003.mkv", "door-0003.mp4"}
    for name in theirs:
        (tmp_path / name).write_bytes(b"a film of the user's own")
    (tmp_path / "out-0001.mp4").write_bytes(b"cut by the user")
    (tmp_path / "out-0002.mp4").unlink()
    (tmp_path / "out-0002.mp4").symlink_to(tmp_path / "out.mp4")
    kept = theirs | {f"out-000{number}.mp4" for number in (1, 2, 4, 5)}
    content = {name: (tmp_path / name).read_bytes() for name in kept}
    sink = open_recording(segment_s=0.5, **options)
    if options.get("min_free_bytes"):
        with pytest.raises(SinkError, match="free on the disk"):
            record(sink, range(20))
        assert (tmp_path / "out-0003.mp4").exists(), "it would not have made the room"
    else:
        record(sink, range(20)).close()
        assert not (tmp_path / "out-0003.mp4").exists()
    assert {name: (tmp_path / name).read_bytes() for name in kept} == content


def test_what_another_recorder_writes_or_has_begun_later_is_left_alone(open_recording, record, tmp_path):
    first = record(open_recording(segment_s=0.5, keep_segments=1), range(20))
    assert shown(tmp_path) == ["out-0002.mp4"]
    second = record(open_recording(segment_s=0.5, keep_segments=1), range(20))
    assert shown(tmp_path) == ["out-0002.mp4", "out-0004.mp4"]
    second.close()
    record(first, range(20, 40)).close()
    assert "out-0004.mp4" in shown(tmp_path), "the second began after the first"
    assert "out-0002.mp4" not in shown(tmp_path)


def test_nothing_younger_than_the_floor_is_deleted(open_recording, record, tmp_path):
    record(open_recording(segment_s=0.5, keep_segments=1, keep_at_least_s=3600), range(60)).close()
    assert len(shown(tmp_path)) == 4
    for name in shown(tmp_path)[:2]:
        there = (tmp_path / name).stat()
        os.utime(tmp_path / name, (there.st_atime - 7200, there.st_mtime - 7200))
    journal = tmp_path / ".out.mp4.recordings"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["name"] in ("out-0001.mp4", "out-0002.mp4") and "mtime_s" in line:
            line["mtime_s"] -= 7200
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record(open_recording(segment_s=0.5, keep_segments=1, keep_at_least_s=3600), range(10)).close()
    assert shown(tmp_path) == ["out-0003.mp4", "out-0004.mp4", "out-0005.mp4"]


YEARS_S = 40 * 365 * 86400


@pytest.mark.parametrize("jump_s", [YEARS_S, -YEARS_S])
def test_a_clock_that_jumps_by_years_neither_deletes_nor_keeps_what_it_should_not(
    open_recording, record, tmp_path, monkeypatch, jump_s
):
    clock, jumped_s = time.time, [0.0]
    monkeypatch.setattr(recording.time, "time", lambda: clock() + jumped_s[0])
    floor = record(open_recording(segment_s=0.5, keep_segments=1, keep_at_least_s=3600), range(20))
    jumped_s[0] = jump_s
    record(floor, range(20, 40)).close()
    assert shown(tmp_path) == ["out-0001.mp4", "out-0002.mp4", "out-0003.mp4"], "all are younger than an hour"
    # The next run begins with the wrong clock: what the one before has made is still ours, and the oldest of it goes.
    record(open_recording(segment_s=0.5, keep_segments=1), range(10)).close()
    assert shown(tmp_path) == ["out-0004.mp4"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]\n",
        b'{"name": "../x", "run": "a"}\n',
        b'{"name": 5}\n',
        b"\xff\xfe\n",
        b'{"name":"out-0001.mp4"}\n',
    ],
)
def test_a_damaged_journal_deletes_nothing(open_recording, record, tmp_path, damage):
    record(open_recording(segment_s=0.5, keep_segments=9), range(20)).close()
    (tmp_path / ".out.mp4.recordings").write_bytes(damage)
    record(open_recording(segment_s=0.5, keep_segments=1), range(10)).close()
    assert shown(tmp_path) == ["out-0001.mp4", "out-0002.mp4", "out-0003.mp4"]


def test_a_camera_that_flaps_between_two_sizes_makes_few_files(open_recording, record, tmp_path, read_video):
    sink = open_recording()
    for number in range(0, 900, 2):  # 30 s
        record(sink, [number], (32, 48))
        record(sink, [number + 1], (64, 64))
    sink.close()
    assert len(shown(tmp_path)) <= 5
    assert sum(len(read_video(tmp_path / name).images) for name in shown(tmp_path)) == 900


@pytest.mark.parametrize("loss", ["deleted", "renamed", "replaced", "cut", "folder gone"])
def test_a_recording_that_is_lost_is_noticed_and_begun_anew(
    open_recording, record, tmp_path, monkeypatch, read_video, loss
):
    monkeypatch.setattr(recording, "_WRITE_BACK_EVERY_S", 0.0)
    folder = tmp_path / "disk"
    folder.mkdir()
    sink = record(open_recording("disk/out.mp4"), range(30))
    path = folder / "out.mp4"
    if loss == "deleted":
        path.unlink()
    elif loss == "renamed":
        path.rename(tmp_path / "elsewhere.mp4")
    elif loss == "replaced":
        path.unlink()
        path.write_bytes(b"another's")
    elif loss == "cut":
        os.truncate(path, 100)
    else:
        folder.rename(tmp_path / "away")
    with pytest.raises(SinkError, match=r"out.mp4: recording stopped \(its file was"):
        record(sink, range(30, 60))
    assert "recording stopped" in sink.problem
    assert sink.again()
    assert sink.problem == ""
    record(sink, range(60, 90)).close()
    assert sink.problem == ""
    newest = sorted(folder.glob("out*.mp4"), key=lambda one: one.stat().st_mtime_ns)[-1]
    assert len(read_video(newest).images) == 30
    if loss == "replaced":
        assert path.read_bytes() == b"another's"
    if loss == "renamed":
        assert len(read_video(tmp_path / "elsewhere.mp4").images) >= 20


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize("libavformat", [(61, 7), (999,)], ids=["hybrid", "fragmented"])
def test_a_recording_that_is_cut_by_half_plays_to_the_cut(open_recording, record, tmp_path, monkeypatch, libavformat):
    monkeypatch.setattr(recording, "_HYBRID_FROM_LIBAVFORMAT", libavformat)
    sink = record(open_recording(), range(0, 600, 10))  # each picture reaches the file at once
    os.truncate(tmp_path / "out.mp4", (tmp_path / "out.mp4").stat().st_size // 2)
    with pytest.raises(SinkError, match=r"its file was cut by somebody else"):
        record(sink, [600])
    assert 20 <= len(packets_of(tmp_path / "out.mp4")) <= 40
    assert sink.again()
    record(sink, [610]).close()
    assert frames_of(tmp_path / "out-0002.mp4") == 1


def test_a_recording_that_is_cut_before_its_end_is_told(open_recording, record, tmp_path):
    sink = record(open_recording(), range(60))
    os.truncate(tmp_path / "out.mp4", 0)
    with pytest.raises(SinkError, match=r"recording stopped \(its file was cut by somebody else\)$"):
        sink.close()
    assert shown(tmp_path) == []


def test_what_stands_in_place_of_a_recording_is_not_ours(open_recording, record, tmp_path, monkeypatch):
    """Neither under its name, which the journal has, nor at its place on the disk, which the next file may get."""
    monkeypatch.setattr(recording, "_WRITE_BACK_EVERY_S", 0.0)
    sink = record(open_recording(segment_s=0.5, keep_segments=2), range(10))
    (tmp_path / "out-0001.mp4").unlink()
    (tmp_path / "out-0001.mp4").write_bytes(b"another's")
    with pytest.raises(SinkError, match="its file was deleted, renamed or replaced"):
        record(sink, [10])
    for name in ("out-0001.mp4", "out-0009.mp4"):  # the second one at the place that is free now
        (tmp_path / name).write_bytes(b"another's")
    assert sink.again()
    record(sink, range(20, 120)).close()
    assert (tmp_path / "out-0001.mp4").read_bytes() == b"another's"
    assert len(shown(tmp_path)) == 4


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_what_a_kill_left_is_known_by_its_mark_and_not_by_a_place_that_another_file_may_get(
    open_recording, record, tmp_path, monkeypatch, suffix, is_ours
):
    name = f"out{suffix}"
    monkeypatch.setattr(journal.Journal, "ended", lambda *_: None)  # as after kill -9
    record(open_recording(name, segment_s=0.5, keep_segments=9), range(10)).close()
    monkeypatch.undo()
    left = tmp_path / f"out-0001{suffix}"
    if not is_ours:
        left.write_bytes(b"a film of the user's own")  # the same number of the file system, as a new file often gets
    record(open_recording(name, segment_s=0.5, keep_segments=1), range(10)).close()
    assert left.exists() != is_ours


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_a_kill_before_the_first_picture_left_goes_too(open_recording, record, tmp_path, monkeypatch, suffix):
    name = f"out{suffix}"
    monkeypatch.setattr(journal.Journal, "ended", lambda *_: None)
    record(open_recording(name, segment_s=0.5, keep_segments=9), range(10)).close()
    monkeypatch.undo()
    left = tmp_path / f"out-0001{suffix}"
    os.truncate(left, 36 if suffix == ".mp4" else 0)  # the first box alone, which has no mark
    record(open_recording(name, segment_s=0.5, keep_segments=1), range(10)).close()
    assert not left.exists()


def test_another_program_that_takes_the_room_does_not_empty_the_archive(open_recording, record, tmp_path, monkeypatch):
    record(open_recording(segment_s=0.5, keep_segments=100), range(150)).close()
    before = shown(tmp_path)
    assert len(before) == 10
    sink = open_recording(segment_s=0.5, keep_segments=100, min_free_bytes=1)
    monkeypatch.setattr(disk.FreeSpace, "_free_bytes", lambda _: 0)  # whatever is deleted
    with pytest.raises(SinkError, match="free on the disk"):
        record(sink, [0])
    for _ in range(5):
        assert not sink.again()
    assert shown(tmp_path) == before[1:], "the first was a try"
    monkeypatch.undo()
    assert sink.again()
    record(sink, range(3)).close()
    assert sink.problem == ""


@pytest.mark.parametrize("years", [-50, 50])
def test_a_clock_that_is_set_makes_no_file_of_this_run_older_or_younger(
    open_recording, record, tmp_path, monkeypatch, years
):
    now_s = time.time
    floor = record(open_recording("floor.mp4", segment_s=0.5, keep_segments=2, keep_at_least_s=3600), range(45))
    plain = record(open_recording("plain.mp4", segment_s=0.5, keep_segments=2), range(45))
    monkeypatch.setattr(journal.time, "time", lambda: now_s() + years * 31_536_000)
    record(floor, range(45, 90)).close()
    record(plain, range(45, 90)).close()
    assert len(list(tmp_path.glob("floor-*.mp4"))) == 6
    assert len(list(tmp_path.glob("plain-*.mp4"))) == 2


def test_files_of_earlier_runs_go_although_the_clock_was_ahead_then(open_recording, record, tmp_path, monkeypatch):
    """A box without a battery wakes up in the past: what it recorded before stems from its future, and may not fill its disk."""
    now_s = time.time
    record(open_recording(segment_s=0.5, keep_segments=9), range(45)).close()
    monkeypatch.setattr(journal.time, "time", lambda: now_s() - 31_536_000)
    record(open_recording(segment_s=0.5, keep_segments=2), range(10)).close()
    assert shown(tmp_path) == ["out-0003.mp4", "out-0004.mp4"]


def test_the_journal_of_years_stays_small(open_recording, record, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_TIDY_FROM_BYTES", 2000)
    sink = record(open_recording(segment_s=0.2, keep_segments=3), range(600))  # 100 files
    assert (tmp_path / ".out.mp4.recordings").stat().st_size < 3000
    assert len(shown(tmp_path)) == 3
    sink.close()
    assert not [name for name in os.listdir(tmp_path) if not name.startswith(("out-", ".out.mp4.recordings"))]
    assert len([name for name in os.listdir(tmp_path) if name.startswith(".")]) == 1


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_nothing_is_replaced(open_recording, record, tmp_path, kind, said):
    if kind == "file":
        (tmp_path / "out.mp4").write_bytes(b"precious")
    else:
        (tmp_path / "out.mp4").symlink_to(tmp_path / "elsewhere")
    sink = record(open_recording(encoder="x264"), range(3))
    sink.close()
    assert sink.written == str(tmp_path / "out-0002.mp4")
    assert said == [
        f"{tmp_path / 'out.mp4'} exists already and is left as it is",
        f"recording: {tmp_path / 'out-0002.mp4'}, H.264 by the CPU (x264)",
    ]
    assert shown(tmp_path) == ["out-0002.mp4", "out.mp4"]
    record(open_recording(), range(3)).close()
    assert (tmp_path / "out-0003.mp4").is_file()


@pytest.mark.parametrize("end", ["close", "discard"])
def test_without_frames_there_is_no_file(open_recording, tmp_path, end):
    sink = open_recording()
    getattr(sink, end)()
    assert (os.listdir(tmp_path), sink.written) == ([], "")


def test_discard_keeps_what_was_recorded(open_recording, record, tmp_path, read_video):
    record(open_recording(), range(40)).discard()
    assert len(read_video(tmp_path / "out.mp4").images) == 40


def test_a_closed_recording_takes_no_frame(open_recording, record):
    sink = record(open_recording(), range(3))
    sink.close()
    with pytest.raises(SinkError, match=r"out.mp4: the recording is closed$"):
        record(sink, [3])


def test_where_nothing_can_be_written_is_said_before_any_work(tmp_path, open_recording):
    (tmp_path / "file").touch()
    for name in ("file/out.mp4", "x" * 300 + ".mp4", "/proc/out/x.mp4"):
        with pytest.raises(SinkError, match=r"cannot be written \(.*\): choose another --output$"):
            open_recording(name)
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def small_files():
    """Files may grow to 100 kB: all that a user may do to have a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(sink, make_frame):
    """Record noise until it fails; the number of frames that were taken."""
    noise = np.random.default_rng(0)
    for number in range(2000):
        image = noise.integers(0, 255, (64, 96, 3), np.uint8)
        try:
            sink.write(make_frame(image, number, number / 30))
        except SinkError as error:
            return number, str(error)
    raise AssertionError("the disk did not fill up")


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_full_disk_leaves_what_was_recorded(small_disk, open_recording, make_frame, name):
    sink = open_recording(small_disk / name)
    frames, problem = fill(sink, make_frame)
    path = small_disk / name
    assert problem == f"{path}: recording stopped (no space left on device); {path} can be played"
    assert frames - 30 <= frames_of(path) <= frames
    with pytest.raises(SinkError, match=r"recording stopped \(no space left on device\)"):
        sink.write(make_frame(view_of(0), frames + 1))
    sink.close()
    sink.discard()
    assert frames - 30 <= frames_of(path) <= frames


@pytest.mark.needs_program("ffprobe")
@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("libavformat", [(61, 7), (999,)], ids=["hybrid", "fragmented"])
def test_a_file_that_may_not_grow_leaves_what_was_recorded(
    tmp_path, open_recording, make_frame, monkeypatch, libavformat
):
    monkeypatch.setattr(recording, "_HYBRID_FROM_LIBAVFORMAT", libavformat)
    frames, problem = fill(open_recording(), make_frame)
    assert "out.mp4: recording stopped (file too large)" in problem
    assert frames - 30 <= frames_of(tmp_path / "out.mp4") <= frames


@pytest.mark.needs_program("ffprobe")
def test_a_disk_that_is_full_at_the_end_leaves_what_was_recorded(tmp_path, open_recording, record):
    sink = record(open_recording(), range(60))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "out.mp4").stat().st_size + 10, before[1]))
    try:
        with pytest.raises(SinkError, match=r"recording stopped \(file too large\); .*out.mp4 can be played$"):
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert frames_of(tmp_path / "out.mp4") >= 45


def test_it_stops_before_the_disk_is_full(tmp_path, open_recording, record, monkeypatch, read_video):
    free_bytes = 500_000_000
    monkeypatch.setattr(
        "pipeline.sinks.disk.os.statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, free_bytes, 0, 0, 0, 0, 255))
    )
    monkeypatch.setattr("pipeline.sinks.disk._CHECK_EVERY_S", 0)
    sink = record(open_recording(min_free_bytes=200_000_000), range(40))
    free_bytes = 199_000_000
    expected = (
        r"out.mp4: recording stopped \(expected 200 MB free on the disk, got 199 MB: make room or lower --min-free\); "
    )
    with pytest.raises(SinkError, match=expected):
        record(sink, [40])
    assert len(read_video(tmp_path / "out.mp4").images) == 40
    free_bytes = 1_000
    with pytest.raises(SinkError, match=r"recording stopped \(expected 200 MB free on the disk, got 1 kB: .*\)$"):
        record(open_recording("new.mp4", min_free_bytes=200_000_000), [0])
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_old_files_go_before_the_disk_is_full(tmp_path, open_recording, record, monkeypatch):
    def state(_):
        used = sum((tmp_path / name).stat().st_size for name in shown(tmp_path))
        return os.statvfs_result((1, 1, 0, 0, max(0, 4 * size_bytes - used), 0, 0, 0, 0, 255))

    record(open_recording("sample.mp4"), range(15)).close()
    size_bytes = (tmp_path / "sample.mp4").stat().st_size
    (tmp_path / "sample.mp4").unlink()

    monkeypatch.setattr("pipeline.sinks.disk.os.statvfs", state)
    monkeypatch.setattr("pipeline.sinks.disk._CHECK_EVERY_S", 0)
    record(open_recording(segment_s=0.5, keep_segments=100, min_free_bytes=size_bytes), range(150)).close()
    names = shown(tmp_path)
    assert 2 <= len(names) <= 4
    assert names[-1] == "out-0010.mp4"


def test_what_another_program_takes_does_not_cost_the_archive(tmp_path, open_recording, record, monkeypatch):
    record(open_recording(segment_s=0.5, keep_segments=100), range(90)).close()
    before = shown(tmp_path)
    full = os.statvfs_result((1, 1, 0, 0, 10, 0, 0, 0, 0, 255))  # whatever is deleted
    monkeypatch.setattr("pipeline.sinks.disk.os.statvfs", lambda _: full)
    with pytest.raises(SinkError, match="free on the disk"):
        record(open_recording(segment_s=0.5, keep_segments=100, min_free_bytes=100), range(30))
    assert shown(tmp_path) == before[1:], "one was tried"


def test_the_encoder_that_was_asked_for_or_none(open_recording, record, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sinks.h264._nvenc_problem", lambda *_: "no such device")
    with pytest.raises(SinkError, match=r"--encoder nvenc: expected a GPU that encodes H.264, got: no such device"):
        record(open_recording(encoder="nvenc"), [0])
    assert os.listdir(tmp_path) == []
    record(open_recording(encoder="x264"), [0, 1]).close()
    assert os.listdir(tmp_path) == ["out.mp4"]


COMMAND = """
import dataclasses, sys
from pipeline.sources import synthetic
class Live(synthetic.SyntheticSource):
    def __init__(self, spec):
        super().__init__(spec)
        self.info = dataclasses.replace(self.info, live=True)
    def __iter__(self):
        import time
        for frame in super().__iter__():
            time.sleep(0.005)
            yield frame
synthetic.SyntheticSource = Live
from pipeline.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.needs_program("ffprobe")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_complete_file(red_bundle, tmp_path, number, status):
    arguments = [
        "--source",
        "test://?size=64x48&frames=1000000",
        "--model",
        str(red_bundle.folder),
        "--output",
        "out.mp4",
    ]
    job = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, "--headless", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "out.mp4"
    end_s = time.monotonic() + WAIT_S
    while not (path.exists() and path.stat().st_size > 20_000):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.01)
    job.send_signal(number)
    assert (job.communicate(timeout=WAIT_S)[1], job.returncode) == ("", status)
    assert os.listdir(tmp_path) == ["out.mp4"]
    content = path.read_bytes()
    assert content.rindex(b"moov") > content.rindex(b"moof")  # finished: an index of the whole file at its end
    assert frames_of(path) > 30


@pytest.mark.needs_program("ffprobe")
def test_a_recording_that_is_turned_off_is_whole_and_the_next_begins_anew(tmp_path, open_recording, record):
    switch = RecordingSwitch()
    sink = open_recording("a.mp4", switch=switch)
    assert switch.recordings == 1
    record(sink, range(20))
    switch.on = False
    record(sink, range(20, 30))
    assert (shown(tmp_path), frames_of(tmp_path / "a.mp4")) == (["a.mp4"], 20)
    switch.on = True
    record(sink, range(30, 45))
    switch.on = False
    sink.idle()  # no frame comes, and all the same the file is ended
    assert frames_of(tmp_path / "a-0002.mp4") == 15
    assert packets_of(tmp_path / "a-0002.mp4")[0] == (0.0, True)
    switch.on = True
    sink.idle()
    record(sink, range(45, 50))
    sink.close()
    sink.close()
    assert switch.recordings == 0
    assert [frames_of(tmp_path / name) for name in shown(tmp_path)] == [15, 5, 20]
