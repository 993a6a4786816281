"""A corpus whose workers, drivers and machines are killed: the same command again, and nothing is missing, doubled or half."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_bundle
from tests.pipeline.corpus.conftest import KILLER, ROOT, command, failed, parts, results

pytestmark = pytest.mark.slow

RAY = Path(os.environ.get("EDGEMASK_TEST_RAY") or Path(sys.prefix) / "ray")
# How often each is killed.
MOMENTS = int(os.environ.get("EDGEMASK_TEST_MOMENTS", "1"))
BAD = {"broken.jpg", "cut.mp4", "none.mkv", "killer.mp4"}
_WAIT_S = 300  # only a broken test waits so long


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_video, write_picture):
    """200 pictures, 6 videos, 3 broken files and a video that ends who decodes it."""
    folder = tmp_path_factory.mktemp("corpus") / "in"
    rng = np.random.default_rng(5)
    photographs = ROOT.parent / "shared" / "data" / "ecssd" / "images"
    if photographs.is_dir():
        folder.mkdir()
        (folder / "photographs").symlink_to(photographs)  # not followed: the list names what is in it
        pictures = [f"photographs/{path.name}" for path in sorted(photographs.glob("*.jpg"))[:200]]
    else:
        pictures = [f"pictures/{number:03d}.png" for number in range(200)]
        for name in pictures:
            write_picture(folder / name, rng.integers(0, 256, (60, 80, 3), np.uint8))
    for number in range(6):
        path = folder / f"film{number}.mp4"
        write_video(path, list(rng.integers(0, 256, (20 + number, 64, 96, 3), np.uint8)), movflags="+faststart")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    film = (folder / "film0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(film[: len(film) // 2])
    (folder / "none.mkv").write_bytes(b"none")
    (folder / "killer.mp4").write_bytes(film)
    names = [*pictures[:100], *(f"film{number}.mp4" for number in range(6)), *sorted(BAD), *pictures[100:]]
    (folder / "all.txt").write_text("\n".join(names))
    return folder / "all.txt"


@pytest.fixture(scope="module")
def environment(tmp_path_factory, corpus):
    """That of the commands, in which the killer kills."""
    folder = tmp_path_factory.mktemp("killing")
    (folder / "sitecustomize.py").write_text(KILLER)
    path = os.pathsep.join(map(str, (folder, ROOT, RAY)))
    # A cluster of one's own asks nobody for a token.
    return {**os.environ, "KILLED": str(folder / "killed"), "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def begin(corpus, environment, red_bundle):
    """``begin(output, "--on", "ray", …)``: a process of the command."""

    def start(output, *arguments):
        words = command(corpus, output, red_bundle, "--masks-as", "video", *arguments)
        return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    """What must come out: the results of one command that nobody has disturbed."""
    output = tmp_path_factory.mktemp("whole")
    check(begin(output), output, None)
    return results(output)


def check(process, output, whole):
    """Wait for a command and look at what it has made."""
    _, said = process.communicate(timeout=_WAIT_S)
    assert process.returncode == 2, said
    assert "4 of 210 sources failed" in said
    rows = failed(output)
    assert {name: row["tries"] for name, row in rows.items()} == dict.fromkeys(BAD, 2)
    assert rows["killer.mp4"]["error"] == "its process was ended by SIGSEGV"
    assert len(results(output)) == 206
    assert whole is None or results(output) == whole
    deadline_s = time.monotonic() + 60
    while (
        parts(output) and time.monotonic() < deadline_s
    ):  # Ray ends actors when the command has ended, and they their children
        time.sleep(0.1)
    assert parts(output) == []


def disturbed(process, output, whole, seconds, kill):
    """Kill something after some seconds, and look at what is there: of what is whole, nothing is half or different."""
    try:
        process.communicate(timeout=seconds)  # a command that was through has its pipe closed too
    except subprocess.TimeoutExpired:
        kill(process)
    there = results(output) if output.exists() else {}
    assert there.items() <= whole.items()


def children_of(process):
    """Processes of the command that compute."""
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "pipeline.corpus.child"], capture_output=True, text=True
    )
    return [int(line) for line in found.stdout.split()]


def kill_worker(process):
    if children := children_of(process):
        os.kill(random.choice(children), signal.SIGKILL)


def kill_driver(process):
    children = children_of(process)
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + 30
    while alive := [child for child in children if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < deadline_s, f"left alone, and still there: {alive}"
        time.sleep(0.05)


def test_shards_and_workers_give_the_same_bytes(begin, whole, tmp_path):
    both = [begin(tmp_path / "shards", "--shard", f"{index}/2") for index in (0, 1)]
    for process in both:
        process.communicate(timeout=_WAIT_S)
    assert results(tmp_path / "shards") == whole
    assert set(failed(tmp_path / "shards")) == BAD
    check(begin(tmp_path / "workers", "--workers", "2"), tmp_path / "workers", whole)


def test_workers_that_are_killed_cost_nothing(begin, whole, tmp_path):
    process = begin(tmp_path / "out", "--workers", "2")
    for _ in range(MOMENTS):
        disturbed(process, tmp_path / "out", whole, random.uniform(1, 6), kill_worker)
    process.communicate(timeout=_WAIT_S)
    check(begin(tmp_path / "out"), tmp_path / "out", whole)


def test_a_driver_that_is_killed_goes_on_where_it_was(begin, whole, tmp_path):
    for _ in range(MOMENTS):
        disturbed(begin(tmp_path / "out"), tmp_path / "out", whole, random.uniform(1, 6), kill_driver)
    check(begin(tmp_path / "out"), tmp_path / "out", whole)
    before = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "out").rglob("*.mkv")}
    check(begin(tmp_path / "out"), tmp_path / "out", whole)
    assert before == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "out").rglob("*.mkv")}


# On Ray


@pytest.fixture(scope="module")
def has_ray():
    """Skips where it is not."""
    if not (RAY / "ray").is_dir():
        if os.environ.get("FAIL_WITHOUT_RAY"):
            pytest.fail(f"no Ray in {RAY}: tests/install-ray makes it")
        pytest.skip(f"no Ray in {RAY}: tests/install-ray makes it")


@pytest.fixture(scope="module")
def cluster(environment, has_ray):
    """Two nodes; ``cluster.kill("node")`` or "worker" kills one."""
    with _TwoNodes(environment) as nodes:
        yield nodes


class _TwoNodes:
    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_nodes.py"))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate(timeout=_WAIT_S)

    def kill(self, what):
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().startswith(what)


def test_ray_gives_the_same_bytes(begin, whole, cluster, tmp_path):
    check(begin(tmp_path / "out", "--on", f"ray:{cluster.address}", "--workers", "2"), tmp_path / "out", whole)


@pytest.fixture
def registered(cluster):
    """Variables with which Ray finds the cluster by itself, where ``ray start`` writes it down."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short: there are sockets in it
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text(cluster.address)
        yield {"RAY_TMPDIR": folder}


@pytest.mark.parametrize(
    ("on", "is_named", "nodes"), [("ray", False, 1), ("ray", True, 2), ("ray:auto", False, 2)], ids=str
)
def test_a_cluster_of_this_machine_is_joined_only_if_it_is_named(
    cluster, registered, environment, red_bundle, write_picture, tmp_path, on, is_named, nodes
):
    write_picture(tmp_path / "in" / "a.png", np.zeros((8, 8, 3), np.uint8))
    words = command(tmp_path / "in", tmp_path / "out", red_bundle, "--on", on)
    words.remove("--quiet")
    named = {"RAY_ADDRESS": cluster.address} if is_named else {}
    before = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**before, **registered, **named},
        capture_output=True,
        text=True,
        timeout=_WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"on Ray: {nodes} nodes" in done.stderr
    assert results(tmp_path / "out")


@pytest.mark.parametrize("what", ["worker", "node", "driver"])
def test_on_ray_what_is_killed_is_taken_over_or_goes_on(begin, whole, cluster, tmp_path, what):
    output, on_ray = tmp_path / "out", ("--on", f"ray:{cluster.address}", "--workers", "2")
    kill = kill_driver if what == "driver" else lambda _: cluster.kill(what)
    process = begin(output, *on_ray)
    for _ in range(MOMENTS):
        disturbed(process, output, whole, random.uniform(8, 25), kill)
        if what == "driver":
            process = begin(output, *on_ray)
    process.communicate(timeout=_WAIT_S)
    check(begin(output, *on_ray), output, whole)


def test_on_ray_a_model_that_cannot_be_used_is_told(corpus, cluster, environment, tmp_path):
    broken = write_bundle(tmp_path / "broken", b"no program")
    words = command(corpus, tmp_path / "out", broken, "--on", f"ray:{cluster.address}")
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_WAIT_S, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "program.onnx: ONNX Runtime" in done.stderr.splitlines()[-1]
    assert "cannot load it" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_on_ray_a_signal_ends_it_with_what_is_done(begin, whole, cluster, tmp_path):
    process = begin(tmp_path / "out", "--on", f"ray:{cluster.address}", "--workers", "2")
    deadline_s = time.monotonic() + _WAIT_S
    while not results(tmp_path / "out") and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=_WAIT_S)
    assert process.returncode in (143, 2), said  # 2: it was through
    assert "Traceback" not in said
    assert results(tmp_path / "out").items() <= whole.items()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "expected a Ray cluster there, got none ([Errno 111] Connection refused): start it with"),
        ("//127.0.0.1:10001", "expected ray:HOST:PORT, such as ray:10.0.0.1:6379"),
    ],
)
def test_an_address_without_a_cluster_is_told(begin, has_ray, tmp_path, address, told):
    process = begin(tmp_path / "out", "--on", f"ray:{address}")
    _, said = process.communicate(timeout=_WAIT_S)
    assert process.returncode == 2
    assert f"error: --on ray:{address}: {told}" in said


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is in the environment itself")
def test_without_ray_what_installs_it_is_told(begin, tmp_path, environment, monkeypatch):
    monkeypatch.setitem(environment, "PYTHONPATH", str(ROOT))
    process = begin(tmp_path / "out", "--on", "ray")
    _, said = process.communicate(timeout=_WAIT_S)
    assert process.returncode == 2
    assert "error: --on ray: expected Ray, got none" in said
    assert said.strip().endswith("install it with: pip install 'edgemask[ray]'")
