"""The page for those who use no mouse, a screen reader, a phone or the dark: axe-core looks at it, and keys go through it."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from pipeline.stages.telemetry import State

pytestmark = pytest.mark.needs_program("chromium")

TOKEN = "correct-horse-battery"
AXE = Path(os.environ.get("EDGEMASK_TEST_AXE") or Path(sys.prefix) / "axe") / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
DRAWN = "document.querySelectorAll('.tile.drawn').length"
AUDIT = {
    "count": 5,
    "total": 1234,
    "skipped": 12,
    "mean": 0.996,
    "low": 0.991,
    "mae": 0.01,
    "worst": 0.95,
    "worst_s": 7300,
    "worst_source": "gate",
    "gate": 0.98,
    "below": False,
    "empties": 1,
    "values": [0.99, 1.0, 0.998, 0.95, 0.997],
}
FLIGHT = {"files": 2, "last": "asked for on the page", "last_s": 200.0}
NEAR = {"drift": {"distance": 0.12, "limit": 0.3, "unlike": False}}
FAR = {"drift": {"distance": 0.42, "limit": 0.3, "unlike": True}}


async def violations(tab):
    """What axe-core finds in each layout: (layout, rule, element)."""
    found = []
    for scheme in ("light", "dark"):
        for width, height, phone in ((1440, 900, False), (390, 844, True)):
            await tab.look_like(width, height, scheme, phone)
            await tab.until("innerWidth", width)
            assert await tab.value("document.documentElement.scrollWidth") <= width
            if not await tab.value("typeof axe === 'object'"):
                await tab.value(AXE.read_text() + "; 0")
            wanted = json.dumps({"runOnly": RULES})
            results = await tab.value(f"axe.run(document, {wanted}).then(({{violations}}) => violations)")
            found += [
                (f"{scheme} {width}", result["id"], node["html"]) for result in results for node in result["nodes"]
            ]
    return found


@pytest.fixture
def axe(in_chromium):
    """``axe(rig, prepare)``: axe-core has nothing to say against the page, after ``await prepare(tab)``."""
    if not AXE.is_file():
        if os.environ.get("FAIL_WITHOUT_AXE"):
            pytest.fail(f"no axe-core in {AXE.parent}: tests/install-axe makes it")
        pytest.skip(f"no axe-core in {AXE.parent}: tests/install-axe makes it")

    def look(rig, prepare):
        async def scenario(tab):
            await tab.look_like(1440, 900)
            await tab.open(rig.url)
            await prepare(tab)
            assert await violations(tab) == []
            tab.problems = [problem for problem in tab.problems if "403" not in problem]  # before the token was given

        in_chromium(scenario)

    return look


def test_one_source_with_all_there_can_be(make_rig, axe, everything):
    everything["zones"].put(None, "door", [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], 0.5)
    rig = make_rig(**everything)
    rig.made_up, rig.made_up_of = {"audit": AUDIT, "flight": FLIGHT}, {"yard": NEAR}
    rig.keep_writing(size_hw=(180, 320))

    async def prepare(tab):
        await tab.until(DRAWN, 1)
        await tab.until("document.querySelector('#agreement').checkVisibility()")

    axe(rig, prepare)


def test_a_zone_that_is_drawn(make_rig, axe, everything):
    everything["zones"].put(None, "door", [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], 0.5)
    rig = make_rig(**everything)
    rig.keep_writing(size_hw=(180, 320))

    async def prepare(tab):
        await tab.until(DRAWN, 1)
        await tab.until("document.querySelector('[data-zone=door]') !== null")
        await tab.click("[data-zone=door]")
        await tab.until("document.querySelectorAll('.corner').length", 3)

    axe(rig, prepare)


def test_two_sources_of_which_one_is_stalled(make_rig, axe):
    rig = make_rig(sources=("yard", "gate"))
    rig.made_up = {"audit": {**AUDIT, "below": True}, "outputs": ["a.mp4: recording stopped (the disk is full)"]}
    rig.made_up_of = {"gate": FAR}
    rig.keep_writing(size_hw=(180, 320))

    async def prepare(tab):
        await tab.until(DRAWN, 2)
        rig.telemetries["gate"].enter(State.STALLED, "no frame for 3 s")
        await tab.until("document.querySelector('#link').textContent", "stalled: gate")
        await tab.until("document.querySelector('#warnings').checkVisibility()")

    axe(rig, prepare)


def test_a_read_only_page(make_rig, axe, everything):
    rig = make_rig(sources=("yard", "gate"), read_only=True, **everything)
    rig.made_up = {"flight": FLIGHT}
    rig.keep_writing(size_hw=(180, 320))

    async def prepare(tab):
        await tab.until(DRAWN, 2)
        await tab.until("document.querySelector('#read-only').checkVisibility()")

    axe(rig, prepare)


def test_pictures_that_fill_the_screen(make_rig, axe):
    rig = make_rig(sources=("yard", "gate"))
    rig.keep_writing(size_hw=(180, 320))

    async def prepare(tab):
        await tab.until(DRAWN, 2)
        rig.telemetries["gate"].enter(State.STALLED, "no frame for 3 s")
        await tab.until("document.querySelectorAll('.tile.off').length", 1)
        # As on telephones that know no full screen for a part of a page; what is behind it is not to be seen.
        await tab.value("document.body.classList.add('filled')")

    axe(rig, prepare)


def test_the_keys(make_rig, axe):
    rig = make_rig()
    rig.keep_writing(size_hw=(180, 320))

    async def prepare(tab):
        await tab.until(DRAWN, 1)
        await tab.click("#help-button")
        await tab.until("document.querySelector('#help').open")

    axe(rig, prepare)


def test_the_page_that_asks_for_the_token(make_rig, axe):
    rig = make_rig(token=TOKEN)

    async def prepare(tab):
        await tab.until("document.readyState + document.activeElement?.name", "completetoken")
        await tab.type("#token", "x" * 16)
        await tab.click("form button")
        await tab.until("document.querySelector('.problem')?.textContent", "Wrong token")

    axe(rig, prepare)


def test_everything_is_reached_by_tab_in_order_and_shows_it(make_rig, in_chromium, everything):
    everything["zones"].put(None, "door", [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]], 0.5)
    rig = make_rig(sources=("yard", "gate"), **everything)
    rig.made_up = {"audit": AUDIT, "flight": FLIGHT}
    rig.keep_writing(size_hw=(180, 320))
    # Of a radio button one is reached, and arrows go to the others; what is shown is the label beside it.
    order = """[...document.querySelectorAll('button, input, select, [tabindex]')].filter(e => e.checkVisibility() &&
      !e.matches(':disabled') && (e.type !== 'radio' || e.checked))"""
    focused = """(() => { const e = document.activeElement, s = e.type === 'radio' ? e.nextElementSibling : e;
      const style = getComputedStyle(s); return [ORDER.indexOf(e), style.outlineStyle !== 'none' &&
      parseFloat(style.outlineWidth) >= 2] })()""".replace("ORDER", order)

    async def scenario(tab):
        await tab.look_like(1440, 900)
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        await tab.until("document.querySelector('[data-zone=door]') !== null")
        count = await tab.value(f"{order}.length")
        assert count > 25
        seen = []
        for _ in range(count):
            await tab.key("Tab")
            seen.append(await tab.value(focused))
        assert seen == [[position, True] for position in range(count)]

    in_chromium(scenario)


def test_words_are_explained_to_the_pointer_and_to_keys(make_rig, in_chromium):
    rig = make_rig()
    rig.keep_writing(size_hw=(180, 320))

    async def scenario(tab):
        await tab.look_like(1440, 900)
        await tab.open(rig.url)
        await tab.until(DRAWN, 1)
        for word, text in (
            ("age", "How old a picture is when it is shown"),
            ("dropped", "Frames that were read and not shown"),
        ):
            button = f"[...document.querySelectorAll('#figures .term')].find(b => b.textContent === {word!r})"
            tip = f"document.getElementById({button}.getAttribute('aria-describedby'))"
            assert (await tab.value(f"{tip}.textContent")).startswith(text)
            await tab.until(f"{tip}.checkVisibility()", False)
            await tab.value(f"{button}.focus()")
            await tab.until(f"{tip}.checkVisibility()")
            await tab.key("Escape")
            await tab.until(f"{tip}.checkVisibility()", False)
            await tab.value("document.activeElement.blur()")
            x, y = await tab.value(
                f"(() => {{ const r = {button}.getBoundingClientRect(); return [r.x + 5, r.y + 5] }})()"
            )
            await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
            await tab.until(f"{tip}.checkVisibility()")
            await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
            await tab.until(f"{tip}.checkVisibility()", False)

    in_chromium(scenario)


def test_a_screen_reader_is_told_once_and_the_focus_stays(make_rig, in_chromium, everything):
    rig = make_rig(sources=("yard", "gate"), **everything)
    rig.made_up, rig.made_up_of = {"audit": {**AUDIT, "below": True}}, {"gate": FAR}
    rig.keep_writing(size_hw=(180, 320))

    async def scenario(tab):
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        await tab.until("document.querySelector('#warnings').textContent.includes('gate: pictures unlike')")
        await tab.value("document.querySelector('#figures .term').focus()")
        await tab.value(
            "globalThis.told = []; for (const e of document.querySelectorAll('[role=status], [role=alert], [aria-live]'))"
            "new MutationObserver(() => told.push(e.id + ': ' + e.textContent)).observe(e,"
            "{childList: true, characterData: true, subtree: true})"
        )
        before = rig.telemetries["yard"].snapshot().frames_out
        rig.made_up = {"audit": {**AUDIT, "below": True, "mean": 0.95}}  # figures change, and what is said does not
        while rig.telemetries["yard"].snapshot().frames_out < before + 60:
            await asyncio.sleep(0.05)
        await tab.until("document.querySelector('.agreement').textContent.includes('0.950')")
        assert await tab.value("told") == []
        assert await tab.value("document.activeElement.textContent") == "age"
        rig.telemetries["gate"].enter(State.RECONNECTING, "no answer")
        await tab.until("told.join()", "link: reconnecting: gate")

    in_chromium(scenario)


def test_the_header_says_the_worst_state_and_whose_it_is(make_rig, in_chromium):
    rig = make_rig(sources=("yard", "gate", "bay"))
    rig.keep_writing(size_hw=(90, 160))
    link = "document.querySelector('#link').textContent"

    async def scenario(tab):
        await tab.open(rig.url)
        await tab.until(DRAWN, 3)
        await tab.until(link, "live")
        for changes, said in (
            ({"gate": State.STALLED}, "stalled: gate"),
            ({"bay": State.RECONNECTING}, "reconnecting: bay"),
            ({"gate": State.RECONNECTING}, "reconnecting: gate and bay"),
            ({"yard": State.RECONNECTING}, "reconnecting: yard and 2 others"),
            ({"yard": State.FAILED}, "failed: yard"),
            ({"yard": State.ENDED, "gate": State.RUNNING, "bay": State.RUNNING}, "live, ended: yard"),
            ({"gate": State.ENDED, "bay": State.ENDED}, "ended"),
        ):
            for name, state in changes.items():
                rig.telemetries[name].enter(state)
            await tab.until(link, said)

    in_chromium(scenario)


def test_what_is_not_known_is_not_shown(make_rig, in_chromium):
    rig = make_rig()
    rig.keep_writing(size_hw=(90, 160))
    nothing = {"audit": None, "flight": None, "recording": None}
    ids = ("agreement", "warnings", "record-card", "masks", "zones-card")
    shown = f"{json.dumps(ids)}.filter(id => document.getElementById(id).checkVisibility()).join()"

    async def scenario(tab):
        for rig.made_up, rig.made_up_of in (({}, {}), (nothing, {"yard": {"drift": None}})):
            await tab.open(rig.url)
            await tab.until(DRAWN, 1)
            await tab.until("document.querySelector('#figures dd').textContent !== ''")
            assert await tab.value(shown) == ""
        rig.made_up = {"audit": AUDIT}
        await tab.until(shown, "agreement")
        assert (
            await tab.value("document.querySelector('.agreement').textContent")
            == "agreement 0.996, worst 0.95 two hours ago"
        )
        rig.made_up = {"audit": {**AUDIT, "count": 0, "values": [], "gate": None}, "flight": FLIGHT}
        await tab.until(shown, "agreement,record-card")
        await tab.until("document.querySelector('.agreement').textContent", "no frame compared yet")
        assert "three minutes ago: asked for on the page" in await tab.value(
            "document.querySelector('#flight-last').textContent"
        )
        rig.made_up = {}
        await tab.until(shown, "")

    in_chromium(scenario)


@pytest.mark.parametrize("width", [1440, 1000, 390])
def test_pictures_of_other_shapes_leave_no_holes(make_rig, in_chromium, width):
    shapes = {"wide": (180, 320), "high": (320, 180), "old": (240, 320)}
    rig = make_rig(sources=shapes)
    # Rows of pictures: of one height each, and from edge to edge.
    measured = """(() => { const rows = new Map(), place = document.querySelector('#pictures').getBoundingClientRect();
      for (const t of document.querySelectorAll('.tile')) { const r = t.getBoundingClientRect(), c =
        t.querySelector('canvas').getBoundingClientRect(); const key = Math.round(r.y);
        rows.set(key, [...(rows.get(key) ?? []), [r.x - place.x, r.right - place.x, r.height, c.height]]); }
      return [place.width, [...rows.values()]] })()"""

    async def scenario(tab):
        await tab.look_like(width, 1600)
        await tab.open(rig.url)
        for name, size_hw in shapes.items():
            rig.write(name, size_hw=size_hw)
        await tab.until(DRAWN, 3)
        whole, rows = await tab.value(measured)
        for row in rows:
            assert row[0][0] == pytest.approx(0, abs=1)
            assert row[-1][1] == pytest.approx(whole, abs=1)
            assert max(tile[2] for tile in row) - min(tile[2] for tile in row) <= 1
            assert max(tile[3] for tile in row) - min(tile[3] for tile in row) <= 2

    in_chromium(scenario)


def test_settings_of_masks_and_recordings(make_rig, in_chromium, everything):
    rig = make_rig(**everything)
    rig.keep_writing(size_hw=(90, 160))
    masks, switch = everything["masks"], everything["recording"]

    async def until(condition):
        for _ in range(400):
            if condition():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it did not come true")

    async def scenario(tab):
        await tab.look_like(1440, 1600)
        await tab.open(rig.url)
        await tab.until(DRAWN, 1)
        await tab.until("document.querySelector('#masks').checkVisibility()")
        await tab.click("#smooth input[value=strong]")
        await until(lambda: masks.settings()["smooth"] == "strong")
        await tab.click("#refine_edges")
        await until(lambda: masks.settings()["refine_edges"])
        await tab.click("#fps", 0.5)
        await until(lambda: 25 < masks.settings()["fps"] < 35)
        for on in (False, True):
            await tab.click("#record")
            await until(lambda on=on: switch.on is on)
            await tab.until("document.querySelector('#record').ariaChecked", str(on).lower())
        switch.recordings = 0
        await tab.until("document.querySelector('#record-card').checkVisibility()", False)
        # Elsewhere they cannot be changed, and the page says why.
        rig.made_up = {
            "settings": {**rig.sink._board.controls.settings(), "fps": None},
            "fixed": {"fps": "every frame is computed; start with --fps to keep a rate"},
        }
        await tab.until("document.querySelector('#fps').disabled")
        why = "document.getElementById(document.querySelector('#fps').getAttribute('aria-describedby')).textContent"
        assert await tab.value(why) == "Not in this run: every frame is computed; start with --fps to keep a rate."

    in_chromium(scenario)


def test_sources_that_join_and_leave(make_rig, in_chromium):
    rig = make_rig(sources=("yard", "gate"))
    rig.keep_writing(size_hw=(90, 160))
    names = "[...document.querySelectorAll('.tile .name')].map(n => n.textContent).join()"

    async def scenario(tab):
        await tab.open(rig.url)
        await tab.until(DRAWN, 2)
        await tab.click(".tile:nth-child(2) .picture")
        await tab.value("globalThis.gate = document.querySelectorAll('.tile')[1]")
        await asyncio.get_running_loop().run_in_executor(None, rig.close)
        # As if the run were read anew: the page is the same, and the picture that was enlarged stays so.
        other = make_rig(sources=("gate", "bay", "door"), address=f"127.0.0.1:{rig.port}")
        other.keep_writing(size_hw=(90, 160))
        await tab.until(names, "gate,bay,door")
        assert await tab.value("document.querySelectorAll('.tile')[0] === gate")
        assert await tab.value("[...document.querySelectorAll('.tile')].map(t => t.hidden).join()") == "false,true,true"
        await tab.until("document.querySelector('.figures').textContent.startsWith('gate')")
        await tab.key("Escape")
        await tab.until(DRAWN, 3)
        await tab.until("document.querySelector('#link').textContent", "live")
        assert await tab.value("document.querySelector('#toast').hidden")
        tab.problems = [problem for problem in tab.problems if "ERR_CONNECTION_REFUSED" not in problem]

    in_chromium(scenario)
