"""What the machine's files say of memory: those of a made machine, and this one's own."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from pipeline.machine.memory import available_bytes, pages_touched, resident_bytes

MEMORY = {"proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n"}
WHOLE = 16_000_000 << 10


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="nothing-is-told"),
        pytest.param(MEMORY, WHOLE, id="no-cgroups"),
        pytest.param(
            {**MEMORY, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "2000000\n"},
            2_000_000,
            id="its-own",
        ),
        pytest.param(
            {
                **MEMORY,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "3000000\n",
            },
            3_000_000,
            id="of-one-around-it",
        ),
        pytest.param(
            {**MEMORY, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4000000\n"}, 4_000_000, id="container"
        ),
        pytest.param(
            {
                **MEMORY,
                "proc/self/cgroup": "5:cpu:/\n4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            5_000_000,
            id="first-version",
        ),
        pytest.param(
            {**MEMORY, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": f"{1 << 50}\n"},
            WHOLE,
            id="more-than-there-is",
        ),
    ],
)
def test_what_a_process_may_take(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells it")
def test_a_thread_is_told_from_another_by_the_pages_that_it_touched():
    before_bytes, before = resident_bytes(), pages_touched()
    sizes, touched = {"small": 1 << 20, "large": 64 << 20}, {}
    kept = []

    def take(name):
        mine = pages_touched(threading.get_native_id())
        kept.append(np.ones(sizes[name], np.uint8))
        touched[name] = pages_touched(threading.get_native_id()) - mine

    for name in sizes:
        thread = threading.Thread(target=take, args=(name,))
        thread.start()
        thread.join()
    assert touched["large"] > 4 * touched["small"] > 0 or touched["large"] >= 32  # pages of 2 MiB, where they are
    assert pages_touched() - before >= sum(touched.values())
    assert resident_bytes() - before_bytes > 48 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells it")
def test_what_is_gone_takes_nothing():
    words = [sys.executable, "-c", "print('there', flush=True); input()"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"there\n"
    assert resident_bytes(process.pid) > 1 << 20
    process.communicate(b"\n")
    assert resident_bytes(process.pid) == 0
    assert pages_touched(process.pid) == 0
    assert resident_bytes(os.getpid()) == pytest.approx(resident_bytes(), rel=0.2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells it")
def test_a_process_grows_no_further_than_it_may():
    program = """
import resource
from pipeline.machine.memory import grows_at_most
before = resource.getrlimit(resource.RLIMIT_AS)
for limit in (1 << 40, 200_000_000):
    try:
        with grows_at_most(limit):
            kept = bytearray(300_000_000)
        print("taken")
    except MemoryError:
        print("refused")
print(resource.getrlimit(resource.RLIMIT_AS) == before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["taken", "refused", "True"]
