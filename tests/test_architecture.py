"""Who may import whom. The picture is in docs/architecture.md."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {  # room: the rooms that it may import
    "pipeline": set(),
    "models": set(),
    "calibration": {"pipeline"},
    "compile": {"pipeline", "models", "calibration"},
    "benchmarks": {"pipeline", "models", "calibration", "compile"},
}
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "cv2",
    "av",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "aiohttp",
    "prometheus_client",
    "pynvml",
)
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "core", "misc"}


def modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def imports(file):
    """(top-level package, line, inside a function or a type-checking block) of every import."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield (node.module or "").split(".")[0], node


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards_only(room):
    assert modules(room)
    for file in modules(room):
        rooms = {package for package, _ in imports(file)} & ROOMS.keys()
        assert rooms - {room} <= ROOMS[room], file.relative_to(ROOT)


@pytest.mark.parametrize("room", ROOMS)
def test_compile_is_never_imported_as_a_name(room):
    for file in modules(room):
        for package, node in imports(file):
            assert not (package == "compile" and isinstance(node, ast.Import)), f"{file}:{node.lineno} hides a builtin"


@pytest.mark.parametrize("room", ROOMS)
def test_module_names_say_their_subject(room):
    for file in modules(room):
        assert file.stem not in FORBIDDEN_NAMES, file
        assert file.stem not in sys.stdlib_module_names or file.stem.startswith("__"), file


@pytest.mark.parametrize(
    "package",
    ["pipeline", "models", "calibration", "compile", "pipeline.engines", "pipeline.page", "compile.networks.zoo"],
)
def test_importing_a_room_loads_no_heavy_package(package):
    code = (
        f"import importlib, sys; importlib.import_module({package!r}); print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_run_half_never_loads_torch():
    for file in modules("pipeline"):
        packages = {package for package, _ in imports(file)}
        allowed = {"torch"} if file == ROOT / "pipeline" / "engines" / "torch_tensorrt.py" else set()
        assert not packages & {"torch", "onnx", "models", "compile"} - allowed, file


@pytest.mark.parametrize(
    ("package", "owner"),
    [
        ("pycuda", "pipeline/engines/cuda_device.py"),
        ("cuda", "pipeline/engines/cuda_graph.py"),
        ("torch", "pipeline/engines/torch_tensorrt.py"),
    ],
)
def test_one_file_of_the_run_half_imports_it(package, owner):
    assert [file for file in modules("pipeline") if package in {name for name, _ in imports(file)}] == [ROOT / owner]


REGISTRIES = [
    "engines.kinds.ENGINES",
    "sources.kinds.SOURCES",
    "sinks.kinds.SINKS",
    "render.modes.MODES",
]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_declarations_name_what_exists(registry):
    module_name, _, name = f"pipeline.{registry}".rpartition(".")
    rows = getattr(importlib.import_module(module_name), name)
    extras = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert rows.own
    for row in rows.own.values():  # read, not imported: their packages need not be here
        tree = ast.parse((ROOT / row.module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
        assert row.opens in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        assert row.help
        assert set(filter(None, row.extra.split(","))) <= extras


def test_public_names_exist():
    pipeline = importlib.import_module("pipeline")
    assert sorted(pipeline.__all__, key=str.lower) == sorted(set(pipeline.__all__), key=str.lower)
    for name in pipeline.__all__:
        assert hasattr(pipeline, name), name
