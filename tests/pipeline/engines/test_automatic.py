"""What "auto" makes of what backends say of themselves."""

import sys
from types import SimpleNamespace

import pytest

import pipeline.engines
from pipeline.engines import ENGINES, EngineKind, open_engine
from pipeline.engines.base import Engine
from pipeline.errors import BackendUnavailableError


class FastEngine(Engine):
    def _submit(self, frames): ...

    def _collect(self): ...

    def _close(self): ...


class AbsentEngine(FastEngine):
    def __init__(self, bundle):
        raise BackendUnavailableError("its driver is too old")


@pytest.fixture
def add(monkeypatch):
    """``add(engine, gpu_is_seen)``: one more backend of ours, which runs programs on a GPU."""

    def call(engine, gpu_is_seen):
        kind = EngineKind(name="fast", opens="engine", help="fast", gpu=True, module="fast_engine")
        monkeypatch.setitem(sys.modules, "fast_engine", SimpleNamespace(engine=engine))
        monkeypatch.setattr(ENGINES, "own", {"fast": kind, **ENGINES.own})
        monkeypatch.setattr(pipeline.engines, "is_seen", lambda *_: gpu_is_seen)

    return call


def test_one_that_runs_programs_on_a_gpu_is_taken_where_one_is_seen(add, red_bundle):
    add(FastEngine, gpu_is_seen=True)
    with open_engine(red_bundle) as engine:
        assert isinstance(engine, FastEngine)


def test_one_that_cannot_run_is_passed_over_and_told(add, red_bundle, said):
    add(AbsentEngine, gpu_is_seen=True)
    with open_engine(red_bundle) as engine:
        assert engine.description.startswith("ONNX Runtime")
    assert said == ["on the CPU: its driver is too old"]


def test_without_a_gpu_it_is_not_even_tried(add, red_bundle, said):
    add(AbsentEngine, gpu_is_seen=False)
    with open_engine(red_bundle) as engine:
        assert engine.description.startswith("ONNX Runtime")
    assert said == []


def test_the_fastest_comes_first_and_of_those_without_a_gpu_what_runs_anywhere():
    kinds = list(ENGINES.own.values())
    assert [kind.name for kind in kinds[:2]] == ["tensorrt", "tensorrt-rtx"]
    assert next(kind.name for kind in kinds if not kind.gpu and not kind.remote) == "onnxruntime"
