"""Two processes that write the same name at the same moment: both get it, and a reader sees one of the two whole."""

import os
import traceback

import pytest

from pipeline.bundles import whole_folder
from pipeline.bundles.file_lock import locked
from pipeline.bundles.whole_file import write_whole
from pipeline.bundles.whole_folder import put_folder

# EDGEMASK_ROUNDS=300 tries for longer.
ROUNDS = int(os.environ.get("EDGEMASK_ROUNDS", "60"))
CONTENTS = (b"a" * 200_000, b"b" * 1000)


def forked(work, *given):
    """The work in a process of its own, whose status is not 0 where it raised."""
    child = os.fork()
    if child == 0:
        try:
            work(*given)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return child


def at_once(write, read):
    """Let two write again and again, while a third reads."""

    def again(work, *given):
        for _ in range(ROUNDS):
            work(*given)

    started = [forked(again, write, content) for content in CONTENTS] + [forked(again, read)]
    assert [os.waitpid(child, 0)[1] for child in started] == [0, 0, 0]


def test_a_file(tmp_path):
    place = tmp_path / "cache.bin"
    write_whole(place, CONTENTS[0])

    def read():
        assert place.read_bytes() in CONTENTS

    at_once(lambda content: write_whole(place, content), read)
    assert os.listdir(tmp_path) == ["cache.bin"]
    assert place.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(whole_folder, "_exchange", lambda *_: False)
    place = tmp_path / "set"

    def write(content):
        scratch = tmp_path / f"scratch{os.getpid()}"
        scratch.mkdir()
        for name in "xyz":
            (scratch / name).write_bytes(content)
        with locked(tmp_path):
            put_folder(scratch, place)
        if scratch.exists():  # what was there before
            for name in "xyz":
                (scratch / name).unlink()
            scratch.rmdir()

    def read():
        with locked(tmp_path, shared=True):
            found = {(place / name).read_bytes() for name in os.listdir(place)}
        assert len(found) == 1
        assert found <= set(CONTENTS)

    write(CONTENTS[0])
    at_once(write, read)
    assert os.listdir(tmp_path) == ["set"]


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    place = tmp_path / "cache.bin"
    write_whole(place, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_whole(place, b"new")
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["cache.bin"]
