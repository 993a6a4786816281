"""A file that was read and has not changed is not read again; whatever is in doubt is."""

import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.bundles import checked_files
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, cache_folder
from pipeline.bundles.checked_files import CheckedFiles
from pipeline.errors import BundleError


@pytest.fixture
def reads(monkeypatch):
    """How often a file was read."""
    counted = []
    sha256_of = checked_files.sha256_of
    monkeypatch.setattr(checked_files, "sha256_of", lambda file: counted.append(file.name) or sha256_of(file))
    return counted


@pytest.fixture
def settled(monkeypatch):
    """The clock of the module, an hour on: files that were just written are old."""
    clock = SimpleNamespace(now_s=time.time() + 3600, time=lambda: clock.now_s)
    monkeypatch.setattr(checked_files, "time", clock)
    return clock


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "checked.json"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "program.onnx"
    path.write_bytes(b"first")
    return path


def digest(path: Path, memory: Path) -> str:
    """As one run finds it."""
    checked = CheckedFiles(memory)
    found = checked.sha256(path)
    checked.keep()
    return found


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_it_is_read_once(file, memory, reads, settled):
    assert [digest(file, memory) for _ in range(3)] == [sha256(b"first")] * 3
    assert len(reads) == 1
    assert memory.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_just_written_is_read_again(file, memory, reads):
    for _ in range(2):
        assert digest(file, memory) == sha256(b"first")
    assert len(reads) == 2
    assert not memory.exists()


def rewrite(file):
    file.write_bytes(b"other")


def rewrite_with_its_old_time(file):
    before = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_with_its_old_time(file):
    before, new = file.stat(), file.with_name("new")
    new.write_bytes(b"other")
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, file)


def map_and_write(file):
    import mmap

    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
        mapped[:] = b"other"


@pytest.mark.parametrize("change", [rewrite, rewrite_with_its_old_time, replace_with_its_old_time, map_and_write])
def test_a_changed_file_is_noticed(file, memory, settled, change):
    """Of the same size, and with the old time of its content."""
    assert digest(file, memory) == sha256(b"first")
    time.sleep(0.02)  # two ticks of a file system's clock
    change(file)
    assert digest(file, memory) == sha256(b"other")


def test_what_others_may_write_is_read_each_time(file, memory, reads, settled):
    file.chmod(0o664)
    digest(file, memory)
    assert not memory.exists()
    file.chmod(0o644)
    digest(file, memory)
    memory.chmod(0o646)  # somebody may have put in what they like
    digest(file, memory)
    memory.chmod(0o600)
    digest(file, memory)
    assert len(reads) == 3
    memory.parent.chmod(0o777)
    digest(file, memory)
    assert len(reads) == 4


def test_a_link_in_place_of_the_memory_is_not_followed(file, memory, reads, settled, tmp_path):
    digest(file, memory)
    os.replace(memory, tmp_path / "elsewhere")
    memory.symlink_to(tmp_path / "elsewhere")
    digest(file, memory)
    assert len(reads) == 2


def test_it_is_read_again_on_the_next_day_and_when_the_clock_goes_back(file, memory, reads, settled):
    digest(file, memory)
    settled.now_s += 23 * 3600
    digest(file, memory)
    assert len(reads) == 1
    settled.now_s += 2 * 3600
    digest(file, memory)
    assert len(reads) == 2
    settled.now_s -= 3600
    digest(file, memory)
    assert len(reads) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"1:2": 3}', '{"1:2": [1, 2, 3, "x", "y"]}', "[" * 50_000])
def test_a_damaged_memory_remembers_nothing(file, memory, reads, settled, content):
    digest(file, memory)
    memory.write_text(content)
    memory.chmod(0o600)
    assert digest(file, memory) == sha256(b"first")
    assert digest(file, memory) == sha256(b"first")
    assert len(reads) == 2


def test_where_it_cannot_be_kept_it_is_read(file, tmp_path, reads, settled):
    (tmp_path / "cache").write_bytes(b"a file")
    for _ in range(2):
        assert digest(file, tmp_path / "cache" / "checked.json") == sha256(b"first")
    assert len(reads) == 2


def test_the_newest_are_kept(tmp_path, memory, settled, monkeypatch):
    monkeypatch.setattr(checked_files, "_MOST_FILES", 3)
    for number in range(5):
        path = tmp_path / f"{number}"
        path.write_bytes(b"x")
        settled.now_s += 1
        digest(path, memory)
    kept = json.loads(memory.read_text())
    assert set(kept) == {f"{one.st_dev}:{one.st_ino}" for one in (os.stat(tmp_path / str(n)) for n in (2, 3, 4))}


def test_a_bundle_is_read_once_and_a_changed_one_refused(make_bundle, tmp_path, monkeypatch, reads, settled):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    folder = make_bundle().folder
    for _ in range(3):
        Bundle.read(folder)
    assert reads == [str(folder / PROGRAM_NAME)] or reads == [folder / PROGRAM_NAME]
    assert (cache_folder() / "checked.json").is_file()
    content = bytearray((folder / PROGRAM_NAME).read_bytes())
    content[-1] ^= 1
    time.sleep(0.02)
    (folder / PROGRAM_NAME).write_bytes(content)
    with pytest.raises(BundleError, match="the file was changed or damaged"):
        Bundle.read(folder)
