"""What decoding leaves behind in memory."""

import gc

import av
import cv2
import numpy as np
import pytest

from pipeline.sources.decoded import ToPixels

RESIDENT_MB = 60.0  # a hundred pictures have 138, those that are looked at for their orientation 3


@pytest.fixture
def _no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def resident_mb():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.usefixtures("_no_collection")
def test_decoded_pictures_do_not_wait_for_pythons_collector():
    jpeg = av.Packet(cv2.imencode(".jpg", np.zeros((720, 1280, 3), np.uint8))[1].tobytes())
    decoder, to_pixels = av.CodecContext.create("mjpeg", "r"), ToPixels()
    for decoded in decoder.decode(jpeg):
        to_pixels(decoded)
    before_mb = resident_mb()
    for _ in range(100):
        for decoded in decoder.decode(jpeg):
            to_pixels(decoded)
    assert resident_mb() - before_mb < RESIDENT_MB
