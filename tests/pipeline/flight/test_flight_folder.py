"""The folder of recordings: below its size at every moment, whole files alone, and nobody else's touched."""

import fcntl
import os
import stat

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.errors import SinkError
from pipeline.flight.folder import FlightFolder, is_recording
from pipeline.flight.recording import Recording, write_recording
from tests.fakes.computed_frames import FACTS, computed, noise

MOST = 60_000


def write(folder, count=1, kind="test", side=16):
    """A recording of so many frames of noise; each has about 3·side² bytes."""
    frames = [(computed(index, noise(index, (side, side, 3))), {"bundle": "b"}) for index in range(count)]
    with folder.new(kind) as (place, file, room):
        written = write_recording(file, FACTS, frames, room)
    return place, written


class FolderMachine(RuleBasedStateMachine):
    """Recordings of any size and other people's files, in any order, with limits that change between runs."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.temporary = tempfile.TemporaryDirectory()
        self.path = Path(self.temporary.name)
        self.most = MOST
        self.theirs = {}
        self.folder = FlightFolder(self.path, self.most)
        self.seen_most = 0

    def teardown(self):
        self.temporary.cleanup()

    @rule(count=st.integers(0, 12), side=st.integers(4, 48))
    def record(self, count, side):
        unwatched = self.folder._make_room

        def watched(size_bytes):
            answer = unwatched(size_bytes)
            self.seen_most = max(self.seen_most, self.ours())
            return answer

        self.folder._make_room = watched
        try:
            place, written = write(self.folder, count, side=side)
        except OSError:  # not even what is said of the run has room
            if self.most >= 20_000:
                raise
            return
        assert place.exists()
        assert written.size_bytes <= self.most // 2
        with Recording(place) as recording:
            indices = [frame.index for frame in recording]
            assert (
                indices == list(range(count))[count - len(indices) :]
            )  # the last ones, where there is no room for all

    @rule(most=st.integers(100, 90_000))
    def next_run(self, most):
        self.folder = FlightFolder(self.path, most)
        self.most, self.seen_most = most, 0

    @rule(
        name=st.sampled_from(["notes.txt", "flight-00001-mine.zip", "flight-00007-20260101T000000Z-mine.zip", "a.part"])
    )
    def somebody_writes(self, name):
        self.theirs[name] = b"x" * 50_000
        (self.path / name).write_bytes(self.theirs[name])

    @rule()
    def killed(self):
        (self.path / ".edgemask-flight-0123456789abcdef.part").write_bytes(b"x" * 5_000)
        self.folder = FlightFolder(self.path, self.most)
        assert not list(self.path.glob(".edgemask-*"))

    def ours(self):
        return sum(path.stat().st_size for path in self.path.iterdir() if path.name not in self.theirs)

    @invariant()
    def stays_below(self):
        assert max(self.ours(), self.seen_most) <= self.most

    @invariant()
    def others_are_whole(self):
        for name, content in self.theirs.items():
            assert (self.path / name).read_bytes() == content


FolderMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestFolder = FolderMachine.TestCase


def test_the_oldest_go_first_and_numbers_go_on(tmp_path):
    folder = FlightFolder(tmp_path, MOST)
    places = [write(folder, 5, side=32)[0] for _ in range(8)]
    left = folder.recordings()
    assert left == places[-len(left) :]
    assert 1 < len(left) < len(places)
    assert FlightFolder(tmp_path, MOST).recordings() == left
    assert write(folder)[0].name.startswith("flight-00009-")


def write_into_closed(file):
    file.write(b"x")
    file.close()
    file.write(b"y")


def test_what_does_not_become_whole_has_no_name(tmp_path):
    folder = FlightFolder(tmp_path, MOST)
    with pytest.raises(ValueError, match="closed"), folder.new("test") as (_, file, _room):
        write_into_closed(file)
    assert list(tmp_path.iterdir()) == []


def test_links_and_folders_are_nobody_s_recordings(tmp_path):
    folder = FlightFolder(tmp_path / "flight", MOST)
    place, _ = write(folder)
    elsewhere = tmp_path / place.name
    os.rename(place, elsewhere)
    place.symlink_to(elsewhere)
    assert is_recording(elsewhere)
    assert not is_recording(place)
    assert folder.recordings() == []
    (tmp_path / "flight" / "flight-00003-20260101T000000Z-test.zip").mkdir()
    FlightFolder(tmp_path / "flight", 1)
    assert elsewhere.exists()


def test_a_part_that_another_process_writes_stays(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as its writer does
    part = tmp_path / ".edgemask-flight-0123456789abcdef.part"
    part.write_bytes(b"half")
    FlightFolder(tmp_path, MOST)
    assert part.exists()
    os.close(handle)
    FlightFolder(tmp_path, MOST)
    assert not part.exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match=r"--flight .*file: expected a folder"):
        FlightFolder(tmp_path / "file", MOST)
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


def test_a_folder_that_another_process_holds_is_waited_for_as_long_as_may_be(tmp_path):
    folder = FlightFolder(tmp_path, MOST)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    asked = []

    def may_wait():
        asked.append(True)
        return len(asked) < 3

    with pytest.raises(OSError, match="another process holds the folder"), folder.new("test", may_wait):
        raise AssertionError("it is held")
    assert (len(asked), list(tmp_path.iterdir())) == (3, [])

    def let_go():
        os.close(other)
        return True

    with folder.new("test", let_go) as (_, file, _room):
        file.write(b"x")
