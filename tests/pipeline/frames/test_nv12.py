import threading

import cv2
import numpy as np
import pytest

from pipeline.errors import ShapeError
from pipeline.frames.nv12 import to_bgr, to_nv12
from pipeline.frames.pixels import frames_nhw, frames_shape


def blobs(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("bgr", "yuv"),
    [  # ITU-R BT.709, limited range
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((128, 128, 128), (126, 128, 128)),
        ((0, 0, 255), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((255, 0, 0), (32, 240, 118)),
    ],
)
def test_colours_are_those_of_bt709_in_limited_range(bgr, yuv):
    image = np.full((4, 6, 3), bgr, np.uint8)
    nv12 = to_nv12(image)
    assert (nv12.shape, nv12.dtype) == ((6, 6), np.uint8)
    assert np.abs(nv12[:4].astype(int) - yuv[0]).max() <= 1
    assert np.abs(nv12[4:, 0::2].astype(int) - yuv[1]).max() <= 1
    assert np.abs(nv12[4:, 1::2].astype(int) - yuv[2]).max() <= 1
    assert np.abs(to_bgr(nv12).astype(int) - bgr).max() <= 4


@pytest.mark.parametrize("size_hw", [(2, 2), (2, 64), (90, 2), (64, 96), (90, 50)])
def test_there_and_back(size_hw):
    image = blobs(*size_hw)
    kept = image.copy()
    back = to_bgr(to_nv12(image))
    assert back.shape == image.shape
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(image, kept)
    if min(size_hw) > 2:
        assert np.abs(back.astype(int) - image).mean() < 6


def test_pictures_need_not_be_contiguous_and_may_be_read_only():
    image = blobs(40, 60)
    image.flags.writeable = False
    turned = image[::-1, ::2]
    np.testing.assert_array_equal(to_nv12(turned), to_nv12(turned.copy()))
    nv12 = np.concatenate((to_nv12(image), to_nv12(image)), 1)[:, :60]
    nv12.flags.writeable = False
    np.testing.assert_array_equal(to_bgr(nv12), to_bgr(nv12.copy()))


def test_threads_do_not_meet():
    images = [blobs(32 + 2 * number, 48, number) for number in range(6)]
    expected = [to_bgr(to_nv12(image)) for image in images]
    wrong = []

    def convert(number):
        for _ in range(20):
            if not np.array_equal(to_bgr(to_nv12(images[number])), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=convert, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("shape", [(3, 4, 3), (4, 5, 3), (4, 4), (4, 4, 1), (0, 4, 3), (1, 4, 4, 3)])
def test_what_cannot_be_nv12(shape):
    with pytest.raises(ShapeError, match=r"^to NV12: expected \(H, W, 3\) uint8 with even H and W, got \("):
        to_nv12(np.zeros(shape, np.uint8))
    with pytest.raises(ShapeError, match=r"got \(4, 4, 3\) float32$"):
        to_nv12(np.zeros((4, 4, 3), np.float32))


@pytest.mark.parametrize("shape", [(4, 4), (6, 5), (6, 4, 3), (6,), (0, 4), (6, 0)])
def test_what_is_no_nv12(shape):
    with pytest.raises(ShapeError, match=r"^from NV12: expected \(H·3/2, W\) uint8 with even H and W, got \("):
        to_bgr(np.zeros(shape, np.uint8))
    with pytest.raises(ShapeError, match=r"got \(6, 4\) int16$"):
        to_bgr(np.zeros((6, 4), np.int16))


@pytest.mark.parametrize(("pixels", "shape"), [("bgr", (2, 48, 64, 3)), ("nv12", (2, 72, 64))])
def test_shapes_of_frames(pixels, shape):
    assert frames_shape(pixels, 2, (48, 64)) == shape
    assert frames_nhw(pixels, shape) == (2, 48, 64)
    assert frames_nhw("nv12" if pixels == "bgr" else "bgr", shape) is None
