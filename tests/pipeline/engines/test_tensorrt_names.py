"""What our code uses of TensorRT, PyCUDA and cuda.bindings exists there: found by walking syntax trees, since none of them runs here.

``tensorrt_names.txt`` is the project's own list, which these tests write on demand; ``pycuda_names.txt`` was checked by hand against
PyCUDA's source and cuda.bindings' wheel.
"""

import ast
import enum
import functools
import itertools
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
API = ROOT.parent / "shared" / "facts" / "tensorrt_api"
TENSORRT_NAMES, CUDA_NAMES = (Path(__file__).with_name(f"{name}_names.txt") for name in ("tensorrt", "pycuda"))
VERSIONS = ("10.3", "10.13", "10.16", "11.0", "11.2", "11.4", "rtx-1.7")
RTX = frozenset(version for version in VERSIONS if version.startswith("rtx"))
WRITE = "EDGEMASK_WRITE_NAMES=1 python -m pytest tests/pipeline/engines/test_tensorrt_names.py"
# What variables and attributes hold, with or without a leading underscore.
RUNNING = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "cache": "IRuntimeCache",
}
BUILDING = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "timing_cache": "ITimingCache",
    "layer": "ILayer",
    "inspector": "EngineInspector",
    "engine": "ICudaEngine",
    "get_input()": "ITensor",
    "get_output()": "ITensor",
}
TENSORRT_FILES = {
    "pipeline/engines/tensorrt.py": RUNNING,
    "pipeline/engines/tensorrt_layers.py": {
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "inspector": "EngineInspector",
    },
    "pipeline/engines/runtime_cache.py": {"cache": "IRuntimeCache"},
    "compile/plans/tensorrt_build.py": BUILDING,
}
# Functions that need TensorRT-RTX and are called where no branch says so.
RTX_ALONE = {"_capability"}  # for each of the compute capabilities asked for, which only TensorRT-RTX is
RTX_ALONE_FILES = {"pipeline/engines/runtime_cache.py"}
STREAMS = dict.fromkeys(("upload", "compute", "download", "stream"), "Stream")
EVENTS = dict.fromkeys(("uploaded", "computed", "downloaded"), "Event")
HERE = {
    "device": "Device",
    "_device": "DeviceAllocation",
    "context": "Context",
    "allocation": "PagelockedHostAllocation",
    "copy": "Memcpy2D",
}


class Uses(ast.NodeVisitor):
    """The names of a library that a module uses, each with the versions that it is used in.

    A branch that asks for the flavour (``rtx``, ``runtime == "tensorrt-rtx"``) or for a name (``hasattr(trt, "X")``) is run by some
    versions alone, and so is a private function that is only called in such branches.
    """

    def __init__(self, source, root, classes=None, known=None):
        self.found, self._root, self._classes, self._known = {}, root, classes or {}, known or {}
        self._reach = dict.fromkeys(RTX_ALONE, RTX)
        for _ in range(4):  # until what is called from where has settled
            self.found, self._calls, self._versions, self._hidden = {}, {}, frozenset(VERSIONS), set()
            self.visit(ast.parse(source))
            self._reach = {**self._calls, **dict.fromkeys(RTX_ALONE, RTX)}

    def _branches(self, test):
        """The versions for which a condition can be true, and those for which it can be false."""
        text, everywhere = ast.unparse(test), frozenset(VERSIONS)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._branches(test.operand)[::-1]
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            return frozenset.intersection(*(self._branches(value)[0] for value in test.values)), everywhere
        if text in ("rtx", "self._rtx", "self.rtx") or re.fullmatch(r"[\w.]*runtime == 'tensorrt-rtx'", text):
            return RTX, everywhere - RTX
        if re.fullmatch(r"[\w.]*runtime == 'tensorrt'", text):
            return everywhere - RTX, RTX
        if asked := re.fullmatch(r"hasattr\(trt(\.[\w.]+)?, '(\w+)'\)", text):
            name = f"{(asked[1] or '')[1:]}.{asked[2]}".lstrip(".")
            self._use(name, self._known.get(name, frozenset()))
            return self._known.get(name, frozenset()), everywhere - self._known.get(name, frozenset())
        return everywhere, everywhere

    def _use(self, name, versions):
        self.found[name] = self.found.get(name, frozenset()) | versions

    def _within(self, versions, nodes):
        """Visit what only some versions run; a branch that leaves its block keeps them from what comes after it."""
        before, self._versions = self._versions, self._versions & versions
        for node in nodes:
            self.visit(node)
            if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Return | ast.Raise | ast.Continue):
                self._versions &= self._branches(node.test)[1]
        self._versions = before

    def visit_If(self, node):
        true, false = self._branches(node.test)
        self.visit(node.test)
        self._within(true, node.body if isinstance(node.body, list) else [node.body])
        self._within(false, node.orelse if isinstance(node.orelse, list) else [node.orelse])

    def visit_IfExp(self, node):
        self.visit_If(node)

    def visit_FunctionDef(self, node):
        private = node.name.startswith("_") and not node.name.startswith("__")
        reach = self._reach.get(node.name, frozenset(VERSIONS)) if private else frozenset(VERSIONS)
        self._within(RTX if "rtx" in node.name else reach, [*node.decorator_list, node.args, *node.body])

    def visit_ClassDef(self, node):
        for base in node.bases:
            if ast.unparse(base).startswith(f"{self._root}."):
                own = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                for name in own:
                    if not name.startswith("_"):
                        self._use(f"{ast.unparse(base).removeprefix(f'{self._root}.')}.{name}", self._versions)
        self.generic_visit(node)

    def visit_ExceptHandler(self, node):
        self._hidden.add(node.name)
        self.generic_visit(node)
        self._hidden.discard(node.name)

    def visit_Call(self, node):
        name = ast.unparse(node.func).removeprefix("self.")
        self._calls[name] = self._calls.get(name, frozenset()) | self._versions
        self.generic_visit(node)

    def visit_Attribute(self, node):
        text = ast.unparse(node)
        if re.fullmatch(rf"{self._root}(\.\w+)+", text):
            name = ".".join(itertools.takewhile(lambda part: not part.startswith("__"), text.split(".")[1:]))
            if name:
                self._use(name, self._versions)
            return
        holder = node.value
        if isinstance(holder, ast.Call) and isinstance(holder.func, ast.Attribute):
            key = f"{holder.func.attr}()"
        else:
            key = getattr(holder, "id", getattr(holder, "attr", ""))
            key = key if key in self._classes else key.lstrip("_")
        if key in self._classes and key not in self._hidden:
            self._use(f"{self._classes[key]}.{node.attr}", self._versions)
        self.generic_visit(node)


def listed(path):
    """A list of names: each with what stands after it on its line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.split()[0]: frozenset(line.split()[1:]) for line in lines if line and not line.startswith("#")}


@functools.cache
def published():
    """All public names of TensorRT with the versions that have them."""
    if not API.is_dir():
        pytest.skip("the lists of TensorRT's public names are not beside the project")
    names = {}
    for version in VERSIONS:
        for line in (API / f"{version}.txt").read_text(encoding="utf-8").split():
            names[line] = names.get(line, frozenset()) | {version}
    return names


def tensorrt_uses(known):
    """``{(file, name): versions}``: what our code uses of TensorRT in which versions."""
    files = {
        path.relative_to(ROOT).as_posix(): path
        for room in ("pipeline", "compile")
        for path in (ROOT / room).rglob("*.py")
    }
    used = {}
    for name, path in files.items():
        source = path.read_text(encoding="utf-8")
        if "trt." not in source and name not in TENSORRT_FILES:
            continue
        uses = Uses(source, "trt", TENSORRT_FILES.get(name), known)
        alone = RTX if name in RTX_ALONE_FILES else frozenset(VERSIONS)
        used.update({(name, use): versions & alone for use, versions in uses.found.items()})
    return used


def fake_names(module):
    """The public names of a fake module, and those of its classes."""
    for name, member in vars(module).items():
        if not name.startswith("_"):
            yield name
            if isinstance(member, type):
                kinds = member.__members__ if issubclass(member, enum.Enum) else vars(member)
                own = {
                    inner for base in member.__mro__[:-1] for inner in vars(base) if base.__module__.startswith("fake")
                }
                public = sorted(kinds if issubclass(member, enum.Enum) else own)
                yield from (f"{name}.{inner}" for inner in public if not inner.startswith("_"))


def known_or_told(known):
    absent = {
        f"{file}: {name} in {', '.join(sorted(versions - known.get(name, frozenset())))}"
        for (file, name), versions in tensorrt_uses(known).items()
        if versions - known.get(name, frozenset())
    }
    assert not absent, f"names that TensorRT does not have, or that are not listed (list them with: {WRITE})"


def test_names_of_tensorrt_in_the_projects_own_list_are_those_that_are_used(fake_machine):
    used = {name for _, name in tensorrt_uses(published())}
    faked = {
        name
        for runtime in ("tensorrt", "tensorrt-rtx")
        for name in fake_names(fake_machine.tensorrt.tensorrt(runtime, "0"))
    }
    right = {name: [version for version in VERSIONS if version in published().get(name, ())] for name in used | faked}
    lines = [f"{name} {' '.join(versions)}" for name, versions in sorted(right.items())]
    if os.environ.get("EDGEMASK_WRITE_NAMES"):
        head = f"# What our code and its fakes use of TensorRT, and the versions that have it. Written by:\n# {WRITE}\n"
        TENSORRT_NAMES.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    old = [line for line in TENSORRT_NAMES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert old == lines, f"write the list again with: {WRITE}"


def test_names_of_tensorrt_that_are_used_exist_in_every_version():
    known_or_told(published())


def test_names_of_tensorrt_that_are_used_are_in_the_projects_own_list():
    known_or_told(listed(TENSORRT_NAMES))


def test_names_of_the_fake_tensorrt_are_real(fake_machine):
    known = listed(TENSORRT_NAMES)
    for runtime, version in (("tensorrt", "10.3"), ("tensorrt-rtx", "rtx-1.7")):
        names = set(fake_names(fake_machine.tensorrt.tensorrt(runtime, "0")))
        assert {"Runtime.deserialize_cuda_engine", "TensorIOMode.INPUT"} <= names
        assert not {name for name in names if version not in known.get(name, ())}


def test_names_of_cuda_that_are_used_or_faked_are_real(fake_machine):
    folder, known = ROOT / "pipeline" / "engines", set(listed(CUDA_NAMES))
    used = {
        *Uses((folder / "cuda_device.py").read_text(encoding="utf-8"), "cuda", HERE).found,
        *Uses((folder / "tensorrt.py").read_text(encoding="utf-8"), "cuda", {**STREAMS, **EVENTS}).found,
        *fake_names(sys.modules["pycuda.driver"]),
    }
    graphs = {
        *Uses((folder / "cuda_graph.py").read_text(encoding="utf-8"), "driver").found,
        *fake_names(sys.modules["cuda.bindings.driver"]),
    }
    assert {"Device.retain_primary_context", "Stream.wait_for_event", "Event.record", "memcpy_htod_async"} <= used
    assert {"cuGraphLaunch", "CUresult.CUDA_SUCCESS"} <= graphs
    real = {f"pycuda.driver.{name}" for name in used} | {f"cuda.bindings.driver.{name}" for name in graphs}
    assert sorted(real - known) == []
    assert sorted(known - real) == []  # and nothing is listed that nobody needs


def test_names_behind_a_check_are_needed_where_it_is_true():
    source = """
class Monitor(trt.Base):
    def step(self): ...

def everywhere(trt, runtime, rtx):
    trt.A.B.__members__
    self._engine.c()
    if self.runtime == "tensorrt-rtx":
        trt.D
        _private()
    else:
        trt.E
    f = trt.F if rtx else trt.G
    if hasattr(trt.H, "I"):
        trt.J
    try: ...
    except Error as engine:
        engine.strerror
    if not rtx:
        return trt.K
    trt.L

def _private():
    trt.M

def load_rtx():
    trt.N
"""
    proper, everywhere, later = frozenset(VERSIONS) - RTX, frozenset(VERSIONS), frozenset(VERSIONS[3:6])
    assert Uses(source, "trt", {"engine": "ICudaEngine"}, {"H.I": later}).found == {
        "Base": everywhere,
        "Base.step": everywhere,
        "A.B": everywhere,
        "ICudaEngine.c": everywhere,
        "H": everywhere,
        "D": RTX,
        "E": proper,
        "F": RTX,
        "G": proper,
        "H.I": later,
        "J": later,
        "K": proper,
        "L": RTX,
        "M": RTX,
        "N": RTX,
    }
