import os
from types import SimpleNamespace

import cv2
import pytest

from pipeline.flow.cores import leave_cores_to


@pytest.fixture(autouse=True)
def _threads_restored():
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


def test_opencv_has_one_thread_beside_an_engine_on_the_processor_and_all_beside_a_gpu():
    leave_cores_to(SimpleNamespace(on_gpu=False))
    assert cv2.getNumThreads() == 1
    leave_cores_to(SimpleNamespace(on_gpu=True))
    assert cv2.getNumThreads() == len(os.sched_getaffinity(0))


def test_the_command_does_so(main):
    cv2.setNumThreads(2)
    assert main("--source", "test://?size=8x8&frames=1", "--output", "null").status == 0
    assert cv2.getNumThreads() == 1
