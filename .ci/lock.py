"""Compares the lock file with what is installed: `lock.py constraints [MORE…]` is for `make lock`, `lock.py difference` for CI."""

import platform
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[1] / "requirements.lock"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\]+))?")


def installed():
    """Versions by name, without what a build adds to them ("+cpu")."""
    return {
        canonicalize_name(one.metadata["Name"]): one.version.partition("+")[0]
        for one in distributions()
        if one.metadata["Name"] != "edgemask"
    }


def locked(text):
    """Versions by name that a lock file has for this Python and system."""
    pins = (_PIN.match(line) for line in text.splitlines())
    return {
        canonicalize_name(pin["name"]): pin["version"]
        for pin in pins
        if pin and (pin["marker"] is None or Marker(pin["marker"].strip()).evaluate())
    }


def constraints(more):
    """Lines that hold a resolver to what is installed, for this Python alone: another may lack those versions."""
    full = platform.python_version()
    mine = f"python_full_version >= '{full}' and python_version == '{full.rpartition('.')[0]}'"
    apart = {re.split("[=<>]", one)[0] for one in more}
    return [*more, *(f"{name}=={version} ; {mine}" for name, version in installed().items() if name not in apart)]


def difference(lock, here):
    """In one line, which of a lock file's packages are here in another version, or not at all."""
    others = [
        f"{name} {here.get(name, 'missing')} ({lock[name]})" for name in sorted(lock) if here.get(name) != lock[name]
    ]
    if not others:
        return f"ran against the {len(lock)} versions of requirements.lock"
    return f"ran against requirements.lock but for {len(others)} of {len(lock)}, with the lock's version: {', '.join(others)}"


if __name__ == "__main__":
    if sys.argv[1] == "constraints":
        print("\n".join(constraints(sys.argv[2:])))
    else:
        print(difference(locked(LOCK.read_text(encoding="utf-8")), installed()))
