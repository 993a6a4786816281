import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from pipeline.frames.frame import Frame
from pipeline.page import channel as channel_module
from pipeline.page.channel import LONGEST_SIDE, Channel, encode


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def frame(index, size_hw=(24, 32), level=100):
    view = np.full((*size_hw, 3), level, np.uint8)
    return Frame(view, index, index / 25, "yard", str(index), view=view)


def level_of(picture):
    return round(cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR).mean())


def watched(executor):
    channel = Channel("yard", executor)
    channel.watchers = 1
    channel.attach(asyncio.get_running_loop())
    return channel


@pytest.mark.parametrize(
    ("size_hw", "encoded_hw"),
    [
        ((48, 64), (48, 64)),
        ((720, 1280), (720, 1280)),
        ((1080, 1920), (720, 1280)),
        ((2160, 3840), (720, 1280)),
        ((1920, 1080), (1280, 720)),
        ((1, 5000), (1, LONGEST_SIDE)),
    ],
)
def test_large_views_are_reduced(size_hw, encoded_hw):
    shape = cv2.imdecode(np.frombuffer(encode(np.zeros((*size_hw, 3), np.uint8)), np.uint8), cv2.IMREAD_COLOR).shape
    assert shape == (*encoded_hw, 3)


def test_a_view_may_be_changed_after_it_was_put(executor):
    async def scenario():
        channel = watched(executor)
        given = frame(3, level=200)
        channel.put(given)
        given.view[:] = 0
        picture = await channel.after(0)
        assert (picture.index, level_of(picture)) == (3, 200)

    asyncio.run(scenario())


def test_all_who_wait_get_the_same_bytes_encoded_once(executor, monkeypatch):
    calls = []
    monkeypatch.setattr(channel_module, "encode", lambda view: calls.append(view.shape) or b"jpeg")

    async def scenario():
        channel = watched(executor)
        for index in range(3):
            number = index
            waiting = [asyncio.create_task(channel.after(number)) for _ in range(20)]
            await asyncio.sleep(0)
            channel.put(frame(index))
            assert {picture.index for picture in await asyncio.gather(*waiting)} == {index}
            assert len(calls) == index + 1

    asyncio.run(scenario())


def test_frames_that_nobody_waits_for_are_not_encoded_and_the_newest_is_kept(executor, monkeypatch):
    calls = []
    monkeypatch.setattr(channel_module, "encode", lambda view: calls.append(1) or encode(view))

    async def scenario():
        channel = watched(executor)
        for index in range(50):
            channel.put(frame(index, level=index))
        await asyncio.sleep(0)
        assert calls == []
        picture = await channel.after(0)
        assert (picture.index, level_of(picture), len(calls)) == (49, 49, 1)
        assert await channel.after(0) is picture
        assert len(calls) == 1

    asyncio.run(scenario())


def test_without_viewers_one_view_a_second_is_copied(executor):
    channel = Channel("yard", executor)
    assert [channel.put(frame(index)) for index in range(3)] == [True, False, False]


def test_a_change_of_size_goes_on(executor):
    async def scenario():
        channel, number = watched(executor), 0
        for index, size_hw in enumerate(((24, 32), (24, 32), (48, 20), (24, 32))):
            channel.put(frame(index, size_hw))
            picture = await channel.after(number)
            number = picture.number
            assert cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2] == size_hw

    asyncio.run(scenario())


def test_one_who_gives_up_takes_nothing_from_the_others(executor, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(channel_module, "encode", lambda view: go_on.wait(10) and b"jpeg")

    async def scenario():
        channel = watched(executor)
        channel.put(frame(0))
        leaving, staying = asyncio.create_task(channel.after(0)), asyncio.create_task(channel.after(0))
        await asyncio.sleep(0.05)
        leaving.cancel()
        go_on.set()
        assert (await staying).jpeg == b"jpeg"

    asyncio.run(scenario())


def test_an_error_of_the_encoder_reaches_who_waits(executor, monkeypatch):
    def fail(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(channel_module, "encode", fail)

    async def scenario():
        channel = watched(executor)
        channel.put(frame(0))
        with pytest.raises(RuntimeError, match="no memory"):
            await channel.after(0)

    asyncio.run(scenario())
