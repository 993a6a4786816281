import numpy as np
import pytest

from pipeline.bundles.bundle import Manifest
from pipeline.errors import OptionError
from pipeline.render.annotations import Annotations
from pipeline.render.controls import BACKGROUNDS, Command, Controls
from pipeline.render.look import GREEN_SCREEN, Look
from pipeline.render.modes import MODES, WHITE
from pipeline.render.overlay import Renderer

NAMES = tuple(MODES)


def make(look=None):
    renderer = Renderer(look or Look(), "binary")
    manifest = Manifest("u2netp", "binary", ("subject",), (32, 32), "fp32", {}, {}, {}, "")
    annotations = Annotations(manifest, "none", renderer, hud=False, legend=False)
    return Controls(renderer, annotations), renderer, annotations


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("q", Command.QUIT),
        ("\x1b", Command.QUIT),
        (" ", Command.PAUSE),
        (".", Command.STEP),
        ("s", Command.SNAPSHOT),
        ("r", Command.RECORD),
        ("f", Command.FULLSCREEN),
        ("?", Command.HELP),
    ],
)
def test_commands_change_no_setting(key, command):
    controls, renderer, _ = make()
    look = renderer.look
    assert controls.press(ord(key)) is command
    assert renderer.look is look


@pytest.mark.parametrize("code", [-1, 255, ord("x"), ord("\r"), 0xE1, 0xFF51, 0xFF52, 0xFF53, 0xFF54, 0xFFFF])
def test_no_key_unknown_keys_shift_and_arrows_mean_nothing(code):
    controls, renderer, _ = make()
    look = renderer.look
    assert controls.press(code) is None
    assert renderer.look is look


def test_only_the_low_byte_counts():
    controls, _, _ = make()
    assert controls.press(0x100000 | ord("q")) is Command.QUIT  # GTK adds modifiers above
    assert controls.press(0xFF1B) is Command.QUIT


def test_modes_go_round_both_ways():
    controls, renderer, _ = make()
    seen = []
    for _ in NAMES:
        assert controls.press(ord("m")) is Command.REDRAW
        seen.append(renderer.look.mode)
    assert seen == [*NAMES[1:], NAMES[0]]
    controls.press(ord("n"))
    assert renderer.look.mode == NAMES[-1]
    controls.press(ord("M"))
    assert renderer.look.mode == NAMES[-2]


@pytest.mark.parametrize("key", ["+", "=", "\xab"])
def test_alpha_rises_to_one(key):
    controls, renderer, _ = make(Look(alpha=0.87))
    values = []
    for _ in range(4):
        controls.press(ord(key))
        values.append(renderer.look.alpha)
    assert values == [0.92, 0.97, 1.0, 1.0]


@pytest.mark.parametrize("key", ["-", "\xad"])
def test_alpha_falls_to_zero(key):
    controls, renderer, _ = make(Look(alpha=0.1))
    for _ in range(3):
        controls.press(ord(key))
    assert renderer.look.alpha == 0.0


def test_threshold():
    controls, renderer, _ = make(Look(threshold=0.5))
    controls.press(ord("]"))
    assert renderer.look.threshold == 0.55
    for _ in range(20):
        controls.press(ord("["))
    assert renderer.look.threshold == 0.0
    for _ in range(30):
        controls.press(ord("]"))
    assert renderer.look.threshold == 1.0
    assert renderer.look.alpha == 0.5


@pytest.mark.parametrize(("mode", "default"), [("cutout", GREEN_SCREEN), ("replace", WHITE)])
def test_every_press_shows_another_background(mode, default):
    controls, renderer, _ = make(Look(mode))
    shown = [default]
    for _ in BACKGROUNDS:
        controls.press(ord("b"))
        shown.append(renderer.look.background)
    assert len(set(shown[:-1])) == len(BACKGROUNDS)
    assert shown[-1] == default


def test_given_picture_comes_round_again():
    picture = np.full((4, 4, 3), 7, np.uint8)
    controls, renderer, _ = make(Look("replace", background=picture))
    given = renderer.look.background
    for color in BACKGROUNDS:
        controls.press(ord("b"))
        assert renderer.look.background == color
    controls.press(ord("b"))
    assert renderer.look.background is given


def test_given_colour_is_not_shown_twice():
    controls, renderer, _ = make(Look("replace", background=WHITE))
    shown = []
    for _ in BACKGROUNDS:
        controls.press(ord("b"))
        shown.append(renderer.look.background)
    assert sorted(shown) == sorted(BACKGROUNDS)
    assert shown[-1] == WHITE


def test_numbers_and_legend():
    controls, _, annotations = make()
    assert controls.press(ord("h")) is Command.REDRAW
    assert (annotations.hud, annotations.legend) == (True, False)
    assert controls.press(ord("l")) is Command.REDRAW
    assert (annotations.hud, annotations.legend) == (True, True)
    controls.press(ord("h"))
    assert (annotations.hud, annotations.legend) == (False, True)


def test_help_names_every_key_and_the_values_now():
    controls, _, _ = make()
    named = {key for line in controls.help_lines() for key in line.split("   ")[0].split(" ")}
    pressed = {key for key in map(chr, range(33, 127)) if make()[0].press(ord(key)) is not None}
    assert pressed - {"=", "M"} == named - {"Esc", "space"}
    controls.press(ord("+"))
    controls.press(ord("m"))
    controls.press(ord("h"))
    text = "\n".join(controls.help_lines())
    assert "alpha (0.55)" in text
    assert f"mode ({NAMES[1]})" in text
    assert "numbers (on)" in text
    assert "legend (off)" in text


def test_settings_are_changed_by_name():
    controls, renderer, annotations = make()
    controls.change({"mode": "blur", "alpha": 1, "hud": True})
    assert (renderer.look.mode, renderer.look.alpha, renderer.look.threshold) == ("blur", 1, 0.5)
    assert (annotations.hud, annotations.legend) == (True, False)
    assert controls.settings() == {"mode": "blur", "alpha": 1, "threshold": 0.5, "hud": True, "legend": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "x"}, "setting: expected mode, alpha, threshold, hud, legend, got 'model'"),
        ({"alpha": "0.5"}, "alpha: expected a value such as 0.5, got '0.5'"),
        ({"alpha": True}, "alpha: expected a value such as 0.5, got True"),
        ({"alpha": float("nan")}, "alpha: expected 0 to 1"),
        ({"threshold": 10**400}, "threshold: expected 0 to 1"),
        ({"hud": 1}, "hud: expected a value such as False, got 1"),
        ({"mode": ["blur"]}, "mode: expected a value such as 'overlay'"),
        ({"mode": "blurr"}, "did you mean 'blur'"),
    ],
)
def test_a_wrong_setting_changes_nothing(settings, message):
    controls, renderer, annotations = make()
    look = renderer.look
    with pytest.raises(OptionError, match=message):
        controls.change({"legend": True, **settings})
    assert renderer.look is look
    assert not annotations.legend
