"""Native libraries that are mapped while Python does something else."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries are mapped early on Linux alone")

_IS_MAPPED = """
import sys, threading
from pathlib import Path
from pipeline.early_libraries import map_early

def mapped():
    return "/cv2/cv2" in Path("/proc/self/maps").read_text()

assert not mapped()
map_early("cv2")
(thread,) = [thread for thread in threading.enumerate() if thread.name == "map cv2"]
thread.join()
assert mapped() and "cv2" not in sys.modules
import cv2
assert cv2.imencode(".png", cv2.UMat(2, 2, cv2.CV_8U).get())[0]
map_early("cv2")
assert threading.active_count() == 1
"""


def test_a_library_is_there_before_it_is_imported():
    subprocess.run([sys.executable, "-c", _IS_MAPPED], check=True)


@pytest.mark.parametrize("package", ["there_is_none_of_this_name", "json"])
def test_a_package_without_libraries_is_left_to_its_import(package):
    program = (
        "import threading, pipeline.early_libraries as it\n"
        f"it.map_early({package!r})\n"
        "[thread.join() for thread in threading.enumerate() if thread.name.startswith('map ')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_command_and_its_script_map_what_every_run_imports():
    for arguments in (["-m", "pipeline"], ["-m", "edgemask", "run"]):
        program = [
            sys.executable,
            "-X",
            "importtime",
            *arguments,
            "--source",
            "test://?frames=1&size=64x48",
            "--model",
            "u2netp",
        ]
        done = subprocess.run([*program, "--output", "null"], check=True, capture_output=True, text=True)
        names = [
            line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
        ]
        assert names.index("pipeline.early_libraries") < names.index("pipeline.command.options")


def test_help_is_printed_without():
    program = (
        "import sys, threading; sys.argv.append('--help'); import pipeline.early_libraries as it; it.map_early('cv2')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(threading.active_count())"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize("given", [None, "3"])
def test_numpy_has_one_thread_for_matrices_and_no_child_is_told_so(given):
    program = (
        "import os, threading, pipeline.early_libraries as it; it.map_early('cv2')\n"
        "[thread.join() for thread in threading.enumerate() if thread.name == 'map cv2']; it.import_numpy()\n"
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    environment |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    threads, told = done.stdout.split()
    assert told == str(given)
    assert given is not None or threads == "1"
