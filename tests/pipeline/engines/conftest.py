"""What the tests of the TensorRT engines share: a machine with a GPU that is none, and bundles with plans for it."""

import contextlib
import dataclasses
import gc
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines import open_engine, tensorrt_library
from tests.fakes.cuda_decoder import CudaDecoder, OnFakeGpu

BT709 = {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709:range=tv"}
VERSIONS = {"tensorrt": "10.3.0.30", "tensorrt-rtx": "1.7.1.116"}
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_FAKES = ("fake_gpu", "fake_cuda", "fake_cuda_graph", "fake_tensorrt")
_OURS = tuple(f"pipeline.engines.{name}" for name in ("tensorrt", "cuda_device", "cuda_graph"))


class FakeMachine:
    """A GPU and both flavours of TensorRT, none of them real.

    Attributes:
        gpu: ``fake_gpu.Gpu``.
        settings: ``fake_tensorrt.Settings``.
        cuda: the module ``fake_cuda``.
        tensorrt: the module ``fake_tensorrt``.
    """

    def __init__(self, fakes):
        self.cuda, self.tensorrt = fakes["fake_cuda"], fakes["fake_tensorrt"]
        self.gpu, self.settings = fakes["fake_gpu"].gpu, self.tensorrt.settings

    def install(self, runtime, version=None):
        """Put a flavour of TensorRT where our code looks for it, in place of the other."""
        _forget_ours()
        for name in _MODULES.values():
            sys.modules[name] = None
        version = VERSIONS[runtime] if version is None else version
        sys.modules[_MODULES[runtime]] = self.tensorrt.tensorrt(runtime, version)

    def held(self):
        """What was made and not given back, by kind."""
        if any(self.gpu.alive.values()):
            gc.collect()  # exceptions that a test caught hold what was in their frames
        return {kind: count for kind, count in self.gpu.alive.items() if count}

    def check(self):
        """Refuse faults and leaks."""
        assert self.held() == {}
        assert self.gpu.faults == []
        assert not any(self.gpu.stacks.values()), "a context was pushed and not popped"


@pytest.fixture
def fake_machine(monkeypatch):
    """A machine with a fake GPU; at the end of the test nothing may be left on it."""
    with _modules_restored((*_FAKES, *_OURS, *_MODULES.values(), "cuda", "cuda.bindings", "cuda.bindings.driver")):
        fakes = {name: _load(name) for name in _FAKES}
        for name in ("pycuda", "cuda", "cuda.bindings"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for name, made in (
            ("pycuda.driver", fakes["fake_cuda"].pycuda_driver()),
            ("cuda.bindings.driver", fakes["fake_cuda_graph"].cuda_bindings_driver()),
        ):
            parent, _, last = name.rpartition(".")
            monkeypatch.setitem(sys.modules, name, made)
            setattr(sys.modules[parent], last, made)
        monkeypatch.setattr(tensorrt_library, "_libraries_folder", lambda: None)
        machine = FakeMachine(fakes)
        machine.install("tensorrt")
        yield machine
        machine.check()


@pytest.fixture
def add_plan(tmp_path, fake_machine):
    """``add_plan(bundle, "tensorrt", program=b"…", sms=[86], …)``: a copy of a bundle with a plan, which is its program."""

    def add(bundle, runtime, *, program=None, name="planned", **entry):
        settings = fake_machine.settings
        if bundle.manifest.pixels == "nv12" and settings.profile == type(settings)().profile:
            settings.profile = ((1, 3, 2), (1, 96, 64), (8, 768, 512))
        return with_plan(bundle, tmp_path / name, runtime, program, profile=fake_machine.settings.profile, **entry)

    return add


@pytest.fixture(scope="session")
def nv12_bundle(red_bundle, tmp_path_factory):
    """A bundle of NV12 that composes: the real conversion, before a program whose mask is the red channel."""
    pytest.importorskip("torch")
    from compile.program.compose import with_views
    from compile.program.nv12 import with_nv12

    program = with_nv12(with_views(red_bundle.program_path.read_bytes(), None, "nv12"), None)
    manifest = dataclasses.replace(red_bundle.manifest, pixels="nv12", composes=True, views="nv12")
    return Bundle.write(tmp_path_factory.mktemp("bundles") / "nv12", manifest, {PROGRAM_NAME: program})


@pytest.fixture(scope="session")
def nv12_masks_bundle(red_bundle, tmp_path_factory):
    """The same without views."""
    pytest.importorskip("torch")
    from compile.program.nv12 import with_nv12

    program = with_nv12(red_bundle.program_path.read_bytes(), None)
    manifest = dataclasses.replace(red_bundle.manifest, pixels="nv12")
    return Bundle.write(tmp_path_factory.mktemp("bundles") / "nv12-masks", manifest, {PROGRAM_NAME: program})


@pytest.fixture
def decoder(fake_machine, monkeypatch):
    """A machine whose GPU also decodes (``tests.fakes.cuda_decoder``)."""
    made = CudaDecoder(OnFakeGpu(fake_machine))
    made.install(monkeypatch)
    return made


@pytest.fixture
def clip(tmp_path, write_video, red_images):
    """The path of a video that can stay on the GPU."""
    return str(write_video(tmp_path / "clip.mp4", red_images, **BT709))


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def open_planned(request, fake_machine, add_plan):
    """``open_planned(bundle)``: an engine of TensorRT or TensorRT-RTX on the fake GPU."""
    fake_machine.install(request.param)
    return lambda bundle: open_engine(add_plan(bundle, request.param), request.param)


class Triton:
    """A real tritonserver that loads models when it is told to.

    Attributes:
        repository: its models.
        server: ``benchmarks.shared.tritonserver.TritonServer``.
        folder: of what is installed, and where bundles and logs go.
    """

    def __init__(self, installed, folder):
        from benchmarks.shared import tritonserver

        self._kit, self.installed, self.folder = tritonserver, installed, folder
        self.repository = folder / "repository"
        self.repository.mkdir()
        self._served = {}
        self.server = self.another(self.repository, "--model-control-mode=explicit")

    def another(self, repository, *options, log="server", port=None):
        """One more server, which is not waited for."""
        path = self.folder / f"{log}.log"
        path.write_bytes(b"")
        return self._kit.TritonServer(self.installed, repository, *options, log=path, port=port)

    def put(self, bundle, repository=None, **options):
        """A copy of a bundle under a name of its own, exported; gives the copy and the model's name."""
        entries = repr((bundle.manifest.files[PROGRAM_NAME], bundle.manifest.frame_size_hw, options, repository))
        model = f"m{hashlib.sha256(entries.encode()).hexdigest()[:10]}"
        copy = renamed(bundle, self.folder / "bundles" / model, model)
        return copy, self._kit.put_on_python_backend(copy, repository or self.repository, **options)

    def serve(self, bundle, **options):
        """A bundle whose program the server has."""
        key = repr((bundle.manifest.files[PROGRAM_NAME], bundle.manifest.frame_size_hw, options))
        if key not in self._served:
            copy, name = self.put(bundle, **options)
            self.server.load(name)
            self._served[key] = copy
        return self._served[key]


def renamed(bundle, folder, model):
    """A copy of a bundle as that of another model."""
    manifest = dataclasses.replace(bundle.manifest, model=model)
    return Bundle.write(folder, manifest, {PROGRAM_NAME: bundle.program_path.read_bytes()})


def installed_servers():
    """Where ``tests/install-triton`` has put the servers; skips where it has not."""
    pytest.importorskip("tritonclient.grpc")
    from benchmarks.shared.tritonserver import default_folder

    folder = default_folder()
    if not (folder / ".packages").is_file():
        if os.environ.get("FAIL_WITHOUT_TRITON"):
            pytest.fail(f"no inference servers in {folder}: tests/install-triton makes it")
        pytest.skip(f"no inference servers in {folder}: tests/install-triton makes it")
    return folder


@pytest.fixture
def openvino(monkeypatch, tmp_path):
    """The module, from where ``tests/install-openvino`` has put it; with a cache of its own. Skips where it is not."""
    folder = Path(os.environ.get("EDGEMASK_TEST_OPENVINO") or Path(sys.prefix) / "openvino")
    is_installed = importlib.util.find_spec("openvino") is not None
    if not is_installed:
        if not (folder / "openvino").is_dir():
            if os.environ.get("FAIL_WITHOUT_OPENVINO"):
                pytest.fail(f"no OpenVINO in {folder}: tests/install-openvino makes it")
            pytest.skip(f"no OpenVINO in {folder}: tests/install-openvino makes it")
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    from pipeline.engines.openvino_library import load_openvino

    if is_installed:
        return load_openvino()
    # Native code that is loaded once; but other tests are in an environment without it.
    if "openvino" not in _LOADED:
        _LOADED["openvino"] = load_openvino()
        sys.modules.pop("openvino")
    module = _LOADED["openvino"]
    monkeypatch.setitem(sys.modules, "openvino", module)
    return module


_LOADED = {}


@pytest.fixture(scope="session")
def triton(tmp_path_factory):
    """A real server, see ``Triton``."""
    made = Triton(installed_servers(), tmp_path_factory.mktemp("triton"))
    with made.server:
        made.server.wait()
        yield made


def with_plan(bundle, folder, runtime, program=None, **entry):
    portable = bundle.program_path.read_bytes()
    program = portable if program is None else program
    entry = {
        "file": f"engines/{runtime}-fp32.plan",
        "runtime": runtime,
        "version": VERSIONS[runtime],
        "sms": [89],
        "profile": [[1, 1, 1, 3], [1, 64, 64, 3], [8, 512, 512, 3]],
        "size_bytes": len(program),
        **entry,
    }
    manifest = dataclasses.replace(bundle.manifest, engines=(*bundle.manifest.engines, PlanEntry.from_dict(entry)))
    plans = {name: (bundle.folder / name).read_bytes() for name in bundle.manifest.files if name != PROGRAM_NAME}
    Bundle.write(folder, manifest, {PROGRAM_NAME: portable, **plans, entry["file"]: program})
    return Bundle.read(folder)


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _forget_ours():
    for name in _OURS:
        sys.modules.pop(name, None)
    for loader in (tensorrt_library._load_tensorrt, tensorrt_library.load_tensorrt_rtx, tensorrt_library.log_of):
        loader.cache_clear()


@contextlib.contextmanager
def _modules_restored(names):
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    _forget_ours()
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        for loader in (tensorrt_library._load_tensorrt, tensorrt_library.load_tensorrt_rtx, tensorrt_library.log_of):
            loader.cache_clear()
