"""Zones drawn and edited in a real browser: with a mouse, with a finger, and with keys alone."""

import asyncio

import pytest

from pipeline.results.zone_book import read_zones

pytestmark = pytest.mark.needs_program("chromium")

DRAWN = "document.querySelectorAll('.tile.drawn').length"
NAMES = "[...document.querySelectorAll('#zones b')].map(b => b.textContent).join()"
SAVED = "document.querySelector('.zone-form') === null"


async def pixel(tab, x, y):
    """Where a share of the frame is in the window; the picture fills the stage."""
    box = await tab.value(
        "(() => { const r = document.querySelector('.editor').getBoundingClientRect(); return [r.x, r.y, r.width, r.height] })()"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


async def begin(tab, rig, width=1280, height=1000, phone=False):
    await tab.look_like(width, height, phone=phone)
    await tab.open(rig.url)
    await tab.until(DRAWN, 1)
    await tab.until("document.querySelector('#zones-card').checkVisibility()")


def near(zone, points):
    return len(zone.points) == len(points) and all(
        abs(x - u) < 0.01 and abs(y - v) < 0.01 for (x, y), (u, v) in zip(zone.points, points, strict=True)
    )


def test_with_a_mouse(make_rig, in_chromium, everything, tmp_path):
    rig = make_rig(**everything)
    rig.keep_writing(size_hw=(180, 320))
    finder, file = everything["find"], tmp_path / "zones.yaml"
    triangle = [(0.2, 0.2), (0.8, 0.25), (0.6, 0.8)]

    async def scenario(tab):
        await begin(tab, rig)
        await tab.click("#draw-zone")
        for corner in triangle:
            await tab.mouse(await pixel(tab, *corner))
        await tab.until("document.querySelectorAll('.corner').length", 3)
        await tab.type(".zone-form input[type=text]", "door")
        await tab.click(".zone-form button[type=submit]")
        await tab.until(SAVED)
        await tab.until(NAMES, "door")
        (zone,) = finder.zones
        assert near(zone, triangle)
        assert read_zones(file) == (zone,)
        # It lies over the picture, where it was drawn, and says what is in it.
        await tab.until("document.querySelectorAll('.zones polygon:not(.around)').length", 1)
        await tab.until("/subject [\\d.]+ %/.test(document.querySelector('#zones .area').textContent)")
        # A corner is dragged, one is put between two, one is taken away; another name and a limit.
        await tab.click("#zones [data-zone=door]")
        await tab.mouse(await pixel(tab, *zone.points[0]), await pixel(tab, 0.3, 0.3), await pixel(tab, 0.1, 0.1))
        (x, y), (u, v) = zone.points[1:]
        await tab.mouse(await pixel(tab, (x + u) / 2, (y + v) / 2), await pixel(tab, 0.9, 0.6))
        await tab.until("document.querySelectorAll('.corner').length", 4)
        await tab.mouse(await pixel(tab, *zone.points[1]))
        await tab.click(".zone-form button:nth-of-type(3)")  # "Remove corner"
        await tab.until("document.querySelectorAll('.corner').length", 3)
        await tab.type(".zone-form input[type=text]", "gate")
        await tab.type(".zone-form input[type=number]", "20")
        await tab.click(".zone-form button[type=submit]")
        await tab.until(SAVED)
        await tab.until(NAMES, "gate")
        (zone,) = finder.zones
        assert near(zone, [(0.1, 0.1), (0.9, 0.6), triangle[2]])
        assert (zone.above, read_zones(file)) == (0.2, (zone,))
        # What crosses itself is refused, in words beside the fields, and nothing is lost.
        await tab.click("#draw-zone")
        for corner in ((0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.9)):
            await tab.mouse(await pixel(tab, *corner))
        await tab.click(".zone-form button[type=submit]")
        await tab.until("document.querySelector('.problem').textContent.includes('does not cross or touch itself')")
        assert await tab.value("document.querySelectorAll('.corner').length") == 4
        await tab.key("Escape")
        await tab.until(SAVED)
        # Two presses delete.
        await tab.click("#zones li button:last-child")
        await tab.until("document.querySelector('#zones li button:last-child').textContent", "Delete?")
        assert finder.zones == (zone,)
        await tab.click("#zones li button:last-child")
        await tab.until(NAMES, "")
        assert finder.zones == read_zones(file) == ()

    in_chromium(scenario)


def test_with_a_finger(make_rig, in_chromium, everything):
    rig = make_rig(sources=("yard", "gate"), **everything)
    rig.keep_writing(size_hw=(180, 320))
    corners = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]

    async def scenario(tab):
        await tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
        await tab.look_like(390, 844, phone=True)
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        await tab.until("document.querySelector('#zones-card').checkVisibility()")
        await tab.value("document.querySelector('#draw-zone').click()")
        await tab.until("[...document.querySelectorAll('.tile')].filter(t => t.checkVisibility()).length", 1)
        await tab.value("document.querySelector('.editor').scrollIntoView({block: 'center'})")
        for corner in corners:
            await tab.touch(await pixel(tab, *corner))
        await tab.until("document.querySelectorAll('.corner').length", 4)
        await tab.touch(await pixel(tab, *corners[2]), await pixel(tab, 0.85, 0.85), await pixel(tab, 0.9, 0.95))
        await tab.value("document.querySelector('.zone-form').requestSubmit()")
        await tab.until(SAVED)
        await tab.until(NAMES, "zone-1")
        assert near(everything["find"].zones[0], [*corners[:2], (0.9, 0.95), corners[3]])

    in_chromium(scenario)


def test_with_keys_alone(make_rig, in_chromium, everything):
    rig = make_rig(**everything)
    rig.keep_writing(size_hw=(180, 320))

    async def scenario(tab):
        async def go_to(what):
            for _ in range(80):
                if await tab.value(f"document.activeElement.matches({what!r})"):
                    return
                await tab.key("Tab")
            raise AssertionError(f"no Tab leads to {what}")

        async def press(key, times=1):
            for _ in range(times):
                await tab.key(key)

        await begin(tab, rig)
        await go_to("#draw-zone")
        await tab.key("Enter")
        await tab.until("document.activeElement.matches('.editor')")
        # The cross begins in the middle.
        await press("ArrowLeft", 20)
        await tab.until("document.querySelector('#said').textContent", "30 % across, 50 % down")
        await tab.key("Enter")
        await press("ArrowUp", 30)
        await tab.key("Enter")
        await press("ArrowRight", 40)
        await press("ArrowDown", 5)
        await tab.key("Enter")
        await press("ArrowDown", 20)
        await tab.key("Enter")
        await tab.until("document.querySelector('#said').textContent", "Corner 4 set, 70 % across, 45 % down")
        await tab.key("Delete")  # the last one
        await tab.until("document.querySelectorAll('.corner').length", 3)
        # The focus is on a corner, which arrows move; with shift by little.
        await go_to(".corner[data-corner='2']")
        await press("ArrowDown", 35)
        await tab.key("ArrowLeft", shift=True)
        await tab.until("document.activeElement.ariaLabel", "Corner 3 of 3, 69.9 % across, 60 % down")
        await tab.key("+")
        await tab.until("document.activeElement.ariaLabel", "Corner 4 of 4, 50 % across, 55 % down")
        await tab.key("s")  # neither a snapshot nor another setting
        assert await tab.value("document.querySelector('#toast').hidden")
        await go_to(".zone-form input[type=text]")
        await tab.type(".zone-form input[type=text]", "mat")
        await tab.key("Enter")
        await tab.until(SAVED)
        await tab.until("document.querySelector('#said').textContent", "Zone mat saved")
        assert near(everything["find"].zones[0], [(0.3, 0.5), (0.3, 0.2), (0.699, 0.6), (0.5, 0.55)])
        assert await tab.value("document.activeElement.id") == "draw-zone"
        # Rename and delete.
        await go_to("[data-zone=mat]")
        await tab.key("Enter")
        await go_to(".zone-form input[type=text]")
        await tab.type(".zone-form input[type=text]", "rug")
        await tab.key("Enter")
        await tab.until(NAMES, "rug")
        await go_to("#zones li button:last-child")
        await tab.key("Enter")
        await tab.key("Enter")
        await tab.until(NAMES, "")
        assert everything["find"].zones == ()

    in_chromium(scenario)


def test_who_may_only_look_sees_zones_and_cannot_change_them(make_rig, in_chromium, everything):
    everything["zones"].put(None, "door", [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], 0.5)
    rig = make_rig(read_only=True, **everything)
    rig.keep_writing(size_hw=(180, 320))
    rig.made_up = {"flight": {"files": 0, "last": "", "last_s": None}}

    async def scenario(tab):
        await begin(tab, rig)
        await tab.until(NAMES, "door")
        await tab.until("document.querySelectorAll('.zones polygon:not(.around)').length", 1)
        buttons = "[...document.querySelectorAll('#zones-card button, .tile .icon')]"
        shown = f"{buttons}.filter(b => b.checkVisibility()).map(b => b.ariaLabel).join()"
        assert await tab.value(shown) == "Snapshot of yard,yard in full screen"
        await tab.until("document.querySelector('#record').checkVisibility()")
        for field in ("#record", "#flight", "#masks input", "#fps"):
            assert await tab.value(f"document.querySelector({field!r}).matches(':disabled')")

    in_chromium(scenario)


def test_another_viewer_sees_a_zone_at_once(make_rig, in_chromium, everything):
    rig = make_rig(**everything)
    rig.keep_writing(size_hw=(180, 320))

    async def scenario(tab):
        await begin(tab, rig)
        await asyncio.get_running_loop().run_in_executor(
            None, everything["zones"].put, None, "bay", [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], None
        )
        await tab.until(NAMES, "bay")

    in_chromium(scenario)
