"""Where plans that are built here are kept, and what a build that fails says; whole runs are in ``test_gpu_by_itself``."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.builds.build_half import compile_in_process, plans_place, rebuild_plan
from pipeline.bundles.bundle import CPU_GRAPH, Bundle
from pipeline.errors import BuildError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_plan_is_kept_in_its_bundle(cache, make_bundle):
    bundle = make_bundle()
    assert plans_place(bundle) == bundle.folder
    (bundle.folder / "engines").mkdir()
    assert plans_place(bundle) == bundle.folder


def of_the_package(bundle, monkeypatch):
    return Bundle(Path(pipeline.__file__).parent / "published" / "red", bundle.manifest)


def read_only(bundle, monkeypatch):
    bundle.folder.chmod(0o555)
    return bundle


def in_a_folder_of_others(bundle, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != bundle.folder.parent)
    return bundle


def with_notes(bundle, monkeypatch):
    (bundle.folder / "notes.txt").touch()
    return bundle


def mounted(bundle, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == bundle.folder)
    return bundle


@pytest.mark.parametrize(
    "change", [of_the_package, read_only, in_a_folder_of_others, with_notes, mounted], ids=lambda f: f.__name__
)
def test_or_in_the_cache_for_its_program(cache, make_bundle, monkeypatch, change):
    bundle = change(make_bundle(), monkeypatch)
    place = plans_place(bundle)
    assert place.parent == cache / "plans"
    other = dataclasses.replace(bundle.manifest, files={"program.onnx": "0" * 64})
    assert plans_place(Bundle(bundle.folder, other)) not in (place, bundle.folder)


def test_of_int8_for_cpus_no_plan_is_built(cache, make_bundle):
    bundle = make_bundle(precision="int8", calibration={"graph": CPU_GRAPH})
    with pytest.raises(BuildError, match=r"got INT8 for CPUs: compile the network itself .* --target tensorrt$"):
        rebuild_plan(bundle, "tensorrt", "why")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", "python -m compile --bundle 'my bundle': ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "python -m compile --bundle 'my bundle': was ended by SIGKILL, for want of memory?"),
        ("import os; os.kill(os.getpid(), 11)", "python -m compile --bundle 'my bundle': was ended by SIGSEGV"),
        ("import os, sys; os.write(int(os.environ['EDGEMASK_ERRORS_FD']), b'no room'); sys.exit(2)", "no room"),
    ],
)  # fmt: skip
def test_how_a_process_that_compiles_ended(tmp_path, monkeypatch, code, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BuildError) as caught:
        compile_in_process(["--bundle", "my bundle"])
    assert str(caught.value) == message
