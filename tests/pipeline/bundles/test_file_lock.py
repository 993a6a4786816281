"""Locks between processes: here of files that are opened twice, which the kernel keeps apart as well."""

import fcntl
import os
import threading
import time

from pipeline.bundles.file_lock import locked, one_maker, take_lock


def is_held(path):
    try:
        handle = take_lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    os.close(handle)
    return False


def test_a_lock_is_held_as_long_as_the_block_and_shared_with_readers(tmp_path):
    with locked(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_what_is_not_there_has_no_lock(tmp_path):
    assert take_lock(tmp_path / "nothing", fcntl.LOCK_EX) is None
    with locked(tmp_path / "nothing"):
        pass


def test_the_second_maker_says_that_it_waits_and_begins_when_the_first_one_is_done(tmp_path, said):
    done = []

    def second():
        with one_maker(tmp_path / "place", tmp_path / "locks"):
            done.append("second")

    thread = threading.Thread(target=second)
    with one_maker(tmp_path / "place", tmp_path / "locks"):
        thread.start()
        deadline_s = time.monotonic() + 20
        while not said:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        with one_maker(tmp_path / "other", tmp_path / "locks"):
            done.append("other")
        done.append("first")
    thread.join(20)
    assert done == ["other", "first", "second"]
    (line,) = said
    assert str(tmp_path / "place") in line


def test_a_child_that_has_it_too_keeps_it(tmp_path):
    with one_maker(tmp_path / "place", tmp_path / "locks") as inherited:
        (handle,) = inherited
        kept = os.dup(handle)
    (path,) = (tmp_path / "locks").iterdir()
    assert is_held(path)
    os.close(kept)
    assert not is_held(path)


def test_where_no_lock_can_be_written_there_is_none(tmp_path, said):
    (tmp_path / "file").touch()
    with one_maker(tmp_path / "place", tmp_path / "file" / "locks") as inherited:
        assert inherited == ()
    assert said == []
