"""Model repositories for Triton: their layout, their configuration as the protocol's own classes read it, and what is refused."""

import dataclasses
import os
import threading

import onnx
import pytest

pytest.importorskip("tritonclient.grpc")

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from compile.__main__ import main
from compile.plans import triton_repository
from compile.plans.triton_repository import write_repository
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.bundles.plan_entry import PlanEntry
from pipeline.errors import BundleError, CompileError, OptionError
from tests.conftest import red_program, write_bundle


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def copy_of(bundle, folder, files=None, program=None, **entries):
    content = {PROGRAM_NAME: program or bundle.program_path.read_bytes()}
    return Bundle.write(folder, dataclasses.replace(bundle.manifest, **entries), content | (files or {}))


def green(program):
    """Another program with the same inputs and outputs."""
    model = onnx.load_from_string(program)
    model.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("red", onnx.TensorProto.INT64, [], [1]))
    return model.SerializeToString()


def test_a_program_is_a_model_of_the_onnx_runtime_backend(counting_bundle, tmp_path):
    repository = tmp_path / "new" / "repository"
    assert write_repository(counting_bundle, repository) == [repository / "red" / "1"]
    assert sorted(str(path.relative_to(repository)) for path in repository.rglob("*")) == [
        *("red", "red/1", "red/1/program.onnx", "red/config.pbtxt")
    ]
    assert (repository / "red" / "1" / PROGRAM_NAME).read_bytes() == counting_bundle.program_path.read_bytes()
    assert os.listdir(repository.parent) == ["repository"]  # nothing is left beside it
    config = config_of(repository / "red")
    assert (config.name, config.backend, config.default_model_filename) == ("red", "onnxruntime", "program.onnx")
    assert config.max_batch_size == 4
    (frames,) = config.input
    assert (frames.name, frames.data_type, list(frames.dims)) == ("frames", 2, [-1, -1, 3])  # TYPE_UINT8
    masks, counts = config.output
    assert (masks.name, masks.data_type, list(masks.dims)) == ("masks", 2, [-1, -1])
    assert (counts.name, counts.data_type, list(counts.dims)) == ("not_finite", 8, [1])
    assert counts.HasField("reshape")
    assert list(counts.reshape.shape) == []
    (group,) = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_AUTO, 2)
    queue = config.dynamic_batching.default_queue_policy
    assert queue.timeout_action == ModelQueuePolicy.REJECT
    assert (queue.default_timeout_microseconds, queue.allow_timeout_override, queue.max_queue_size) == (
        10_000_000,
        True,
        64,
    )
    assert list(config.version_policy.specific.versions) == [1]
    assert config.parameters["program_sha256.1"].string_value == counting_bundle.manifest.files[PROGRAM_NAME]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 2, 3, 4]
    assert {tuple(warmup.inputs["frames"].dims) for warmup in config.model_warmup} == {(720, 1280, 3)}


def test_nv12_and_one_size(nv12_masks, tmp_path):
    repository = tmp_path / "repository"
    write_repository(nv12_masks, repository, batch=2, frame_size_hw=(480, 640))
    config = config_of(repository / "red-nv12-480x640")
    assert list(config.input[0].dims) == [720, 640]
    assert list(config.output[0].dims) == [480, 640]
    assert config.max_batch_size == 2
    assert {tuple(warmup.inputs["frames"].dims) for warmup in config.model_warmup} == {(720, 640)}
    write_repository(nv12_masks, repository)
    assert list(config_of(repository / "red-nv12").input[0].dims) == [-1, -1]


@pytest.fixture(scope="module")
def nv12_masks(red_bundle, tmp_path_factory):
    return copy_of(red_bundle, tmp_path_factory.mktemp("nv12") / "bundle", pixels="nv12")  # it is not run


def test_a_network_of_one_picture_at_a_time_has_no_batch(red_bundle, tmp_path):
    from compile.program.batch import for_one_frame

    program = for_one_frame(onnx.load(str(red_bundle.program_path))).SerializeToString()
    bundle = copy_of(red_bundle, tmp_path / "one", program=program)
    with pytest.raises(
        OptionError, match=r"--batch: expected 1, for the network of .*one takes one picture at a time, got 2"
    ):
        write_repository(bundle, tmp_path / "repository", batch=2)
    write_repository(bundle, tmp_path / "repository")
    config = config_of(tmp_path / "repository" / "red")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, -1, -1, 3]
    assert list(config.output[0].dims) == [1, -1, -1]
    assert not config.HasField("dynamic_batching")


def test_int8_for_cpus_stays_on_the_cpu(red_bundle, tmp_path):
    bundle = copy_of(red_bundle, tmp_path / "int8", precision="int8", calibration={"graph": "cpu"})
    write_repository(bundle, tmp_path / "repository")
    assert [group.kind for group in config_of(tmp_path / "repository" / "red").instance_group] == [
        ModelInstanceGroup.KIND_CPU
    ]


def with_plans(bundle, folder, *entries):
    plans, files = [], {}
    for number, entry in enumerate(entries):
        content = f"plan {number}".encode()
        values = {
            "file": f"engines/plan-{number}.plan",
            "runtime": "tensorrt",
            "version": "10.3.0.30",
            "sms": [89],
            "profile": [[1, 720, 1280, 3], [1, 720, 1280, 3], [4, 720, 1280, 3]],
            "size_bytes": len(content),
            **entry,
        }
        plans.append(PlanEntry.from_dict(values))
        files[values["file"]] = content
    return copy_of(bundle, folder, files, engines=tuple(plans))


def test_plans_are_models_of_the_tensorrt_backend_one_for_each_size(red_bundle, tmp_path, said):
    bundle = with_plans(
        red_bundle,
        tmp_path / "planned",
        {},
        {"sms": [86]},
        {"profile": [[1, 64, 64, 3], [1, 720, 1280, 3], [2, 1080, 1920, 3]], "sms": [80], "hardware": "ampere+"},
        {"runtime": "tensorrt-rtx"},
        {"dla_core": 0},
        {"version": "8.6.1.6", "sms": [75]},
        {"sms": [90], "size_bytes": 6},
    )
    # The newest plan says which TensorRT.
    repository = tmp_path / "repository"
    folders = write_repository(bundle, repository)
    assert [folder.parent.name for folder in folders] == ["red", "red-720x1280", "red-1080x1920"]
    config = config_of(repository / "red-720x1280")
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.9": "plan-0.plan", "8.6": "plan-1.plan", "9.0": "plan-6.plan"}
    assert config.default_model_filename == "plan-2.plan"  # for every GPU from 8.0 on
    assert config.max_batch_size == 2  # what every plan takes
    assert list(config.input[0].dims) == [720, 1280, 3]
    assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_GPU]
    assert config.parameters["tensorrt_version"].string_value == "10.3.0.30"
    assert config.parameters["program_sha256.1"].string_value == bundle.manifest.files[PROGRAM_NAME]
    assert (repository / "red-720x1280" / "1" / "plan-0.plan").read_bytes() == b"plan 0"
    assert sorted(os.listdir(repository / "red-1080x1920" / "1")) == ["plan-2.plan"]
    left = [line for line in said if "left out" in line]
    assert [line.partition(": left out: ")[2].split(",")[0] for line in left] == [
        "plans of TensorRT-RTX are not for Triton",
        "plans for a Jetson's accelerator are not for Triton",
        "a server has one TensorRT",
    ]


def test_a_damaged_plan_is_left_out(red_bundle, tmp_path, said):
    bundle = with_plans(red_bundle, tmp_path / "planned", {})
    (bundle.folder / "engines" / "plan-0.plan").write_bytes(b"other!")
    assert [folder.parent.name for folder in write_repository(bundle, tmp_path / "repository")] == ["red"]
    assert [line for line in said if line.endswith("left out: it was changed or damaged")]


def test_versions_stand_beside_each_other_and_none_is_written_over(red_bundle, tmp_path, capsys):
    repository = tmp_path / "repository"
    second = copy_of(red_bundle, tmp_path / "second", program=green(red_bundle.program_path.read_bytes()))
    write_repository(red_bundle, repository)
    path = repository / "red" / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 2", "count: 7"))  # somebody's own setting
    assert write_repository(second, repository) == [repository / "red" / "2"]
    config = config_of(repository / "red")
    assert list(config.version_policy.specific.versions) == [1, 2]
    for number, bundle in ((1, red_bundle), (2, second)):
        assert config.parameters[f"program_sha256.{number}"].string_value == bundle.manifest.files[PROGRAM_NAME]
        assert (repository / "red" / str(number) / PROGRAM_NAME).read_bytes() == bundle.program_path.read_bytes()
    assert config.instance_group[0].count == 7
    before = path.read_bytes()
    capsys.readouterr()
    assert main(["--bundle", str(second.folder), "--target", "triton", "--output", str(repository)]) == 2
    said = capsys.readouterr().err.strip()
    assert said == (
        f"error: {repository / 'red'}: expected a program that is not there yet, got that of version 2, which is not written again: "
        "remove that version first, or choose another --output"
    )
    assert path.read_bytes() == before
    assert sorted(os.listdir(repository / "red")) == ["1", "2", "config.pbtxt"]


def test_a_number_that_somebody_used_is_left_alone(red_bundle, tmp_path):
    repository = tmp_path / "repository"
    write_repository(red_bundle, repository)
    (repository / "red" / "5").mkdir()
    second = copy_of(red_bundle, tmp_path / "second", program=green(red_bundle.program_path.read_bytes()))
    assert write_repository(second, repository) == [repository / "red" / "6"]
    assert list(config_of(repository / "red").version_policy.specific.versions) == [1, 6]


def test_another_model_of_that_name_is_refused(red_bundle, tmp_path):
    repository = tmp_path / "repository"
    write_repository(red_bundle, repository)
    counting = write_bundle(tmp_path / "counting", red_program(counts=True))
    with pytest.raises(
        BundleError, match=r"config.pbtxt: expected a model of which this can be a version, with output "
    ):
        write_repository(counting, repository)
    (repository / "red" / "config.pbtxt").write_text("name: 'red' bakend: 'x'")
    with pytest.raises(
        BundleError, match=r'config.pbtxt: expected a model\'s configuration, cannot read it \(.*"bakend"'
    ) as caught:
        write_repository(counting, repository)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(repository / "red")) == ["1", "config.pbtxt"]


def test_writers_at_once_write_each_its_own_version(red_bundle, tmp_path):
    bundles = []
    for number in range(4):
        model = onnx.load(str(red_bundle.program_path))
        model.doc_string = str(number)
        bundles.append(copy_of(red_bundle, tmp_path / f"bundle{number}", program=model.SerializeToString()))
    repository = tmp_path / "repository"
    threads = [threading.Thread(target=write_repository, args=(bundle, repository)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    config = config_of(repository / "red")
    assert list(config.version_policy.specific.versions) == [1, 2, 3, 4]
    hashes = {config.parameters[f"program_sha256.{number}"].string_value for number in range(1, 5)}
    assert hashes == {bundle.manifest.files[PROGRAM_NAME] for bundle in bundles}


def test_nothing_is_left_of_a_write_that_fails(red_bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton_repository.shutil, "copyfile", full)
    with pytest.raises(
        BundleError, match=r"repository: cannot be written \(No space left on device\): choose another --output$"
    ):
        write_repository(red_bundle, tmp_path / "here" / "repository")
    assert os.listdir(tmp_path / "here") == ["repository"]
    assert os.listdir(tmp_path / "here" / "repository") == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"composes": True}, r"expected a program for Triton that gives masks alone, got one that draws"),
        ({"contract": {"name": "x", "state": "x"}}, r"expected a program for Triton that takes each frame alone"),
    ],
)
def test_what_servers_cannot_compute_is_refused(red_bundle, tmp_path, entries, message):
    with pytest.raises(BundleError, match=message):
        write_repository(copy_of(red_bundle, tmp_path / "bundle", **entries), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_size_that_the_program_has_fixed(red_bundle, tmp_path):
    bundle = copy_of(red_bundle, tmp_path / "bundle", frame_size_hw=(4, 6))
    with pytest.raises(
        CompileError, match=r"^--frame: expected 4x6, which the bundle's program has fixed, got another size$"
    ):
        write_repository(bundle, tmp_path / "repository", frame_size_hw=(4, 8))
    write_repository(bundle, tmp_path / "repository")
    assert list(config_of(tmp_path / "repository" / "red-4x6").input[0].dims) == [4, 6, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "u2netp", "--output", "x", "--target", "triton"],
            "--target triton: expected --bundle DIR, a bundle to put into a",
        ),
        (
            ["--bundle", "x", "--target", "triton"],
            "--target triton: expected --output DIR, the model repository, got none",
        ),
        (
            ["--bundle", "x", "--target", "triton", "--output", "y", "--verify", "z"],
            "--bundle: expected no --verify beside it",
        ),
        (
            ["--bundle", "x", "--target", "triton", "--output", "y", "--precision", "fp16"],
            "--bundle: expected no --precision beside it",
        ),
        (
            ["--bundle", "x", "--target", "triton", "--output", "y", "--sm", "86"],
            "--sm: expected --target tensorrt-rtx beside it",
        ),
    ],
)
def test_options(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
