"""Whether a window can be shown here, found out without risking the process.

OpenCV's Qt windows end the whole process (SIGABRT) when the display does not answer, which no ``except`` catches. So a short
child process opens a window first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import cv2

# A remote display over a slow line takes a second or two; one that swallows the connection never answers.
_TIMEOUT_S = 10.0

# Without a core file, should it abort. Windows has no such limits.
_PROOF = """
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
import cv2
cv2.namedWindow("edgemask", cv2.WINDOW_NORMAL)
cv2.waitKey(1)
cv2.destroyAllWindows()
"""

# Qt's words, then GTK's.
_NO_ANSWER = re.compile("could not connect to display|cannot open display|can't initialize gtk backend", re.IGNORECASE)
_NO_WINDOWS = "this OpenCV was built without windows: pip install opencv-python"


def display_problem() -> str | None:
    """Why no window can be shown, in one short phrase; None when one can.

    It takes up to a second where there is a display, as a child process imports OpenCV and opens a window, and no time where
    there is none.
    """
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not display and sys.platform not in ("win32", "darwin"):
        return "DISPLAY and WAYLAND_DISPLAY are not set"
    if re.search(r"^\s*GUI:\s+NONE\s*$", cv2.getBuildInformation(), re.MULTILINE):
        return _NO_WINDOWS
    try:
        child = subprocess.run(
            [sys.executable or "python3", "-c", _PROOF],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"display {display} does not answer" if display else f"no window appeared within {_TIMEOUT_S:g} s"
    except OSError as error:
        return f"the window system failed: {error.strerror or error}"
    if child.returncode == 0:
        return None
    return _reason(child.returncode, child.stderr.decode(errors="replace"), display)


def _reason(status: int, output: str, display: str | None) -> str:
    """The phrase for a child process that ended with another status than 0."""
    if "The function is not implemented" in output:  # OpenCV's own words in a build without windows
        return _NO_WINDOWS
    if _NO_ANSWER.search(output):
        if not os.environ.get("DISPLAY"):
            return "DISPLAY is not set, and this OpenCV needs an X server"
        return f"display {display} does not answer"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return f"the window system failed: exit status {status}"
    # The reason is the last line of Python's traceback, but the first of what a window system complains about.
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return f"the window system failed: {line[:120]}"
