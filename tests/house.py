"""Measures the house: `python tests/house.py [ROOT]` prints rooms, floors, arrows, circles, long functions and lines of code.

A room is a folder or a loose module of a top-level package; an arrow is an import between two rooms, wherever it stands in a file.
Rooms that import each other in a circle count as one when floors are counted.
"""

import ast
import json
import sys
from pathlib import Path

PACKAGES = ("edgemask", "pipeline", "calibration", "compile", "benchmarks", "models")
MOST_PARAMETERS = 7
MOST_LINES = 60
COMMAND_LINES = ("options.py", "command_line.py", "__main__.py")
REASONS = ("# Long:", "# Many parameters:")


def sources(root, package):
    return sorted(path for path in (root / package).rglob("*.py"))


def room_of(module):
    """("pipeline", "frames") of "pipeline.frames.frame"; the package's own ``__init__`` is no room."""
    return tuple(module.split(".")[:2])


def imported_modules(tree):
    """Dotted names of what a file imports, with the name after the module, which may be a module too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_and_arrows(root, package):
    """The rooms of a package, and (room, room it imports) pairs."""
    rooms = {path.relative_to(root).with_suffix("").parts[1] for path in sources(root, package)}
    rooms -= {"__init__", "__main__"}
    arrows = set()
    for path in sources(root, package):
        here = path.relative_to(root).with_suffix("").parts[1]
        if here not in rooms:
            continue
        for name in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            there = room_of(name)
            if len(there) == 2 and there[0] == package and there[1] in rooms and there[1] != here:
                arrows.add((here, there[1]))
    return rooms, arrows


def circles_and_floors(rooms, arrows):
    """Groups of rooms that import each other, and each room's floor: 0 where it imports none."""
    below = {room: {there for here, there in arrows if here == room} for room in rooms}
    reach = {room: _reachable(room, below) for room in rooms}
    group = {room: frozenset(other for other in reach[room] if room in reach[other]) | {room} for room in rooms}
    floors = {}

    def floor(members):
        if members not in floors:
            under = {group[there] for room in members for there in below[room]} - {members}
            floors[members] = 1 + max((floor(other) for other in under), default=-1)
        return floors[members]

    return (
        sorted(sorted(members) for members in set(group.values()) if len(members) > 1),
        {room: floor(group[room]) for room in rooms},
    )


def _reachable(room, below):
    seen, left = set(), [room]
    while left:
        for there in below[left.pop()]:
            if there not in seen:
                seen.add(there)
                left.append(there)
    return seen


def heavy_functions(root, package):
    """(file:line, name, parameters, lines without its docstring, whether a reason stands beside it) of those above the limits."""
    for path in sources(root, package):
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                length = node.end_lineno - node.lineno + 1
                first = node.body[0]
                if ast.get_docstring(node) is not None:
                    length -= first.end_lineno - first.lineno + 1
                if count > MOST_PARAMETERS or length > MOST_LINES:
                    beside = "\n".join(lines[max(0, node.lineno - 4) : node.body[0].end_lineno + 4])
                    place = f"{path.relative_to(root)}:{node.lineno}"
                    yield place, node.name, count, length, any(reason in beside for reason in REASONS)


def namespaces(root, package):
    """Files outside the command line that use ``argparse.Namespace``."""
    return [
        str(path.relative_to(root))
        for path in sources(root, package)
        if path.name not in COMMAND_LINES
        and any(
            getattr(node, "attr", getattr(node, "id", "")) == "Namespace"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Attribute, ast.Name))
        )
    ]


def measure(root):
    """Everything as one dictionary."""
    result = {}
    for package in PACKAGES:
        if not sources(root, package):
            continue
        rooms, arrows = rooms_and_arrows(root, package)
        circles, floors = circles_and_floors(rooms, arrows)
        result[package] = {
            "rooms": len(rooms),
            "floors": max(floors.values(), default=0) + 1,
            "arrows": len(arrows),
            "circles": circles,
            "above the limits": [list(row) for row in heavy_functions(root, package)],
            "Namespace outside the command line": namespaces(root, package),
            "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root, package)),
        }
    result["lines of product code"] = sum(entry["lines"] for entry in result.values())
    return result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()), indent=1) + "\n")
