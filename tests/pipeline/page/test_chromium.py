"""The page in a real browser: what a viewer sees and does."""

import asyncio

import cv2
import numpy as np
import pytest

from pipeline.render.modes import MODES
from pipeline.stages.telemetry import State

pytestmark = pytest.mark.needs_program("chromium")

TOKEN = "correct-horse-battery"
# The middle of the first picture, as one number.
PIXEL = """(() => { const c = document.querySelector('.tile canvas');
  return c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data.slice(0, 3).join() })()"""
DRAWN = "document.querySelectorAll('.tile.drawn').length"


async def until(condition):
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come true")


async def moves(tab):
    """Wait until the picture has changed three times."""
    for _ in range(3):
        await tab.until(f"{PIXEL} !== {await tab.value(PIXEL)!r}")


def test_every_control_and_key_does_what_it_says(make_rig, in_chromium, tmp_path):
    rig = make_rig()
    rig.keep_writing(size_hw=(180, 320))
    downloads = tmp_path / "downloads"
    look = lambda: rig.renderer.look  # noqa: E731

    async def scenario(tab):
        await tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        await tab.look_like(1280, 1000)
        await tab.open(rig.url)
        await tab.until(DRAWN, 1)
        await moves(tab)
        # Fields.
        for mode in (*list(MODES)[1:], "replace"):
            await tab.click(f"#modes input[value={mode}]")
            await until(lambda mode=mode: look().mode == mode)
        await tab.click("#background")
        await until(lambda: look().background is not None)
        await tab.click("#alpha", 0.9)
        await until(lambda: 0.85 < look().alpha < 0.95)
        await tab.click("#threshold", 0.2)
        await until(lambda: 0.15 < look().threshold < 0.25)
        for name in ("hud", "legend"):
            await tab.click(f"#{name}")
            await until(lambda name=name: getattr(rig.annotations, name))
        await tab.value("document.activeElement.blur()")
        # Keys.
        for key, condition in {
            "m": lambda: look().mode == "heatmap",
            "n": lambda: look().mode == "replace",
            "h": lambda: not rig.annotations.hud,
            "l": lambda: not rig.annotations.legend,
        }.items():
            await tab.key(key)
            await until(condition)
        for key, name, sign in (("+", "alpha", 1), ("-", "alpha", -1), ("]", "threshold", 1), ("[", "threshold", -1)):
            before = getattr(look(), name)
            await tab.key(key)
            await until(lambda name=name, wanted=before + sign * 0.05: abs(getattr(look(), name) - wanted) < 0.01)
        background = look().background
        await tab.key("b")
        await until(lambda: look().background != background)
        await tab.key("?")
        await tab.until("document.querySelector('#help').open")
        await tab.key("?")
        await tab.until("document.querySelector('#help').open", False)
        # The fields follow what was changed elsewhere.
        rig.renderer.look = type(look())(mode="contour", alpha=0.25)
        await tab.until("document.querySelector('#modes input:checked').value", "contour")
        await tab.until("document.querySelector('#alpha-value').textContent", "25 %")
        # A pause is one's own, and ends.
        for way in (lambda: tab.key(" "), lambda: tab.click("#pause")):
            await way()
            await tab.until("document.querySelector('#link').textContent", "paused")
            await until(lambda: rig.sink._channels["yard"].watchers == 0)
            still = await tab.value(PIXEL)
            written = rig.telemetries["yard"].snapshot().frames_out
            await until(lambda written=written: rig.telemetries["yard"].snapshot().frames_out > written + 10)
            assert await tab.value(PIXEL) == still
            await way()
            await moves(tab)
        # Snapshots are files.
        for number, way in enumerate((lambda: tab.key("s"), lambda: tab.click("[aria-label^=Snapshot]")), start=1):
            await way()
            await until(lambda number=number: len(list(downloads.glob("yard_*Z.jpg"))) == number)
        assert cv2.imread(str(next(downloads.glob("*.jpg")))).shape == (180, 320, 3)
        for way in (lambda: tab.key("f"), lambda: tab.click("[aria-label$='full screen']")):
            await way()
            await tab.until("document.fullscreenElement !== null")
            await tab.key("f")
            await tab.until("document.fullscreenElement !== null", False)

    in_chromium(scenario)


def test_several_sources_one_of_which_breaks_off(make_rig, in_chromium):
    rig = make_rig(sources=("yard", "gate"))
    rig.keep_writing()

    async def scenario(tab):
        await tab.look_like(1280, 1000)
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        await moves(tab)
        visible = "[...document.querySelectorAll('.tile')].filter(t => t.checkVisibility()).length"
        await tab.click(".tile:nth-child(2) .picture")
        await tab.until(visible, 1)
        await until(lambda: [channel.watchers for channel in rig.sink._channels.values()] == [0, 1])
        await tab.click("#all")
        await tab.until(visible, 2)
        await tab.click(".tile:nth-child(1) .picture")
        await tab.until(visible, 1)
        await tab.key("Escape")
        await tab.until(visible, 2)
        # What it covers, and its past.
        await tab.until("document.querySelector('#classes li b').textContent", "25.0 %")
        await tab.until("/yard [\\d.]+ FPS, gate [\\d.]+ FPS/.test(document.querySelector('.chart canvas').ariaLabel)")
        assert await tab.value(
            "(() => { const c = document.querySelector('.chart canvas');"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v) })()"
        )
        # A source that breaks off is dimmed with a counter, and comes back.
        rig.telemetries["gate"].enter(State.RECONNECTING, "no answer from the camera")
        notice = "document.querySelector('.tile:nth-child(2) .notice')"
        await tab.until(f"/^Reconnecting [1-9]\\d* s, try 1no answer from the camera$/.test({notice}.textContent)")
        assert "brightness" in await tab.value("getComputedStyle(document.querySelector('.off canvas')).filter")
        assert await tab.value(DRAWN) == 2
        rig.telemetries["gate"].enter(State.RUNNING)
        await tab.until(f"{notice}.checkVisibility()", False)
        # The end is told.
        await asyncio.get_running_loop().run_in_executor(None, rig.close)
        await tab.until("document.querySelector('#link').textContent", "no answer")
        await tab.until("document.querySelectorAll('.tile.off').length", 2)
        tab.problems = [problem for problem in tab.problems if "ERR_CONNECTION_REFUSED" not in problem]

    in_chromium(scenario)


def test_a_stale_mask_is_marked_while_the_picture_goes_on(make_rig, in_chromium):
    rig = make_rig(sources=("yard", "gate"))
    stale = {"gate"}
    rig.keep_writing(stale=stale)

    async def scenario(tab):
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        chips = "[...document.querySelectorAll('.chip:not([hidden])')].map(c => c.textContent).join()"
        await tab.until(chips, "running,stale mask")
        assert await tab.value("document.querySelectorAll('.tile.off').length") == 0
        stale.clear()
        await tab.until(chips, "running,running")

    in_chromium(scenario)


def test_light_dark_and_small_screens(make_rig, in_chromium, tmp_path):
    rig = make_rig(sources=("yard", "a gate with a very long name that fits on no telephone at all"))
    rig.keep_writing(size_hw=(90, 160))

    async def scenario(tab):
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        for scheme, brightness in (("light", range(225, 256)), ("dark", range(40))):
            for width, height, phone in ((1440, 900, False), (390, 844, True), (320, 640, True)):
                await tab.look_like(width, height, scheme, phone)
                await tab.until("innerWidth", width)
                assert await tab.value("document.documentElement.scrollWidth") <= width
                path = tmp_path / f"{scheme}{width}.png"
                await tab.screenshot(path)
                assert round(np.median(cv2.imread(str(path))[-40:])) in brightness
        small = "[...document.querySelectorAll('button, #modes span')].filter(b => b.checkVisibility() &&"
        assert await tab.value(f"{small} b.getBoundingClientRect().height < 44).length") == 0
        # Everything that can be used has a name for those who cannot see it.
        assert await tab.value(
            "[...document.querySelectorAll('button, input')].filter(e => e.checkVisibility() && "
            "!(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
        ) == 0  # fmt: skip

    in_chromium(scenario)


def test_the_token_is_asked_for_and_kept_from_scripts(make_rig, in_chromium):
    rig = make_rig(token=TOKEN, read_only=True)
    rig.keep_writing()

    async def scenario(tab):
        await tab.open(rig.url)
        await tab.until("document.readyState + document.activeElement?.name", "completetoken")
        for letter in TOKEN:
            await tab.key(letter)
        assert await tab.value("document.activeElement.value") == TOKEN
        await tab.click("form button")
        await tab.until(DRAWN, 1)
        await moves(tab)
        assert await tab.value("location.href") == rig.url
        assert await tab.value("document.cookie") == ""
        assert await tab.value("document.querySelector('#controls').disabled")
        await tab.key("m")
        await tab.until("document.querySelector('#toast').textContent.includes('read-only')")
        assert rig.renderer.look.mode == "overlay"
        tab.problems = [problem for problem in tab.problems if "403" not in problem]  # before the token was given

    in_chromium(scenario)


def test_a_page_of_another_site_reaches_nothing(make_rig, in_chromium):
    rig = make_rig()
    rig.keep_writing()
    other = make_rig()  # another port is another origin
    attack = f"""(async () => {{
      const target = {rig.url!r}, got = [];
      const opened = new WebSocket(target.replace('http', 'ws') + 'live');
      got.push(await new Promise(tell => {{ opened.onopen = () => tell('open'); opened.onerror = () => tell('refused'); }}));
      for (const [path, options] of [['state', {{}}], ['settings', {{method: 'POST', body: '{{"alpha":1}}'}}]])
        got.push(await fetch(target + path, {{...options, mode: 'no-cors'}}).then(a => a.type, () => 'refused'));
      got.push(await new Promise(tell => {{ const i = new Image(); i.onload = () => tell('seen');
        i.onerror = () => tell('refused'); i.src = target + 'snapshot.jpg'; }}));
      return got.join();
    }})()"""

    async def scenario(tab):
        await tab.open(other.url + "healthz")
        await tab.until("document.body.textContent.trim()", "ok")
        await tab.call("Page.setBypassCSP", enabled=True)
        await tab.call("Page.navigate", url=other.url + "readyz")
        await tab.until("document.body.textContent.startsWith('yard')")
        got = await tab.value(attack)
        assert got.split(",")[0] == "refused"
        assert got.split(",")[3] == "refused"
        assert rig.renderer.look.alpha == 0.5
        tab.problems = []

    in_chromium(scenario)
