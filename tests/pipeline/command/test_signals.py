"""SIGINT and SIGTERM: the status that a shell expects, and nothing half-written."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.command.command_line import SaidError, run_command
from pipeline.errors import EdgemaskError
from pipeline.signals import StoppedError, uninterrupted

ROOT = Path(__file__).parents[3]
WAIT_S = 60  # only a broken test waits so long


@pytest.fixture
def start(red_bundle, tmp_path):
    """``start("--output", …)``: a job without end, in a process of its own."""
    started = []

    def run(*arguments):
        # Quick to make and to write, and more of them than any test waits for.
        command = [sys.executable, "-m", "pipeline", "--source", "test://?size=160x120&frames=100000000"]
        command += ["--model", str(red_bundle.folder), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        job = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(job)
        return job

    yield run
    for job in started:
        job.kill()
        job.communicate()


def wait_for(condition, job):
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_video_that_is_stopped_is_shorter_and_can_be_played(start, tmp_path, read_video, number, status):
    job = start("--output", "out.mp4", "--output", "frames/")
    wait_for(lambda: (tmp_path / "frames").is_dir() and len(os.listdir(tmp_path / "frames")) > 80, job)
    job.send_signal(number)
    _, err = job.communicate(timeout=WAIT_S)
    assert job.returncode == status
    assert "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["frames", "out.mp4"]
    seen = read_video(tmp_path / "out.mp4")
    assert len(seen.images) - len(os.listdir(tmp_path / "frames")) in (0, 1)  # the one that was being written
    assert seen.pts_s == pytest.approx([number / 30 for number in range(len(seen.images))])
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_closed_terminal_is_nothing_under_nohup(start, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = start("--output", "frames/", "--quiet")
        wait_for(lambda: (tmp_path / "frames").is_dir() and len(os.listdir(tmp_path / "frames")) > 5, job)
        job.send_signal(signal.SIGHUP)
        count = len(os.listdir(tmp_path / "frames"))
        wait_for(lambda: len(os.listdir(tmp_path / "frames")) > count + 20, job)
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=WAIT_S)
        assert job.returncode == 143
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_that_is_stopped_holds_complete_pictures_alone(start, tmp_path, read_picture):
    job = start("--output", "out/", "--render", "mask", "--quiet")
    wait_for(lambda: (tmp_path / "out").is_dir() and len(os.listdir(tmp_path / "out")) > 20, job)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=WAIT_S)
    assert (job.returncode, out, err) == (130, "", "")
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == [f"{number:06d}.png" for number in range(len(names))]
    assert all(read_picture(tmp_path / "out" / name).shape == (120, 160) for name in names[-3:])


def in_command(body):
    done = []

    def command():
        body(done)

    return run_command(command), done


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_body_with_its_status(number, status):
    def body(done):
        try:
            signal.raise_signal(number)
        finally:
            done.append("cleaned up")

    assert in_command(body) == (status, ["cleaned up"])


def test_a_signal_cannot_be_taken_for_an_error():
    def body(done):
        try:
            signal.raise_signal(signal.SIGINT)
        except Exception as error:  # noqa: BLE001 - this is what must not catch it
            done.append(error)

    assert in_command(body) == (130, [])


def test_a_signal_waits_for_the_end_of_what_is_not_interrupted():
    def body(done):
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("finished")
        done.append("not reached")

    assert in_command(body) == (143, ["finished"])


def test_without_a_signal_nothing_is_raised_and_the_handlers_come_back():
    def body(done):
        before = signal.getsignal(signal.SIGINT)
        with uninterrupted():
            pass
        assert signal.getsignal(signal.SIGINT) is before
        done.append("end")

    assert in_command(body) == (0, ["end"])


@pytest.mark.parametrize("swallows", ["finalizer", "callback from C"])
def test_a_signal_that_a_finalizer_or_a_callback_swallows_ends_the_command_all_the_same(swallows):
    class Dies:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    @ctypes.CFUNCTYPE(None)
    def called():
        signal.raise_signal(signal.SIGTERM)

    def body(done):
        if swallows == "finalizer":
            Dies()
        else:
            called()
        done.append("goes on")
        time.sleep(WAIT_S)
        done.append("not reached")

    assert in_command(body) == (143, ["goes on"])


def test_an_error_of_what_is_not_interrupted_comes_out():
    def body(done):
        with pytest.raises(EdgemaskError, match="full"), uninterrupted():
            raise EdgemaskError("full")

    assert in_command(body) == (0, [])


def test_a_second_signal_ends_the_process_at_once():
    code = """
import os, signal, time
from pipeline.command.command_line import run_command
from pipeline.signals import uninterrupted
def body():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGTERM)
        print("not reached")
run_command(body)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    code = code.replace("try:", "with uninterrupted():").replace("    finally:\n", "").replace("SIGTERM", "SIGINT")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EdgemaskError("a: expected b, got c"), "error: a: expected b, got c\n"),
        (EdgemaskError("a\nb\x1b[31m\x07c\x85d"), "error: a b [31m c d\n"),
        (SaidError("told already"), ""),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, error, line):
    def body(done):
        raise error

    assert in_command(body) == (2, [])
    assert capsys.readouterr() == ("", line)


def test_other_errors_are_bugs_unless_the_command_says_otherwise():
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        run_command(fail)
    assert run_command(fail, (KeyError,)) == 2


def test_stopped_has_the_signals_name():
    assert (str(StoppedError(signal.SIGTERM)), StoppedError(signal.SIGTERM).status) == ("SIGTERM", 143)


HANGING = """
import sys, time
from pipeline.command import job
from pipeline import __main__ as command
from pipeline.flow import run
opened = job.open_for
def hanging(*arguments, **options):
    engine = opened(*arguments, **options)
    collect = engine.collect_all
    count = [0]
    def slow():
        count[0] += 1
        if count[0] > 30:
            time.sleep(1000)
        return collect()
    engine.collect_all = slow
    return engine
job.open_for = hanging
run.HUNG_S = 0.5
sys.exit(command.main(sys.argv[1:]))
"""


def test_an_engine_that_hangs_is_left_behind_and_the_recording_is_complete(red_bundle, tmp_path, read_video):
    command = [
        sys.executable,
        "-c",
        HANGING,
        "--source",
        "test://?size=160x120&frames=1000000",
        "--model",
        str(red_bundle.folder),
    ]
    command += ["--output", "frames/", "--output", "out.mp4", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (tmp_path / "frames").is_dir() and len(os.listdir(tmp_path / "frames")) >= 25, job)
        time.sleep(1.0)  # so that it hangs
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=WAIT_S)
    finally:
        job.kill()
    assert job.returncode == 143
    assert err == "error: engine: expected the masks in flight within 0.5 s of a signal, got none\n"
    assert len(read_video(tmp_path / "out.mp4").images) >= 25


@pytest.mark.parametrize("stderr", ["closed", "full", "gone"])
def test_a_log_that_cannot_be_written_ends_nothing(red_bundle, tmp_path, stderr):
    words = f"-m pipeline --source test://?size=160x120&frames=20 --model {red_bundle.folder} --output out.mp4".split()
    command = [sys.executable, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open("/dev/full", "wb") as full, os.fdopen(write_end, "wb", buffering=0) as gone:
        if stderr == "closed":
            command = ["/bin/sh", "-c", 'exec "$0" "$@" 2>&-', *command]
        target = {"closed": None, "full": full, "gone": gone}[stderr]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=target, timeout=WAIT_S, check=False)
    assert done.returncode == 0
    assert (tmp_path / "out.mp4").exists()
