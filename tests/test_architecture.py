"""Who may import whom. The picture is in docs/architecture.md."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).parents[1]
PACKAGES = {  # package: the packages that it may import
    "edgemask": {"pipeline", "calibration", "compile", "benchmarks"},
    "pipeline": set(),
    "calibration": {"pipeline"},
    "compile": {"pipeline", "calibration"},
    "benchmarks": {"pipeline", "calibration", "compile"},
}
# The rooms of a package from the ground up: each may import those of the floors below its own.
FLOORS = {
    "pipeline": (
        {"quick_dataclass", "process_end"},
        {
            "errors",
            "redaction",
            "signals",
            "early_interrupt",
            "version",
            "terminal",
            "own_process",
            "machine",
            "stages",
            "shapes",
        },
        {"frames", "yaml_file", "registry", "early_libraries"},
        {"bundles", "sources"},
        {"engines", "bundle"},
        {"render", "builds"},
        {"results"},
        {"masks", "sinks"},
        {"flow", "page", "events"},
        {"drift"},
        {"audit"},
        {"flight"},
        {"command", "model"},
        {"doctor", "corpus", "replay"},
    ),
    "calibration": ({"inference_form", "metrics", "sets"}, {"int8"}, {"options"}),
    "compile": (
        {"networks", "proof", "draft"},
        {"options", "timing", "inspect"},
        {"program"},
        {"plans", "contract"},
        {"steps"},
        {"build"},
        {"published"},
    ),
    "benchmarks": ({"readme", "shared"}, {"gpu"}, {"peers"}, {"questions", "fps"}),
}
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "cv2",
    "av",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "aiohttp",
    "prometheus_client",
    "paho",
    "pynvml",
    "ray",
    "tritonclient",
    "grpc",
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


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package):
    assert modules(package)
    for file in modules(package):
        packages = {name for name, _ in imports(file)} & PACKAGES.keys()
        assert packages - {package} <= PACKAGES[package], file.relative_to(ROOT)


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_downwards_only(package):
    rooms, arrows = house.rooms_and_arrows(ROOT, package)
    floor = {room: number for number, rooms_there in enumerate(FLOORS[package]) for room in rooms_there}
    assert rooms <= floor.keys(), "a room has no floor here"
    for here, there in sorted(arrows):
        assert floor[there] < floor[here], f"{package}.{here} imports {package}.{there}"


@pytest.mark.parametrize("package", FLOORS)
def test_there_are_no_circles(package):
    circles, _ = house.circles_and_floors(*house.rooms_and_arrows(ROOT, package))
    assert circles == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_says_what_lives_there(package):
    for file in (ROOT / package).rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert docstring, file.relative_to(ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_long_functions_have_a_reason(package):
    unexplained = [row for row in house.heavy_functions(ROOT, package) if not row[-1]]
    assert unexplained == []


@pytest.mark.parametrize("package", PACKAGES)
def test_what_argparse_gives_ends_at_the_command_line(package):
    reads_them = {"compile/networks/weights_file.py"}  # checkpoints hold the arguments of their training run
    assert set(house.namespaces(ROOT, package)) <= reads_them


@pytest.mark.parametrize("room", PACKAGES)
def test_compile_is_never_imported_as_a_name(room):
    for file in modules(room):
        for package, node in imports(file):
            assert not (package == "compile" and isinstance(node, ast.Import)), f"{file}:{node.lineno} hides a builtin"


@pytest.mark.parametrize("room", PACKAGES)
def test_module_names_say_their_subject(room):
    for file in modules(room):
        assert file.stem not in FORBIDDEN_NAMES, file
        assert file.stem not in sys.stdlib_module_names or file.stem.startswith("__"), file


@pytest.mark.parametrize(
    "package",
    [
        "edgemask",
        "pipeline",
        "calibration",
        "compile",
        "pipeline.engines",
        "pipeline.page",
        "pipeline.command.options",
        "pipeline.corpus.options",
        "compile.options",
        "compile.networks.zoo",
    ],
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
        assert not packages & {"torch", "onnx", "calibration", "compile"} - allowed, file


@pytest.mark.parametrize(
    ("package", "owner"),
    [
        ("pycuda", "pipeline/engines/cuda_device.py"),
        ("cuda", "pipeline/engines/cuda_graph.py"),
        ("torch", "pipeline/engines/torch_tensorrt.py"),
        ("ray", "pipeline/corpus/on_ray.py"),
    ],
)
def test_one_file_of_the_run_half_imports_it(package, owner):
    assert [file for file in modules("pipeline") if package in {name for name, _ in imports(file)}] == [ROOT / owner]


def test_little_knows_ray():
    """A corpus goes on without it, and another engine of its kind must be as easy to bring to."""
    text = (ROOT / "pipeline" / "corpus" / "on_ray.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for package in PACKAGES:
        for file in modules(package):
            imported = {
                name.split(".")[0] for name in house.imported_modules(ast.parse(file.read_text(encoding="utf-8")))
            }
            assert "ray" not in imported or file.name == "on_ray.py", file


def test_only_what_is_for_servers_knows_their_client():
    owners = {
        *(f"pipeline/engines/triton_{name}.py" for name in ("errors", "server")),
        "compile/plans/triton_repository.py",
        "benchmarks/shared/tritonserver.py",
    }
    known = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in modules(package)
        if {"tritonclient", "google", "grpc"} & {name for name, _ in imports(file)}
    }
    assert known == owners


def test_one_backend_knows_what_is_for_servers():
    rooms = {file: set(house.imported_modules(ast.parse(file.read_text()))) for file in modules("pipeline")}
    known = {file.stem for file, names in rooms.items() if any("engines.triton" in name for name in names)}
    assert {name for name in known if not name.startswith("triton")} == set()


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
