"""What the tests of the page share: a page with made-up sources, and a real browser driven over its debugging port."""

import asyncio
import base64
import contextlib
import itertools
import json
import re
import subprocess
import threading
import time
from dataclasses import fields
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest

from pipeline.bundles.bundle import Manifest
from pipeline.frames.frame import Frame
from pipeline.masks.governor import Governor
from pipeline.masks.steady import Steady
from pipeline.masks.tuning import Tuning
from pipeline.page.options import PageOptions, Watched
from pipeline.page.sink import PageSink
from pipeline.render.annotations import Annotations
from pipeline.render.look import Look
from pipeline.render.overlay import Renderer
from pipeline.results.finder import Finder
from pipeline.results.zone_book import ZoneBook
from pipeline.sinks.options import RecordingSwitch
from pipeline.stages.telemetry import Telemetry

TOKEN = "correct-horse-battery"
PATIENCE_S = 20.0
KEYS = {"Tab": {"windowsVirtualKeyCode": 9, "code": "Tab"}, "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"}}
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)


class Rig:
    """A page whose frames the test writes."""

    def __init__(self, sources=("yard",), task="binary", classes=("subject",), **options):
        self.telemetries = {name: Telemetry(name) for name in sources}
        self.renderer = Renderer(Look(), task)
        manifest = Manifest("u2netp", task, classes, (32, 32), "fp32", {}, {}, {}, "")
        self.annotations = Annotations(manifest, "none", self.renderer, hud=False, legend=False)
        names = {entry.name for entry in fields(Watched)}
        of_run = {name: options.pop(name) for name in names & options.keys()}
        self.about = {"version": "0.1.0", "model": "u2netp"}
        watched = Watched(self.telemetries, classes, self.about, **of_run)
        page = PageOptions(**{"address": "127.0.0.1:0", **options})
        self.sink = PageSink(page, watched, self.renderer, self.annotations)
        self.url = self.sink.url.partition("?")[0].replace("0.0.0.0", "127.0.0.1")
        self.port = int(re.search(r":(\d+)/", self.url)[1])
        self.made_up = {}  # parts of the state, and of each source's by name, that other parts of a run would tell
        self.made_up_of = {}
        self._tell_made_up()
        self.index = itertools.count()
        self._stop = threading.Event()
        self._writer = None

    def _tell_made_up(self):
        board = self.sink._board
        refresh = board.refresh

        def refreshed():
            refresh()
            state = json.loads(board.text) | self.made_up
            sources = zip(self.telemetries, state["sources"], strict=True)
            state["sources"] = [{**each, **self.made_up_of.get(name, {})} for name, each in sources]
            board.text = json.dumps(state)

        board.refresh = refreshed

    def frame(self, source="yard", size_hw=(48, 64), level=None, stale=()):
        index = next(self.index)
        image = np.full((*size_hw, 3), index * 7 % 256 if level is None else level, np.uint8)
        frame = Frame(image, index, index / 25, source, str(index))
        frame.mask = np.zeros(size_hw, np.uint8)
        frame.mask[: size_hw[0] // 4] = 255
        frame.stale = source in stale
        return frame

    def write(self, source="yard", **how):
        frame = self.frame(source, **how)
        self.telemetries[source].came_in()
        frame.view = self.renderer(frame.image, frame.mask)
        self.sink.write(frame)
        self.telemetries[source].went_out(frame.age_ms, stale=frame.stale)
        return frame

    def keep_writing(self, every_s=0.03, sources=None, **how):
        """Write frames on a thread of their own until the end of the test."""

        def work():
            while not self._stop.wait(every_s):
                for source in sources or self.telemetries:
                    self.write(source, **how)

        self._writer = threading.Thread(target=work, daemon=True)
        self._writer.start()

    def stop_writing(self):
        self._stop.set()
        if self._writer is not None:
            self._writer.join()

    def close(self):
        self.stop_writing()
        self.sink.close()


@pytest.fixture
def make_rig():
    rigs = []

    def make(*arguments, **options):
        rigs.append(Rig(*arguments, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig):
    return make_rig()


class Client:
    """An HTTP client that knows nothing but the address."""

    def __init__(self, rig):
        self.rig = rig

    def __call__(self, path, method="GET", **options):
        async def ask():
            options.setdefault("allow_redirects", False)
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session,
                session.request(method, self.rig.url.rstrip("/") + path, **options) as answer,
            ):
                body = await answer.read()
                return SimpleNamespace(
                    status=answer.status, headers=answer.headers, body=body, text=body.decode(errors="replace")
                )

        return asyncio.run(ask())


@pytest.fixture
def everything(tmp_path):
    """All that a run lets viewers change, for a rig."""
    renderer = Renderer(Look(), "binary")
    finder = Finder(renderer, ("subject",), [])
    return {
        "masks": Tuning(Steady("auto", False, "binary", renderer, []), Governor(10.0, "binary")),
        "zones": ZoneBook((), tmp_path / "zones.yaml", finder.watch),
        "find": finder,
        "recording": RecordingSwitch(recordings=1),
    }


@pytest.fixture
def get():
    """``get(rig)("/state", headers={…})``: one request; gives status, headers, body and text."""
    return Client


async def pictures(socket, shown=True):
    """The (source, index, JPEG) of each picture that a WebSocket gets; each is said to be shown."""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            source, index = message.data[0], int.from_bytes(message.data[4:8], "little")
            if shown:
                await socket.send_json({"shown": source})
            yield source, index, message.data[8:]


@pytest.fixture
def read_pictures():
    return pictures


@pytest.fixture
def wait_until():
    """``wait_until(lambda: …)``: until it is true, or the test fails."""

    def wait(condition, what="it"):
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{what} did not come true"
            time.sleep(0.01)

    return wait


class Tab:
    """A tab of a real browser, driven over its debugging port."""

    def __init__(self, socket):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.problems = []  # what the page complained of

    async def call(self, method, **parameters):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            told = await asyncio.wait_for(self._socket.receive_json(), PATIENCE_S)
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
            if told["method"] == "Runtime.exceptionThrown":
                self.problems.append(told["params"]["exceptionDetails"]["exception"].get("description"))
            elif told["method"] == "Log.entryAdded":
                entry = told["params"]["entry"]
                # That tests look at pixels is no problem of the page.
                if entry["level"] in ("error", "warning") and not entry["text"].startswith("Canvas2D:"):
                    self.problems.append(entry["text"])

    async def open(self, url):
        await self.call("Page.enable")
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        await self.call("Page.navigate", url=url)

    async def value(self, expression):
        """What an expression gives in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression, wanted=True):
        """Wait until an expression has a value."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (value := await self.value(expression)) != wanted:
            assert time.monotonic() < deadline_s, f"{expression} is {value!r}, not {wanted!r}; {self.problems}"
            await asyncio.sleep(0.03)

    async def key(self, text, shift=False):
        held = {"modifiers": 8 * shift}
        letter = {"text": text} if len(text) == 1 else KEYS.get(text, {})
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=text, **letter, **held)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=text, **held)

    async def type(self, selector, text):
        """Put a text into a field in the place of what is there."""
        await self.value(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=text)

    async def mouse(self, *places):
        """Press at the first place, move to the others and let go at the last."""
        for kind, (x, y) in (
            ("mousePressed", places[0]),
            *(("mouseMoved", place) for place in places[1:]),
            ("mouseReleased", places[-1]),
        ):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    async def touch(self, *places):
        """The same with a finger."""
        for kind, place in (
            ("touchStart", places[0]),
            *(("touchMove", place) for place in places[1:]),
            ("touchEnd", None),
        ):
            points = [] if place is None else [{"x": place[0], "y": place[1]}]
            await self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    async def click(self, selector, across=0.5):
        """Click what a person would click there, at a share of its width."""
        place = await self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            f"const r = e.getBoundingClientRect(); return [r.x + r.width * {across}, r.y + r.height / 2]; }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def look_like(self, width, height, scheme="light", phone=False):
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self, path, whole=False):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def chromium(folder):
    """A tab in a browser of its own, with its data in a folder."""
    command = [*CHROMIUM, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            port_file = folder / "DevToolsActivePort"
            deadline_s = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().count("\n")):
                assert time.monotonic() < deadline_s, "chromium did not start"
                await asyncio.sleep(0.05)
            port = port_file.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
                async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            browser.terminate()


@pytest.fixture
def in_chromium(tmp_path):
    """``in_chromium(scenario)``: runs ``await scenario(tab)`` in a real browser."""

    def run(scenario):
        async def main():
            async with chromium(tmp_path / "chromium") as tab:
                await scenario(tab)
                assert tab.problems == []

        asyncio.run(main())

    return run
