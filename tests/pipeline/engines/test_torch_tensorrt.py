"""The engine for saved programs, on the CPU: what every backend has to pass, and what only this one can do wrong."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pickle
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines import torch_tensorrt, torch_tensorrt_library
from pipeline.engines.torch_tensorrt import CPU_SM, TorchTensorRTEngine
from pipeline.engines.torch_tensorrt_library import load_torch_tensorrt, public_version
from pipeline.errors import BackendUnavailableError, BundleError, PlanError, ShapeError

FILE = "engines/torch_tensorrt-2.13-sm00-fp32.pt2"
VERSION = public_version(torch.__version__)


def contract_tests():
    """The checks of test_contract.py that are about engines, not about ONNX programs or the table of backends."""
    path = Path(__file__).with_name("test_contract.py")
    spec = importlib.util.spec_from_file_location("engine_contract", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    others = ("program", "backend", "auto", "plan")
    return {
        name: check
        for name, check in vars(module).items()
        if name.startswith("test_") and not any(word in name for word in others)
    }


globals().update(contract_tests())


class Red(nn.Module):
    """masks = frames[..., 2]."""

    def forward(self, frames):
        return frames[..., 2].clone()


class Counting(nn.Module):
    """The same, and how many of them are 255."""

    def forward(self, frames):
        red = frames[..., 2]
        return red.clone(), (red == 255).sum((1, 2), dtype=torch.int32)


class Wrong(nn.Module):
    """Gives what no frame program gives, as it is told."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, frames):
        red = frames[..., 2]
        return {"float": red.float(), "small": red[:, 1:], "two": (red.clone(), red.clone())}[self.how]


def saved(module, shape=(2, 8, 8, 3), dtype=torch.uint8, axes=(0, 1, 2)):
    dims = {axis: torch.export.Dim(f"d{axis}", min=1, max=4096) for axis in axes}
    content = io.BytesIO()
    exported = torch.export.export(module, (torch.zeros(shape, dtype=dtype),), dynamic_shapes=(dims,), strict=False)
    torch.export.save(exported, content)
    return content.getvalue()


@pytest.fixture(scope="session")
def red_content():
    return saved(Red())


def with_engine(folder, bundle, content, **entry):
    entry = {
        "runtime": "torch-tensorrt",
        "version": VERSION,
        "sms": [CPU_SM],
        "file": FILE,
        "size_bytes": len(content),
        **entry,
    }
    manifest = dataclasses.replace(bundle.manifest, engines=(PlanEntry.from_dict(entry),))
    return Bundle.write(folder, manifest, {PROGRAM_NAME: bundle.program_path.read_bytes(), FILE: content})


@pytest.fixture(scope="session")
def red_bundle(red_bundle, red_content, tmp_path_factory):
    return with_engine(tmp_path_factory.mktemp("saved") / "red", red_bundle, red_content)


@pytest.fixture(scope="session")
def counting_bundle(red_bundle, tmp_path_factory):
    return with_engine(tmp_path_factory.mktemp("saved") / "counting", red_bundle, saved(Counting()))


@pytest.fixture(scope="session")
def class_bundle(class_bundle, red_content, tmp_path_factory):
    return with_engine(tmp_path_factory.mktemp("saved") / "classes", class_bundle, red_content)


@pytest.fixture
def make_bundle(red_bundle, red_content, tmp_path):
    def make(name="bundle", content=red_content, entry=None, **fields):
        return with_engine(
            tmp_path / name,
            SimpleNamespace(
                manifest=dataclasses.replace(red_bundle.manifest, **fields), program_path=red_bundle.program_path
            ),
            content,
            **(entry or {}),
        )

    return make


@pytest.fixture
def open_here():
    engines = []

    def open_it(bundle):
        engines.append(TorchTensorRTEngine(bundle, device="cpu"))
        return engines[-1]

    yield open_it
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(open_here, red_bundle):
    return open_here(red_bundle)


def frames(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def test_the_contract_is_checked():
    assert len(contract_tests()) >= 12
    assert "test_masks_belong_to_the_caller" in globals()


def test_two_are_in_flight_and_come_in_order_whatever_their_size(engine):
    assert engine.in_flight == 2
    given = [frames(1 + number % 3, 4 + number, 9 - number, number) for number in range(6)]
    engine.submit(given[0])
    for number in range(1, 6):
        engine.submit(given[number])
        np.testing.assert_array_equal(engine.collect(), given[number - 1][..., 2])
    np.testing.assert_array_equal(engine.collect(), given[5][..., 2])


def test_memory_is_allocated_once_for_each_size(engine, monkeypatch):
    allocated = []
    before = type(engine._device).host_memory
    monkeypatch.setattr(
        type(engine._device), "host_memory", lambda self, shape: allocated.append(shape) or before(self, shape)
    )
    for _ in range(6):
        engine.submit(frames(1, 4, 6))
        engine.submit(frames(1, 4, 6))
        engine.collect()
        engine.collect()
    assert allocated == [(1, 4, 6, 3), (1, 4, 6)] * 2


def test_too_many_frames_at_once_are_refused_and_the_engine_goes_on(open_here, make_bundle):
    engine = open_here(make_bundle(entry={"profile": [[1, 1, 1, 3], [2, 8, 8, 3], [2, 99, 99, 3]]}))
    with pytest.raises(ShapeError, match="frames: expected at most 2 at once, got 3: compile with a larger batch"):
        engine(frames(3, 4, 6))
    assert engine(frames(2, 4, 6)).shape == (2, 4, 6)


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(range(256)) * 40, "cut", "zip"])
def test_what_is_no_saved_program_is_refused_in_one_line(open_here, make_bundle, red_content, content, capfd):
    if content == "cut":
        content = red_content[: len(red_content) // 2]
    if content == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a", "b")
        content = packed.getvalue()
    with pytest.raises(
        PlanError, match=rf"{FILE}: .* cannot load it \(.+\): rebuild it with: python -m compile"
    ) as caught:
        open_here(make_bundle(content=content))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: saved(Wrong("two")), "got 1 and 2: this is no frame program"),
        (lambda: saved(nn.Identity(), (2, 8, 8, 3), torch.float32), "got 1 and 1: this is no frame program"),
        (lambda: saved(Red(), (8, 8, 3), axes=(0, 1)), "got 1 and 1: this is no frame program"),
    ],
    ids=["two outputs", "float", "one frame"],
)
def test_another_program_is_no_frame_program(open_here, make_bundle, content, said):
    with pytest.raises(PlanError, match=said):
        open_here(make_bundle(content=content()))


@pytest.mark.parametrize("how", ["float", "small"])
def test_other_masks_are_refused_when_they_come(open_here, make_bundle, how):
    engine = open_here(make_bundle(content=saved(Wrong(how))))
    with pytest.raises(PlanError, match=r"expected masks \(1, 4, 6\) uint8, got \(1, "):
        engine(frames(1, 4, 6))


def test_a_program_for_another_size_is_the_bundles_fault(open_here, make_bundle):
    engine = open_here(make_bundle(content=saved(Red(), axes=())))
    with pytest.raises(PlanError, match=r"cannot run on frames \(1, 4, 6, 3\) \(.+\): rebuild it") as caught:
        engine(frames(1, 4, 6))
    assert "\n" not in str(caught.value)
    assert engine(frames(2, 8, 8)).shape == (2, 8, 8)


class Touch:
    """What a pickle can do when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_pickle(content, payload):
    """A saved program with a constant that torch keeps as a pickle, as it does with TensorRT engines."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as changed:
        for name in archive.namelist():
            if not name.endswith("model_constants_config.json"):
                changed.writestr(name, archive.read(name))
        folder = archive.namelist()[0].partition("/")[0]
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        config = json.dumps({"config": {"x": entry}})
        changed.writestr(f"{folder}/data/constants/model_constants_config.json", config)
        changed.writestr(f"{folder}/data/constants/opaque_obj_0", payload)
    return out.getvalue()


def test_a_saved_program_can_run_code_and_so_is_checked_before_it_is_loaded(open_here, make_bundle, tmp_path):
    ran = tmp_path / "ran"
    content = with_pickle(saved(Red()), pickle.dumps(Touch(ran)))
    with contextlib.suppress(PlanError):
        open_here(make_bundle("trusted", content=content))
    assert ran.is_dir()  # should torch ever stop this, the warning in the engine's documentation may go
    ran.rmdir()
    bundle = make_bundle("changed", entry={"size_bytes": len(content)})
    (bundle.folder / FILE).write_bytes(content)
    with pytest.raises(PlanError, match="expected sha256"):
        open_here(bundle)
    assert not ran.exists()


def test_a_program_of_another_version_or_gpu_is_refused(open_here, make_bundle):
    with pytest.raises(BundleError, match=rf"expected a plan of Torch-TensorRT {VERSION}, .* got one of 2\.11\.0"):
        open_here(make_bundle("old", entry={"version": "2.11.0"}))
    with pytest.raises(BundleError, match=r"got one for 9\.0"):
        open_here(make_bundle("gpu", entry={"sms": [90]}))


def test_a_machine_without_a_gpu_is_told_so(make_bundle, monkeypatch):
    monkeypatch.setattr(torch_tensorrt, "cuda_is_here", lambda: False)
    with pytest.raises(
        BackendUnavailableError, match=r"of compute capability 9\.0 for Torch-TensorRT, got none .*CUDA"
    ):
        TorchTensorRTEngine(make_bundle(entry={"sms": [90]}))


def test_another_tensorrt_than_the_one_that_built_it_is_refused(make_bundle, monkeypatch):
    monkeypatch.setattr(torch_tensorrt._Cpu, "tensorrt_version", "11.1.0")
    with pytest.raises(PlanError, match=r"expected a program of TensorRT 11\.1\.0, got one of 11\.0\.0: rebuild it"):
        TorchTensorRTEngine(make_bundle(entry={"versions": {"tensorrt": "11.0.0"}}), device="cpu")


@pytest.fixture
def installed(monkeypatch):
    """``installed(torch="2.13.0", torch_tensorrt="2.12.1")``: the versions that are found."""

    def install(**versions):
        names = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name):
            if name not in names:
                raise metadata.PackageNotFoundError(name)
            return names[name]

        monkeypatch.setattr(torch_tensorrt_library.metadata, "version", version)

    return install


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"torch": "2.13.0"}, r"packages are not here: install them with: pip install 'edgemask\[torch-tensorrt\]'"),
        (
            {"torch": "2.13.0+cu130", "torch_tensorrt": "2.12.1"},
            r"expected 2\.13 as torch 2\.13\.0\+cu130 needs, got 2\.12\.1: pip install 'torch-tensorrt==2\.13\.\*'",
        ),
        (
            {"torch": "2.11.1", "torch_tensorrt_rtx": "2.13.0"},
            r"expected 2\.11 as torch 2\.11\.1 needs, got 2\.13\.0: pip install 'torch-tensorrt-rtx==2\.11\.\*'",
        ),
        ({"torch": "2.9.0", "torch_tensorrt": "2.9.0"}, r"expected 2\.11 or later, got 2\.9\.0"),
    ],
    ids=["none", "older", "newer", "too old"],
)
def test_torch_and_torch_tensorrt_must_be_a_pair(installed, versions, said):
    installed(**versions)
    with pytest.raises(BackendUnavailableError, match=said) as caught:
        load_torch_tensorrt()
    assert "\n" not in str(caught.value)


def test_a_broken_installation_is_told_in_one_line(installed, monkeypatch, capfd):
    installed(torch="2.13.0", torch_tensorrt="2.13.0")

    def broken(_):
        print("make sure tensorrt lib is in the LD_LIBRARY_PATH")  # noqa: T201  as it does
        raise OSError("libnvinfer.so.11: cannot open shared object file\nand more")

    monkeypatch.setattr(torch_tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(
        BackendUnavailableError, match=r"2\.13\.0 cannot be loaded here \(libnvinfer.so.11: cannot open"
    ):
        load_torch_tensorrt()
    assert capfd.readouterr() == ("", "")
