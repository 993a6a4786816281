"""What keys and fields do: most change a setting at once, some keys are commands for the window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import Protocol

from pipeline.errors import OptionError
from pipeline.frames.frame import Image
from pipeline.render.annotations import Annotations
from pipeline.render.look import GREEN_SCREEN, Color, background_color
from pipeline.render.modes import MODES, WHITE
from pipeline.render.overlay import Renderer

STEP = 0.05
"""By how much a key changes alpha or threshold."""

BACKGROUNDS: tuple[Color, ...] = (GREEN_SCREEN, WHITE, (0, 0, 0), (128, 128, 128), (200, 80, 0))
"""What the background key goes through, (b, g, r), after the one that was given: green, white, black, gray, blue."""


class Command(Enum):
    """What the window has to do for a key."""

    QUIT = auto()
    PAUSE = auto()
    STEP = auto()
    SNAPSHOT = auto()
    RECORD = auto()
    FULLSCREEN = auto()
    HELP = auto()
    REDRAW = auto()  # a setting was changed


# Upper case is not folded into lower: the low byte of the codes of the arrow keys is that of Q, R, S and T.
_COMMANDS = {
    "q": Command.QUIT,
    "\x1b": Command.QUIT,
    " ": Command.PAUSE,
    ".": Command.STEP,
    "s": Command.SNAPSHOT,
    "r": Command.RECORD,
    "f": Command.FULLSCREEN,
    "?": Command.HELP,
}


Setting = str | float | bool | None


class MaskSettings(Protocol):
    """What can be set of masks, such as ``pipeline.masks.tuning.Tuning``."""

    def settings(self) -> dict[str, Setting]:
        """By name, as they are now."""
        ...

    def fixed(self) -> dict[str, str]:
        """Those that cannot be changed in this run, and why."""
        ...

    def change(self, settings: Mapping[str, Setting]) -> None:
        """Set all of them; raises ``OptionError`` where a value is none, and then nothing is changed."""
        ...


class Controls:
    """Changes what a renderer and the annotations draw, so that every output follows.

    Args:
        renderer: its ``look`` is replaced.
        annotations: its flags are changed.
        masks: what becomes of masks before they are drawn; None: that cannot be changed.
    """

    def __init__(self, renderer: Renderer, annotations: Annotations, masks: MaskSettings | None = None) -> None:
        self._renderer = renderer
        self._annotations = annotations
        self._masks = masks
        given = renderer.look.background
        others = [color for color in BACKGROUNDS if not _same(color, given)]
        self._backgrounds: list[Color | Image] = [*others] if given is None else [given, *others]

    def press(self, code: int) -> Command | None:
        """Do what a key stands for.

        Args:
            code: as ``cv2.waitKey`` returns it; only its low byte counts. Negative: no key was pressed.

        Returns:
            What is left to the window, or None: the key means nothing.
        """
        if code < 0:
            return None
        look, annotations = self._renderer.look, self._annotations
        letter = chr(code & 0xFF)
        match letter:
            case "m":
                look = replace(look, mode=_neighbour(look.mode, 1))
            case "n" | "M":  # Qt does not tell M from m
                look = replace(look, mode=_neighbour(look.mode, -1))
            case "+" | "=" | "\xab":  # the key without shift, and the low byte of the keypad's
                look = replace(look, alpha=_share(look.alpha + STEP))
            case "-" | "\xad":
                look = replace(look, alpha=_share(look.alpha - STEP))
            case "]":
                look = replace(look, threshold=_share(look.threshold + STEP))
            case "[":
                look = replace(look, threshold=_share(look.threshold - STEP))
            case "b":
                look = replace(look, background=self._next_background())
            case "h":
                annotations.hud = not annotations.hud
            case "l":
                annotations.legend = not annotations.legend
            case _:
                return _COMMANDS.get(letter)
        self._renderer.look = look
        return Command.REDRAW

    def settings(self) -> dict[str, Setting]:
        """What `change` changes, as it is now."""
        look, annotations = self._renderer.look, self._annotations
        of_masks = {} if self._masks is None else self._masks.settings()
        return {
            "mode": look.mode,
            "alpha": look.alpha,
            "threshold": look.threshold,
            "hud": annotations.hud,
            "legend": annotations.legend,
            **of_masks,
        }

    def fixed(self) -> dict[str, str]:
        """The settings that cannot be changed in this run, and why."""
        return {} if self._masks is None else self._masks.fixed()

    def change(self, settings: Mapping[str, object]) -> None:
        """Set some of `settings` at once.

        Args:
            settings: some of those, by name; from outside, so of any type.

        Raises:
            OptionError: a name or value is none of those; then nothing is changed.
        """
        now, fixed = self.settings(), self.fixed()
        for name, value in settings.items():
            if name not in now:
                raise OptionError(f"setting: expected {', '.join(now)}, got {name!r:.60}")
            if name in fixed:
                raise OptionError(f"{name}: cannot be changed in this run: {fixed[name]}")
            # A flag counts as a number in Python, a whole number is one for alpha.
            kinds = (int, float) if isinstance(now[name], float) else (type(now[name]),)
            if type(value) not in kinds:
                raise OptionError(f"{name}: expected a value such as {now[name]!r}, got {value!r:.60}")
            now[name] = value  # type: ignore[assignment]  # checked above
        of_look = {name: now[name] for name in ("mode", "alpha", "threshold")}
        look = replace(self._renderer.look, **of_look)  # type: ignore[arg-type]
        if self._masks is not None:
            self._masks.change({name: now[name] for name in self._masks.settings()})
        self._renderer.look = look
        self._annotations.hud, self._annotations.legend = bool(now["hud"]), bool(now["legend"])

    def help_lines(self) -> list[str]:
        """One line for each key, with the values as they are now."""
        look, annotations = self._renderer.look, self._annotations
        return [
            "q Esc   quit",
            "space   pause, go on",
            ".   next frame, then pause",
            "s   snapshot",
            "r   start, end recording",
            f"m n   next, previous mode ({look.mode})",
            f"+ -   alpha ({look.alpha:.2f})",
            f"[ ]   threshold ({look.threshold:.2f})",
            "b   background of cutout and replace",
            f"h   numbers ({_on(annotations.hud)})",
            f"l   legend ({_on(annotations.legend)})",
            "f   full screen",
            "?   this help",
        ]

    def _next_background(self) -> Color | Image:
        look = self._renderer.look
        current = background_color(look) if look.background is None else look.background
        at = next((position for position, choice in enumerate(self._backgrounds) if _same(choice, current)), -1)
        return self._backgrounds[(at + 1) % len(self._backgrounds)]


def _same(one: Color | Image | None, other: Color | Image | None) -> bool:
    return one is other or (isinstance(one, tuple) and isinstance(other, tuple) and one == other)


def _neighbour(mode: str, by: int) -> str:
    modes = tuple(MODES)
    return modes[(modes.index(mode) + by) % len(modes)]


def _share(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 2)


def _on(flag: bool) -> str:
    return "on" if flag else "off"
