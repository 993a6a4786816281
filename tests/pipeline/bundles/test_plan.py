"""Which plan is taken, and that none is deserialised that was changed or is for another machine; the engine that is opened for it."""

import dataclasses
import importlib.util
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.bundles.bundle import Bundle
from pipeline.bundles.plan import read_plan, rebuild_command
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.engines import open_engine
from pipeline.errors import BackendUnavailableError, BuildError, BundleError, PlanError

_spec = importlib.util.spec_from_file_location(
    "engines_conftest", Path(__file__).parents[1] / "engines" / "conftest.py"
)
_engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_engines)
fake_machine, add_plan = _engines.fake_machine, _engines.add_plan
HERE = ("tensorrt", "10.3.0.30", 89, "Fake GPU")
FILE = "engines/tensorrt-fp32.plan"


@pytest.fixture
def planned(red_bundle, add_plan):
    """A bundle with one plan that fits the fake GPU."""
    return add_plan(red_bundle, "tensorrt")


def edit_entry(bundle, **changes):
    """Change the manifest's last entry on disk, and read the bundle again."""
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engines"][-1].update(changes)
    path.write_text(json.dumps(manifest))
    return Bundle.read(bundle.folder)


def told(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_plan_that_fits_is_read(planned):
    entry, content = read_plan(planned, *HERE)
    assert entry.file == FILE
    assert content == (planned.folder / FILE).read_bytes()


# The six --------------------------------------------------------------------------------------------------------------


def another_version(bundle, machine):
    return edit_entry(bundle, version="10.2.0.19")


def another_gpu(bundle, machine):
    return edit_entry(bundle, sms=[75, 86])


def one_changed_byte(bundle, machine):
    path = bundle.folder / FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return bundle


def anyone_may_write(bundle, machine):
    (bundle.folder / FILE).chmod(0o666)
    return bundle


def cut_off(bundle, machine):
    path = bundle.folder / FILE
    path.write_bytes(path.read_bytes()[:-10])
    return bundle


def no_device(bundle, machine):
    machine.gpu.present = False
    return bundle


SIX = {
    another_version: (
        PlanError,
        "{plan}: expected a plan of TensorRT 10.3.0.30, which is here, got one of 10.2.0.19: rebuild it with: {command}",
    ),
    another_gpu: (
        PlanError,
        "{plan}: expected a plan for compute capability 8.9 (Fake GPU), got one for 7.5, 8.6: rebuild it with: {command}",
    ),
    one_changed_byte: (
        PlanError,
        "{plan}: expected sha256 {sha}…, got {other}…: the file was changed or damaged, rebuild it with: {command}",
    ),
    anyone_may_write: (
        PlanError,
        "{plan}: expected permissions 664, got 666: anyone may change what is run here; chmod o-w it, and if in doubt rebuild it "
        "with: {command}",
    ),
    cut_off: (
        PlanError,
        "{plan}: expected {size} bytes, got {shorter}: the file was cut off or replaced, rebuild it with: {command}",
    ),
    no_device: (
        BackendUnavailableError,
        "{folder}: expected an NVIDIA GPU of compute capability 8.9 for TensorRT, got none (no GPU that CUDA can use: cuInit failed: "
        "no CUDA-capable device is detected): take --backend onnxruntime, or on a machine with a GPU rebuild it with: {command}",
    ),
}


@pytest.mark.parametrize("spoil", SIX, ids=lambda spoil: spoil.__name__)
def test_a_plan_that_does_not_fit_is_refused_before_tensorrt_sees_it(planned, fake_machine, spoil):
    kind, expected = SIX[spoil]
    size = (planned.folder / FILE).stat().st_size
    facts = {
        "plan": planned.folder / FILE,
        "folder": planned.folder,
        "command": f"python -m compile --bundle {planned.folder} --target tensorrt",
        "sha": planned.manifest.files[FILE][:12],
        "other": "[0-9a-f]{12}",
        "size": size,
        "shorter": size - 10,
    }
    given = spoil(planned, fake_machine)
    with pytest.raises(kind) as caught:
        open_engine(given, "tensorrt")
    pattern = re.escape(expected.format(**{**facts, "other": "OTHER"})).replace("OTHER", facts["other"])
    assert re.fullmatch(pattern, told(caught))
    assert type(caught.value) is kind
    assert fake_machine.settings.deserialized == []


# Other reasons --------------------------------------------------------------------------------------------------------


def test_no_plan_for_this_runtime(planned, red_bundle):
    with pytest.raises(PlanError) as caught:
        read_plan(planned, "tensorrt-rtx", "1.7.1.116", 89, "Fake GPU")
    assert told(caught) == (
        f"{planned.folder}: expected a plan for TensorRT-RTX 1.7.1.116 and compute capability 8.9 (Fake GPU), got none: "
        f"build it with: python -m compile --bundle {planned.folder} --target tensorrt-rtx"
    )
    with pytest.raises(BackendUnavailableError, match=r"expected an NVIDIA GPU for TensorRT, got none \(why\): take"):
        read_plan(red_bundle, "tensorrt", "", None, "why")


def replace_by(path, what):
    if path.exists():
        path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
        "nothing": lambda: None,
        "no folder": lambda: path.parent.rmdir(),
        "file where the folder was": lambda: (path.parent.rmdir(), path.parent.write_bytes(b"")),
        "link to nothing": lambda: path.symlink_to("gone"),
        "link to itself": lambda: path.symlink_to(path.name),
    }[what]()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("pipe", r"expected a file, got something else"),
        ("folder", r"cannot be read \(Is a directory\)"),
        ("nothing", r"cannot be read \(No such file or directory\)"),
        ("no folder", r"cannot be read \(No such file or directory\)"),
        ("file where the folder was", r"cannot be read \(Not a directory\)"),
        ("link to nothing", r"cannot be read \(No such file or directory\)"),
        ("link to itself", r"cannot be read \(Too many levels of symbolic links\)"),
    ],
)
def test_something_else_in_the_plans_place(planned, what, why):
    replace_by(planned.folder / FILE, what)
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(PlanError, match=rf"fp32\.plan: {why}: rebuild it with: python -m compile") as caught:
        read_plan(planned, *HERE)
    told(caught)
    assert len(os.listdir("/proc/self/fd")) == len(opened)


@pytest.mark.parametrize("name", ["", "manifest.json", "engines"])
def test_nor_may_anyone_write_where_the_plan_lies(planned, name):
    path = planned.folder / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(
        PlanError, match=rf"^{re.escape(str(path))}: expected permissions \d+, got \d+: anyone may change"
    ):
        read_plan(planned, *HERE)
    path.chmod(path.stat().st_mode & ~0o002)
    assert read_plan(planned, *HERE)


def test_the_group_may_write(planned):
    (planned.folder / FILE).chmod(0o664)
    assert read_plan(planned, *HERE)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.3.0.30", "10.3.0.30", True),
        ("10.3.0.30", "10.13.3.9", True),
        ("10.3.0.30", "11.4.0.106", True),
        ("10.13.3.9", "10.3.0.30", False),
        ("11.0.0.114", "10.16.1.11", False),
        ("10.3.0.30", "10.3.0.26", False),
    ],
)
def test_a_version_compatible_plan_loads_in_later_versions_alone(planned, built, here, fits):
    bundle = edit_entry(planned, version=built, version_compatible=True)
    if fits:
        assert read_plan(bundle, "tensorrt", here, 89, "x")
    else:
        with pytest.raises(PlanError, match=f"expected a plan of TensorRT {here}, which is here, got one of {built}"):
            read_plan(bundle, "tensorrt", here, 89, "x")
    if built != here:
        with pytest.raises(PlanError, match="expected a plan of TensorRT"):
            read_plan(edit_entry(bundle, version_compatible=False), "tensorrt", here, 89, "x")


@pytest.mark.parametrize(("sm", "fits"), [(75, False), (80, True), (86, True), (87, True), (121, True)])
def test_a_hardware_compatible_plan_runs_from_8_0_on(planned, sm, fits):
    bundle = edit_entry(planned, hardware="ampere+", sms=[86])
    if fits:
        assert read_plan(bundle, "tensorrt", "10.3.0.30", sm, "x")
    else:
        with pytest.raises(PlanError, match=r"expected a plan for compute capability 7\.5 \(x\), got one for 8\.6"):
            read_plan(bundle, "tensorrt", "10.3.0.30", sm, "x")


def test_the_best_of_several_plans_is_taken(red_bundle, add_plan):
    bundle = red_bundle
    for number, entry in enumerate(
        [
            {"sms": [86]},
            {"hardware": "ampere+", "sms": [80]},
            {"version": "10.2.0.19"},
            {"version": "10.2.0.19", "version_compatible": True},
            {"sms": [89, 86]},
            {"sms": [89]},
            {"version_compatible": True},
        ]
    ):
        bundle = add_plan(bundle, "tensorrt", name=f"b{number}", file=f"engines/{number}.plan", **entry)

    def taken(version, sm):
        return read_plan(bundle, "tensorrt", version, sm, "x")[0].file.removeprefix("engines/").removesuffix(".plan")

    assert taken("10.3.0.30", 89) == "5"  # made for it alone, and the newest of those
    assert taken("10.3.0.30", 86) == "4"
    assert taken("10.3.0.30", 120) == "1"
    assert taken("10.16.1.11", 89) == "6"
    with pytest.raises(PlanError, match=r"/b6: 7 plans: expected .* 9\.0, .* got one of 10\.2\.0\.19, 10\.3\.0\.30: "):
        read_plan(bundle, "tensorrt", "9.0", 89, "x")
    with pytest.raises(PlanError, match=r"/b6: 6 plans: expected .* 7\.5 \(x\), got one for 8\.0, 8\.6, 8\.9: rebuild"):
        read_plan(bundle, "tensorrt", "10.3.0.30", 75, "x")


def test_the_command_can_be_pasted_whatever_the_folder_is_called(red_bundle, add_plan):
    bundle = add_plan(red_bundle, "tensorrt", name="my bundle; rm -rf $HOME")
    assert rebuild_command(bundle, "tensorrt") == (f"python -m compile --bundle '{bundle.folder}' --target tensorrt")
    with pytest.raises(
        PlanError, match=r"rebuild it with: python -m compile --bundle '/.*my bundle; rm -rf \$HOME' --t"
    ):
        read_plan(bundle, "tensorrt", "1", 89, "x")


# A damaged manifest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"file": 7},
        {"file": "engines/other.plan"},
        {"version": 10.3},
        {"version": None},
        {"size_bytes": "12"},
        {"sms": 89},
        {"sms": ["89"]},
        {"sms": [True]},
        {"profile": None},
        {"profile": [[1, 64, 64, 3]]},
        {"profile": [[1, 64, 64, 3], [1, 64, 64], [1, 64, 64, 3]]},
        {"profile": [[1, 64, 64, "3"]] * 3},
        {"dla_core": "0"},
        {"dla_core": -1},
    ],
)
def test_a_damaged_entry_is_the_manifests_fault(planned, changes):
    with pytest.raises(BundleError, match=r"manifest\.json: expected file, version, .* for each engine") as caught:
        read_plan(edit_entry(planned, **changes), *HERE)
    assert not isinstance(caught.value, PlanError)
    told(caught)


@pytest.mark.parametrize("field", ["file", "version", "size_bytes", "sms", "profile"])
def test_a_missing_field_is_the_manifests_fault(planned, field):
    path = planned.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["engines"][0][field]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest\.json: expected file, version, .* compile the bundle again$"):
        read_plan(Bundle.read(planned.folder), *HERE)


def test_whatever_the_manifest_says_the_answer_is_one_line_or_an_engine(planned, fake_machine):
    path = planned.folder / "manifest.json"
    original, dice = path.read_text(), random.Random(0)
    values = [None, True, -1, 89, 1e300, "", "\n", "10.3.0.30", "../x", [], [[]], [89], {}, {"a": 1}, "ampere+", FILE]
    names = ["file", "runtime", "version", "hardware", "version_compatible", "sms", "profile", "size_bytes", "dla_core"]
    opened = 0
    for _ in range(200):
        manifest = json.loads(original)
        target = dice.choice([manifest["engines"][0], manifest["engines"][0], manifest["files"]])
        for _ in range(dice.randint(1, 2)):
            target[dice.choice(names if "sms" in target else [FILE])] = dice.choice(values)
        path.write_text(json.dumps(manifest))
        try:
            with open_engine(Bundle.read(planned.folder), "tensorrt") as engine:
                engine(np.zeros((1, 4, 4, 3), np.uint8))
            opened += 1
        except (BundleError, BackendUnavailableError):
            pass
    assert 0 < opened < 100


# The engine that is opened --------------------------------------------------------------------------------------------


def red(engine):
    given = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), np.uint8)
    return np.array_equal(engine(given), given[..., 2])


@pytest.mark.parametrize("spoil", [another_version, another_gpu, one_changed_byte, cut_off], ids=lambda s: s.__name__)
def test_a_plan_that_does_not_fit_is_built_again_and_the_new_one_opened(
    red_bundle, planned, add_plan, fake_machine, spoil, said
):
    asked = []

    def rebuild(*given):
        asked.append(given)
        return add_plan(red_bundle, "tensorrt", name="rebuilt")

    bundle = spoil(planned, fake_machine)
    for backend in ("tensorrt", "auto"):
        with open_engine(bundle, backend, rebuild=rebuild) as engine:
            assert engine.bundle.folder.name == "rebuilt"
            assert red(engine)
        assert said == []
        (given,) = asked
        assert given[:2] == (bundle, "tensorrt")
        assert re.fullmatch(r".*: expected .*, got .* rebuild it with: .*", given[2])
        asked.clear()


def test_a_plan_that_tensorrt_refuses_is_built_again_too(red_bundle, add_plan, fake_machine):
    bundle = add_plan(red_bundle, "tensorrt", program=b"no plan")
    with open_engine(bundle, "tensorrt", rebuild=lambda *_: add_plan(red_bundle, "tensorrt", name="new")) as engine:
        assert red(engine)
    assert len(fake_machine.settings.deserialized) == 2


def test_a_plan_that_does_not_fit_after_it_was_built_again_is_an_error(planned):
    bundle = edit_entry(planned, version="9.0")
    with pytest.raises(PlanError, match=r"got one of 9\.0"):
        open_engine(bundle, "tensorrt", rebuild=lambda bundle, *_: bundle)


def test_what_building_cannot_mend_is_not_built(planned, fake_machine):
    fake_machine.gpu.present = False
    with pytest.raises(BackendUnavailableError, match="expected an NVIDIA GPU"):
        open_engine(planned, "tensorrt", rebuild=lambda *_: pytest.fail("rebuilt"))


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_auto_takes_the_plan_that_there_is(red_bundle, add_plan, fake_machine, runtime, said):
    fake_machine.install(runtime)
    with open_engine(add_plan(red_bundle, runtime)) as engine:
        assert engine.description.startswith("TensorRT-RTX" if runtime == "tensorrt-rtx" else "TensorRT 10")
        assert red(engine)
    assert said == []


@pytest.mark.parametrize("spoil", SIX, ids=lambda spoil: spoil.__name__)
def test_auto_goes_on_with_onnx_runtime_and_says_why(planned, fake_machine, spoil, said):
    with open_engine(spoil(planned, fake_machine)) as engine:
        assert engine.description.startswith("ONNX Runtime")
        assert red(engine)
    (line,) = said
    assert re.fullmatch(r"on the CPU: .*: expected .*, got .*", line)
    assert fake_machine.settings.deserialized == []


def test_auto_goes_on_when_the_plan_cannot_be_built(planned, said):
    def rebuild(*_):
        raise BuildError("no plan")

    with open_engine(edit_entry(planned, version="9.0"), rebuild=rebuild) as engine:
        assert engine.description.startswith("ONNX Runtime")
    assert said == ["on the CPU: no plan"]


@pytest.mark.parametrize("lacking", ["refuse_context", "refuse_execute", "allocations_left"])
def test_auto_goes_on_when_the_gpu_cannot_run_the_plan_and_gives_it_back(planned, fake_machine, lacking, said):
    given = fake_machine.gpu if lacking == "allocations_left" else fake_machine.settings
    setattr(given, lacking, 0 if lacking == "allocations_left" else True)
    with open_engine(planned, rebuild=lambda *_: pytest.fail("rebuilt")) as engine:
        assert engine.description.startswith("ONNX Runtime")
        assert red(engine)
    (line,) = said
    assert "Fake GPU" in line or "TensorRT cannot run the plan" in line
    assert fake_machine.held() == {}


@pytest.fixture
def seen(monkeypatch):
    """A machine with signs of a GPU."""
    monkeypatch.setattr("pipeline.engines.is_seen", lambda *_: True)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_auto_has_a_plan_built_for_the_gpu_that_is_here(red_bundle, add_plan, fake_machine, seen, runtime, said):
    fake_machine.install(runtime)
    asked = []

    def rebuild(*given):
        asked.append(given[:2])
        return add_plan(*given[:2])

    with open_engine(red_bundle, rebuild=rebuild) as engine:
        assert engine.bundle.manifest.engines[0].runtime == runtime
        assert red(engine)
    assert asked == [(red_bundle, runtime)]
    assert said == []


def test_auto_has_a_plan_built_where_the_one_that_is_there_is_for_what_is_not_here(
    red_bundle, add_plan, fake_machine, seen, said
):
    bundle = add_plan(red_bundle, "tensorrt-rtx")
    with open_engine(bundle, rebuild=lambda *_: add_plan(red_bundle, "tensorrt", name="new")) as engine:
        assert engine.description.startswith("TensorRT 10.3")
    assert said == []


def test_auto_builds_nothing_where_it_may_not(red_bundle, fake_machine, seen, said):
    with open_engine(red_bundle) as engine:
        assert engine.description.startswith("ONNX Runtime")
    assert said == []


def test_tensorrt_rtx_is_not_asked_of_a_gpu_that_it_does_not_know(red_bundle, fake_machine, seen, said):
    fake_machine.install("tensorrt-rtx")
    fake_machine.gpu.capability = (9, 0)
    with open_engine(red_bundle, rebuild=lambda *_: pytest.fail("built")) as engine:
        assert engine.description.startswith("ONNX Runtime")
    (line,) = said
    assert "TensorRT is not here" in line


def test_without_a_sign_of_a_gpu_nothing_is_asked_or_said(red_bundle, fake_machine, monkeypatch, said):
    monkeypatch.setattr("pipeline.engines.is_seen", lambda *_: False)
    monkeypatch.setattr("pipeline.engines.gpu.first_runtime", pytest.fail)
    with open_engine(red_bundle, rebuild=lambda *_: pytest.fail("built")) as engine:
        assert engine.description.startswith("ONNX Runtime")
    assert said == []


def test_auto_says_nothing_of_backends_without_a_plan(red_bundle, fake_machine, said):
    with open_engine(red_bundle) as engine:
        assert engine.description.startswith("ONNX Runtime")
    assert said == []


def test_auto_tells_of_an_entry_of_a_runtime_that_is_none_and_goes_on(red_bundle, said):
    manifest = dataclasses.replace(
        red_bundle.manifest, engines=tuple(map(PlanEntry.from_dict, ({"runtime": []}, {"runtime": "cuda"}, {})))
    )
    with open_engine(Bundle(red_bundle.folder, manifest)) as engine:
        assert red(engine)
    (line,) = said
    assert "its plan for cuda is not used: expected one for tensorrt" in line
