"""The file that TensorRT-RTX's kernels are kept in: whatever it is, it costs time and never a result."""

import os
import stat

import pytest

from pipeline.engines.runtime_cache import RuntimeCacheFile


class Cache:
    """As ``IRuntimeCache``: takes what starts with "good", gives what ``content`` is."""

    def __init__(self, content=None):
        self.content, self.offered = content, []

    def serialize(self):
        return None if self.content is None else memoryview(self.content)

    def deserialize(self, blob):
        self.offered.append(blob)
        return blob.startswith(b"good")


@pytest.fixture
def file(tmp_path):
    return RuntimeCacheFile(tmp_path / "net-fp16.plan", 89)


def left_behind(file):
    return sorted(path.name for path in file.path.parent.iterdir())


def test_it_lies_beside_the_plan_and_is_of_one_gpu(file, tmp_path):
    assert file.path == tmp_path / "net-fp16.plan.sm89.cache"
    assert RuntimeCacheFile(tmp_path / "net-fp16.plan", 120).path.name == "net-fp16.plan.sm120.cache"


def test_what_was_saved_is_loaded(file, tmp_path):
    file.save(Cache(b"good kernels"))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o644
    assert left_behind(file) == [file.path.name]
    cache = Cache()
    assert RuntimeCacheFile(tmp_path / "net-fp16.plan", 89).load(cache)
    assert cache.offered == [b"good kernels"]


def test_what_has_not_changed_is_not_written_again(file):
    file.save(Cache(b"good kernels"))
    file.path.unlink()
    file.save(Cache(b"good kernels"))
    assert left_behind(file) == []
    file.save(Cache(b"good kernels and more"))
    assert file.path.read_bytes() == b"good kernels and more"


def test_what_was_loaded_is_not_written_again(file):
    file.path.write_bytes(b"good kernels")
    assert file.load(Cache())
    file.path.unlink()
    file.save(Cache(b"good kernels"))
    assert left_behind(file) == []


@pytest.mark.parametrize("content", [None, b""])
def test_nothing_is_written_while_there_is_nothing(file, content):
    file.save(Cache(content))
    assert left_behind(file) == []


@pytest.mark.parametrize("content", [None, b"", b"other kernels"])
def test_a_file_that_is_not_there_or_not_taken_is_left_out_and_replaced(file, content):
    if content is not None:
        file.path.write_bytes(content)
    assert not file.load(Cache())
    file.save(Cache(b"good kernels"))
    assert file.path.read_bytes() == b"good kernels"


@pytest.mark.parametrize("mode", [0o646, 0o602, 0o666, 0o777])
def test_a_file_that_anyone_could_have_written_is_not_even_offered(file, mode):
    file.path.write_bytes(b"good kernels")
    file.path.chmod(mode)
    cache = Cache()
    assert not file.load(cache)
    assert cache.offered == []
    file.save(Cache(b"good kernels"))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o644


@pytest.mark.parametrize("what", ["pipe", "folder", "link to nothing"])
def test_something_else_in_its_place_is_left_out(file, what):
    {
        "pipe": lambda: os.mkfifo(file.path),
        "folder": lambda: file.path.mkdir(),
        "link to nothing": lambda: file.path.symlink_to("gone"),
    }[what]()
    opened = len(os.listdir("/proc/self/fd"))
    cache = Cache()
    assert not file.load(cache)
    assert cache.offered == []
    assert len(os.listdir("/proc/self/fd")) == opened
    file.save(Cache(b"good kernels"))
    assert left_behind(file) == [file.path.name]


@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.chmod", "os.replace"])
def test_a_disk_that_refuses_leaves_nothing_and_is_tried_again(file, monkeypatch, call):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        file.save(Cache(b"good kernels"))
    assert left_behind(file) == []
    file.save(Cache(b"good kernels"))
    assert file.path.read_bytes() == b"good kernels"


def test_a_folder_that_is_gone(tmp_path):
    file = RuntimeCacheFile(tmp_path / "gone" / "net.plan", 89)
    assert not file.load(Cache())
    file.save(Cache(b"good kernels"))
    assert not file.path.parent.exists()
