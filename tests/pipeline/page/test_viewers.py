import asyncio
import base64
import json
import os
import socket
import struct
import tracemalloc
from types import SimpleNamespace

import aiohttp
import cv2
import numpy as np
import pytest

from pipeline.page import channel, server
from pipeline.page.options import Limits
from pipeline.page.viewer import WINDOW
from pipeline.stages.telemetry import Telemetry

LIMIT_S = 30


def live(rig, scenario):
    """Run ``await scenario(socket)`` with a WebSocket to the page that watches all sources."""

    async def main():
        async with aiohttp.ClientSession() as session, session.ws_connect(rig.url + "live") as socket:
            await socket.send_json({"watch": list(range(len(rig.telemetries)))})
            await scenario(socket)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


async def told(socket, kind):
    """The next text message of a kind."""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT and (content := json.loads(message.data))["type"] == kind:
            return content
    raise AssertionError(f"the connection ended without {kind}")


async def told_until(socket, wanted):
    while True:
        state = await told(socket, "state")
        if wanted(state):
            return state


def test_a_viewer_is_told_what_there_is(make_rig):
    rig = make_rig(sources=("yard", "gate"))

    async def scenario(socket):
        hello = await told(socket, "hello")
        assert (hello["sources"], hello["read_only"], hello["about"]["model"]) == (["yard", "gate"], False, "u2netp")
        assert "heatmap" in hello["modes"]
        assert [len(samples) for samples in hello["history"]] == [hello["count"]] * 2
        state = await told(socket, "state")
        assert state["settings"] == {"mode": "overlay", "alpha": 0.5, "threshold": 0.5, "hud": False, "legend": False}

    live(rig, scenario)


def test_sources_that_join_and_leave_are_told_and_shown(make_rig, read_pictures, wait_until):
    rig = make_rig(sources=("yard",))
    gate = SimpleNamespace(info=SimpleNamespace(name="gate"), telemetry=Telemetry("gate"))

    async def shown_from(socket, sources):
        await socket.send_json({"watch": list(range(len(sources)))})
        rig.keep_writing(every_s=0.01, sources=sources)
        seen = set()
        async for source, _, _ in read_pictures(socket):
            seen.add(source)
            if len(seen) == len(sources):
                break
        rig.stop_writing()
        rig._stop.clear()

    async def scenario(socket):
        assert (await told(socket, "hello"))["sources"] == ["yard"]
        for _ in range(3):
            rig.telemetries["gate"] = gate.telemetry
            rig.sink.join(gate)
            hello = await told(socket, "hello")
            assert hello["sources"] == ["yard", "gate"]
            assert [len(samples) for samples in hello["history"]] == [hello["count"]] * 2
            assert len((await told(socket, "state"))["sources"]) == 2
            await shown_from(socket, ("yard", "gate"))
            del rig.telemetries["gate"]
            rig.sink.leave(gate)
            assert (await told(socket, "hello"))["sources"] == ["yard"]
            assert len((await told(socket, "state"))["sources"]) == 1
            await shown_from(socket, ("yard",))

    live(rig, scenario)
    wait_until(lambda: [channel.watchers for channel in rig.sink._channels.values()] == [0], "its leaving")


def test_a_viewer_is_told_of_another_model(rig):
    async def scenario(socket):
        assert (await told(socket, "hello"))["about"]["model"] == "u2netp"
        rig.about["model"] = "other"
        assert (await told(socket, "hello"))["about"]["model"] == "other"
        await told(socket, "state")

    live(rig, scenario)


def test_every_source_comes_newest_first_and_in_order(make_rig, read_pictures):
    rig = make_rig(sources=("yard", "gate"))
    rig.keep_writing()

    async def scenario(socket):
        seen = {0: [], 1: []}
        async for source, index, jpeg in read_pictures(socket):
            assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)
            seen[source].append(index)
            if min(map(len, seen.values())) >= 10:
                break
        for indices in seen.values():
            assert indices == sorted(set(indices))

    live(rig, scenario)


def test_only_what_is_watched_is_sent(make_rig, read_pictures, wait_until):
    rig = make_rig(sources=("yard", "gate"))
    rig.keep_writing(every_s=0.01)

    async def scenario(socket):
        await socket.send_json({"watch": [1]})
        sources = []
        async for source, _, _ in read_pictures(socket):
            sources.append(source)
            if sources.count(1) >= 20:
                break
        assert set(sources[-15:]) == {1}

    live(rig, scenario)
    wait_until(lambda: [channel.watchers for channel in rig.sink._channels.values()] == [0, 0], "its leaving")


def test_a_viewer_who_shows_nothing_gets_a_few_pictures_and_then_the_newest(rig, read_pictures, wait_until):
    async def scenario(socket):
        await told(socket, "state")
        for number in range(WINDOW):
            rig.write()
            assert (await anext(read_pictures(socket, shown=False)))[1] == number
        for _ in range(50):
            last = rig.write()
            await asyncio.sleep(0.002)
        await socket.send_json({"shown": 0})
        assert (await anext(read_pictures(socket, shown=False)))[1] == last.index

    live(rig, scenario)


def test_a_source_that_stands_keeps_its_last_picture(rig, read_pictures):
    for _ in range(3):
        rig.write()

    async def scenario(socket):
        async for _, index, jpeg in read_pictures(socket):
            assert index == 0  # the one that is copied each second while nobody watches
            assert jpeg
            break

    live(rig, scenario)


def test_a_view_is_encoded_once_for_all_viewers(rig, read_pictures, monkeypatch):
    encoded = []
    original = channel.encode
    monkeypatch.setattr(channel, "encode", lambda view: encoded.append(1) or original(view))

    async def one(session):
        async with session.ws_connect(rig.url + "live") as socket:
            await socket.send_json({"watch": [0]})
            seen = {}
            async for _, index, jpeg in read_pictures(socket):
                seen[index] = jpeg
                if len(seen) >= 12:
                    break
            return seen

    async def main():
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(one(session) for _ in range(6)))

    rig.keep_writing()
    viewers = asyncio.run(asyncio.wait_for(main(), LIMIT_S))
    rig.stop_writing()
    indices = set().union(*viewers)
    # Six viewers saw 72 pictures; each frame was encoded at most once, some when its viewers had just left.
    assert len(encoded) <= next(rig.index)
    assert len(encoded) <= len(indices) + 6
    for index in indices:
        assert len({seen[index] for seen in viewers if index in seen}) == 1


def test_nothing_is_encoded_while_nobody_watches(rig, get, monkeypatch):
    encoded = []
    monkeypatch.setattr(channel, "encode", lambda view: encoded.append(1) or b"jpeg")
    for _ in range(100):
        rig.write()
    get(rig)("/state")
    assert encoded == []


def test_keys_and_fields_change_settings_for_all(rig):
    async def scenario(socket):
        await socket.send_json({"key": "m"})
        await told_until(socket, lambda state: state["settings"]["mode"] == "mask")
        await socket.send_json({"set": {"alpha": 0.9, "threshold": 0.2, "hud": True}})
        await told_until(socket, lambda state: state["settings"]["hud"])

    live(rig, scenario)
    assert (rig.renderer.look.mode, rig.renderer.look.alpha, rig.renderer.look.threshold) == ("mask", 0.9, 0.2)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"key": "q"}, "key: expected one of"),
        ({"key": "r"}, "key: expected one of"),
        ({"key": 5}, "key: expected one of"),
        ({"set": {"model": "x"}}, "setting: expected mode"),
        ({"set": 1}, "set: expected settings by name"),
        ({"watch": [0, 1]}, "watch: expected a list"),
        ({"watch": [7]}, "source: expected 0 to 0, got 7"),
        ({"shown": -1}, "source: expected 0 to 0, got -1"),
        ({"shown": True}, "source: expected 0 to 0, got True"),
        ([], "message: expected an object"),
        ("{", "message: expected an object, got str"),
    ],
)
def test_what_a_viewer_may_not_say_is_answered_in_one_line(rig, message, text):
    look = rig.renderer.look

    async def scenario(socket):
        await socket.send_json(message)
        assert text in (await told(socket, "refused"))["text"]
        await told(socket, "state")  # and life goes on

    live(rig, scenario)
    assert rig.renderer.look is look
    assert not rig.sink.stopped


def test_text_that_is_no_json_is_answered_too(rig):
    async def scenario(socket):
        for text in ("{", "[" * 4000, "\x00"):
            await socket.send_str(text)
            assert (await told(socket, "refused"))["text"]

    live(rig, scenario)


def test_a_read_only_page_refuses_keys_and_fields(make_rig):
    rig = make_rig(read_only=True)

    async def scenario(socket):
        for message in ({"key": "m"}, {"set": {"alpha": 1}}):
            await socket.send_json(message)
            assert "read-only" in (await told(socket, "refused"))["text"]

    live(rig, scenario)
    assert rig.renderer.look.mode == "overlay"


def test_a_message_that_is_too_long_ends_the_viewer(rig):
    async def scenario(socket):
        await socket.send_str(json.dumps({"set": {"mode": "x" * 10000}}))
        async for _ in socket:
            pass
        assert socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG

    live(rig, scenario)


def test_the_legend_has_colours_and_areas(rig):
    rig.keep_writing()

    async def scenario(socket):
        state = await told_until(socket, lambda state: state["sources"][0]["legend"])
        assert state["sources"][0]["legend"] == [["subject", "#56b4e9", 25.0]]

    live(rig, scenario)


def test_no_more_viewers_than_may_be(make_rig, get, wait_until):
    rig = make_rig(limits=Limits(viewers=2))
    rig.write()

    async def main():
        async with aiohttp.ClientSession() as session:
            one = await session.ws_connect(rig.url + "live")
            other = await session.get(rig.url + "stream.mjpg")
            await asyncio.wait_for(other.content.readline(), LIMIT_S)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(rig.url + "live")
            assert refused.value.status == 503
            async with session.get(rig.url + "stream.mjpg") as answer:
                assert answer.status == 503
                assert await answer.text() == "there are 2 viewers already, as many as may be: close another page\n"
            other.close()
            await one.close()

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
    # Those who leave make room, also while no frame comes.
    wait_until(lambda: "edgemask_viewers 0.0" in get(rig)("/metrics").text, "the viewers' leaving")


def test_viewers_are_told_that_it_ends(rig):
    async def main():
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(rig.url + "live", autoclose=False) as socket,
        ):
            await told(socket, "state")
            await asyncio.get_running_loop().run_in_executor(None, rig.sink.close)
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
            assert message.extra == "the pipeline has ended"

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))
    assert not rig.sink._thread.is_alive()


def stuck_viewer(port, path="/live"):
    """A socket that asks for pictures and never reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    if path == "/live":
        key = base64.b64encode(os.urandom(16)).decode()
        request += (
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        )
    connection.sendall(request.encode() + b"\r\n")
    if path == "/live":
        send(connection, b'{"watch":[0]}')
    return connection


def send(connection, message):
    """A text message as a WebSocket sends it."""
    connection.sendall(struct.pack("!BBI", 0x81, 0x80 | len(message), 0) + message)


def test_stuck_viewers_slow_nobody_and_take_no_memory(make_rig, read_pictures, wait_until, monkeypatch):
    transports = []
    original = server._keep_buffer_small
    monkeypatch.setattr(
        server, "_keep_buffer_small", lambda request: transports.append(request.transport) or original(request)
    )
    rig = make_rig(limits=Limits(send_s=60.0, request_s=600.0))  # they are not even hung up on
    frames, sizes, seen = 20_000, [], []
    frame = rig.frame(size_hw=(96, 128))
    frame.view = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)

    def write():
        frame.index += 1
        rig.sink.write(frame)

    stuck = []
    for path in ("/stream.mjpg?source=yard", "/live", "/live"):
        stuck.append(stuck_viewer(rig.port, path))
        wait_until(lambda: len(transports) == len(stuck), "its coming")

    def full():
        write()
        send(stuck[1], b'{"shown":0}')  # it lies, so that only the network's buffers hold its pictures back
        return all(transport.get_write_buffer_size() > 0 for transport in transports[:2])

    wait_until(full, "their buffers' being full")

    async def scenario(socket):
        await told(socket, "state")

        async def look():
            async for _, index, _ in read_pictures(socket):
                seen.append(index)

        def write_all():
            tracemalloc.start()
            try:
                for number in range(frames):
                    write()
                    if number in (frames // 10, frames // 2, frames - 1):
                        sizes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()

        looking = asyncio.create_task(look())
        await asyncio.get_running_loop().run_in_executor(None, write_all)
        while not seen or seen[-1] != frame.index:  # the last one comes in any case
            await asyncio.sleep(0.02)
        looking.cancel()

    live(rig, scenario)
    assert rig.sink._server.viewers >= 3
    for connection in stuck:
        connection.close()
    assert len(seen) > 20
    assert max(sizes) - sizes[0] < 1_000_000


@pytest.mark.parametrize("path", ["/live", "/stream.mjpg"])
def test_a_stuck_viewer_is_hung_up_on(make_rig, get, wait_until, path):
    rig = make_rig(limits=Limits(send_s=0.3, request_s=2.0))
    rig.keep_writing(every_s=0.01, size_hw=(480, 640))
    connection = stuck_viewer(rig.port, path)
    try:
        wait_until(lambda: rig.sink._server.viewers == 1, "its coming")
        wait_until(lambda: rig.sink._server.viewers == 0, "its end")
    finally:
        connection.close()
    assert get(rig)("/state").status == 200


def test_a_stuck_viewer_does_not_delay_the_end(make_rig, wait_until):
    rig = make_rig()
    rig.keep_writing(every_s=0.01, size_hw=(480, 640))
    connections = [stuck_viewer(rig.port), stuck_viewer(rig.port, "/stream.mjpg")]
    try:
        wait_until(lambda: rig.sink._server.viewers == 2, "their coming")
        rig.close()
        assert not rig.sink._thread.is_alive()
    finally:
        for connection in connections:
            connection.close()


def test_a_viewer_has_the_last_seconds_written(make_rig):
    asked = []
    rig = make_rig(
        flight=lambda: {"files": len(asked), "last": "page: asked for on the page" if asked else "", "last_s": None},
        take_flight=lambda kind: asked.append(kind) or "",
    )

    async def scenario(socket):
        assert (await told(socket, "state"))["flight"] == {"files": 0, "last": "", "last_s": None}
        await socket.send_json({"type": "flight"})
        await told_until(socket, lambda state: state["flight"]["files"] == 1)

    live(rig, scenario)
    assert asked == ["page"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"take_flight": lambda _: "flight: one was asked for 2 s ago"}, "flight: one was asked for 2 s ago"),
        ({"read_only": True}, "the page is read-only: it was started with --serve-read-only"),
        ({}, "flight: expected a run with --flight DIR, got one without"),
    ],
)
def test_a_viewer_is_told_why_nothing_is_written(make_rig, options, text):
    async def scenario(socket):
        await socket.send_json({"type": "flight"})
        assert (await told(socket, "refused"))["text"] == text

    live(make_rig(**options), scenario)
