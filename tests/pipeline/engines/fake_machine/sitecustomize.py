"""A machine with a GPU that is none, for whole processes: with this folder on PYTHONPATH Python imports this file when it starts.

PyCUDA and TensorRT are those of ``fake_cuda`` and ``fake_tensorrt``, for every process that is started from here on. Plans are built
for real, by TensorRT-RTX in the place of TensorRT, for the fake GPU's compute capability; the program of each plan is kept beside,
for the fake runtime runs that.

EDGEMASK_FAKE is the machine's folder: "builds" gets a line for each plan. EDGEMASK_FAKE_STATE is what is wrong with the machine, and
EDGEMASK_FAKE_KILL=N ends the process and those it has started with SIGKILL, before the Nth change that it would make in the cache.
"""

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

HERE = Path(os.environ["EDGEMASK_FAKE"])
STATE = os.environ.get("EDGEMASK_FAKE_STATE", "")
KILL = int(os.environ.get("EDGEMASK_FAKE_KILL", "0"))
VERSION = {"old": "8.6.1.6"}.get(STATE, "10.3.0.30")


def fake(name):
    """``fake_gpu`` and those that stand on it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pycuda_driver():
    fake("fake_gpu").gpu.present = STATE != "no driver"
    return fake("fake_cuda").pycuda_driver()


def tensorrt():
    fake("fake_gpu")
    module = fake("fake_tensorrt")
    module.settings.profile = ((1, 1, 1, 3), (1, 720, 1280, 3), (1, 2160, 3840, 3))
    module.settings.refuse_context = STATE == "no memory"
    deserialize = module.Runtime.deserialize_cuda_engine

    def of_its_program(self, plan):
        program = HERE / hashlib.sha256(plan).hexdigest()
        return deserialize(self, program.read_bytes() if program.is_file() else plan)

    module.Runtime.deserialize_cuda_engine = of_its_program
    return module.tensorrt("tensorrt", VERSION)


def with_a_gpu(module):
    module._SIGNS = ("proc/self",)


def with_a_builder(module):
    libraries = os.environ.pop("EDGEMASK_TENSORRT_RTX_LIBS")
    Finder.hidden = ()
    real = module.load_tensorrt("tensorrt-rtx")
    os.environ["EDGEMASK_TENSORRT_RTX_LIBS"] = libraries
    Finder.hidden = HIDDEN

    class Proper(ModuleType):
        __version__ = VERSION

        def __getattr__(self, name):
            return getattr(real, name)

    proper, build_plan = Proper("tensorrt"), module.build_plan

    def told(program, options, **more):
        with open(HERE / "builds", "a") as file:
            file.write(f"{os.getpid()}\n")
        if STATE == "build fails":
            raise module.CompileError(f"TensorRT {VERSION} built no plan: Error Code 2: OutOfMemory (3221225472 bytes)")
        if STATE == "build is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        while STATE == "slow" and not (HERE / "go on").exists():
            time.sleep(0.02)
        plan = build_plan(program, options, **more)
        (HERE / hashlib.sha256(plan.content).hexdigest()).write_bytes(program)
        return plan

    module.load_tensorrt, module.build_plan = (lambda _: proper), told


MADE = {"pycuda": lambda: ModuleType("pycuda"), "pycuda.driver": pycuda_driver, "tensorrt": tensorrt}
CHANGED = {"pipeline.machine.gpu_sign": with_a_gpu, "compile.plans.tensorrt_build": with_a_builder}
LACKING = {"no TensorRT": ("tensorrt",), "no PyCUDA": ("pycuda",)}
HIDDEN = ("tensorrt_rtx_bindings", "tensorrt_rtx", "cuda", *LACKING.get(STATE, ()))


class Loader(importlib.abc.Loader):
    """Makes a module, or loads the real one and changes it."""

    def __init__(self, real=None):
        self.real = real

    def create_module(self, spec):
        if self.real is not None:
            return self.real.create_module(spec)
        made = MADE[spec.name]()
        made.__path__ = []
        return made

    def exec_module(self, module):
        if self.real is not None:
            self.real.exec_module(module)
            CHANGED[module.__name__](module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds what is faked before all others do."""

    hidden = HIDDEN

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in MADE:
            return importlib.machinery.ModuleSpec(name, Loader(), is_package=True)
        if name in CHANGED:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = Loader(spec.loader)
            return spec
        return None


def count_changes(cache):
    """Note each change in the cache, and end everything before the one that is asked for."""
    changing = {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "shutil.rmtree",
        "tempfile.mkdtemp",
        "tempfile.mkstemp",
    }

    def noticed(event, arguments):
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if (event not in changing and not writes) or not str(arguments[0]).startswith(cache):
            return
        handle = os.open(HERE / "changes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b".")
        count = os.fstat(handle).st_size
        os.close(handle)
        if count == KILL:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(noticed)


sys.meta_path.insert(0, Finder())
if "EDGEMASK_FAKE_KILL" in os.environ:
    count_changes(os.environ["EDGEMASK_CACHE"])
