import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from benchmarks.gpu import prepare as gpu_prepare
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu import torch_program as gpu_torch
from benchmarks.gpu.rows import Rows, ratios, read_rows, table
from benchmarks.gpu.samples import Sample, agreement
from benchmarks.questions import gpu
from benchmarks.shared.power_sensors import Sensor
from compile.networks.contract import Contract
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, Manifest
from pipeline.command.command_line import OptionParser
from pipeline.engines import open_engine
from pipeline.errors import BackendUnavailableError, OptionError


@pytest.fixture(scope="module")
def data(tmp_path_factory, spread_unet):
    """A folder as ``benchmarks/gpu.sh prepare`` makes it, with a network of a few weights."""
    folder = tmp_path_factory.mktemp("gpu")
    network = spread_unet(0, False, (32, 32), 2)
    torch.save(network.state_dict(), folder / "tiny.pth")
    contract = Contract("stream", (32, 32)).as_dict()
    for precision in ("fp32", "fp16"):
        manifest = Manifest(
            "tiny", "binary", ("subject",), (32, 32), precision, contract, {"file": "tiny.pth"}, {}, "2026-01-01"
        )
        Bundle.write(folder / f"bundle-{precision}", manifest, {PROGRAM_NAME: b"not run here"})
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for index in range(5):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    return folder


ROOT = Path(gpu.__file__).parents[2]


def options(*arguments):
    parser = OptionParser()
    parser.add_argument("--json")
    gpu.add_options(parser)
    return gpu.Options(**vars(parser.parse_args([*map(str, arguments)])))


@pytest.fixture
def rows_of(data, tmp_path):
    """``rows_of(part)``: what a part measures on the CPU, in this process."""

    def measure(part):
        path = tmp_path / "rows"
        gpu.measure(options("--data", data, "--device", "cpu", "--quick", "--part", part, "--rows", path))
        rows = read_rows(path)
        assert [row["error"] for row in rows if "error" in row] == []
        return rows

    return measure


def test_the_frame_program_is_timed_and_compared(rows_of):
    rows = [row for row in rows_of("torch") if row["part"] == "frame program"]
    assert {row["what"] for row in rows} == {"eager fp32", "eager fp16", "eager fp16 channels_last"}
    assert {row["size"] for row in rows} == {"48x64", "36x48"}
    for row in rows:
        assert row["runs"] == 3
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["pictures"] == 4
        assert 0.95 < row["iou_worst"] <= row["iou_mean"] <= 1
        assert row["max_difference"] <= (0 if row["what"] == "eager fp32" else 8)


def test_a_compiled_program_agrees_too(rows_of):
    rows = [row for row in rows_of("torch-compile") if row["part"] == "frame program"]
    assert {row["what"] for row in rows} == {"torch.compile fp32", "torch.compile fp16"}
    assert all(row["iou_worst"] > 0.95 for row in rows)


def test_the_pipeline_is_measured_against_its_engine(rows_of):
    alone, *ways = [row for row in rows_of("pipeline-torch") if row["part"] == "pipeline"]
    assert alone["engine_fps"] > 0
    assert [row["what"].split(", ")[1] for row in ways] == ["memory to null", "clip to null", "clip to H.264"]
    assert [row["frames"] for row in ways] == [6, 5, 5]
    for row in ways:
        assert row["ratio"] == pytest.approx(row["pipeline_fps"] / row["engine_fps"], abs=1e-3)
        assert set(row["stages_p50_ms"]) == {"decode", "engine", "render", "write"}
        assert row["size"] == "48x64"


def test_what_the_gpu_drew_is_in_the_rows(rows_of, monkeypatch):
    idle = Sensor("NVIDIA T4 (GPU 0)", power_w=lambda: 10.0)
    busy = Sensor("NVIDIA H200 (GPU 1)", power_w=lambda: 300.0, holding_back=lambda: frozenset({"power limit"}))
    sensors = [idle, busy, Sensor("NVIDIA GPU 2", missing="gone")]
    monkeypatch.setattr("benchmarks.gpu.in_pipeline.nvidia_sensors", lambda: sensors)
    alone, *ways = [row for row in rows_of("pipeline-torch") if row["part"] == "pipeline"]
    assert (alone["mean_w"], alone["throttled_by"]) == (300, ["power limit"])
    # The same frames and nearly the same time; power is constant here.
    assert alone["frames_per_joule"] == pytest.approx(alone["engine_fps"] / 300, rel=0.3)
    assert all(row["frames_per_joule"] > 0 for row in ways)


@pytest.fixture
def whole_data(data, tmp_path, red_bundle):
    """The same with programs that ONNX Runtime runs."""
    folder = tmp_path / "whole"
    for precision in ("fp32", "fp16"):
        shutil.copytree(red_bundle.folder, folder / f"bundle-{precision}")
    shutil.copyfile(data / "clip.mp4", folder / "clip.mp4")
    return folder


def measured(part, folder):
    given = options("--data", folder, "--device", "cpu", "--quick", "--part", part, "--rows", folder / "rows")
    gpu.measure(given)
    rows = read_rows(folder / "rows")
    assert [row["error"] for row in rows if "error" in row] == []
    return next(row for row in rows if row["part"] == "run")


def test_the_measured_choice_is_a_row(whole_data, monkeypatch):
    monkeypatch.setenv("EDGEMASK_CACHE", str(whole_data / "cache"))
    row = measured("auto", whole_data)
    assert (row["frames"], row["plans"]) == (120, [])
    assert row["guess"].startswith("ONNX Runtime")
    assert row["took"]
    assert row["told"].startswith(("--backend auto: ", "nothing: "))


def test_an_engine_that_takes_over_is_timed(whole_data):
    row = measured("swap", whole_data)
    assert row["taken"]
    assert row["frames"] >= 40
    assert 0 < row["usual_gap_ms"] <= row["longest_gap_ms"]
    assert "taken, opened in" in " ".join(table([row]))


def test_an_engine_that_cannot_take_over_is_a_failure(whole_data, monkeypatch):
    made = []

    def once(*given):
        if made:
            raise BackendUnavailableError("the GPU's memory is taken")
        made.append(open_engine(*given))
        return made[0]

    monkeypatch.setattr("benchmarks.gpu.in_run.open_engine", once)
    gpu.measure(
        options("--data", whole_data, "--device", "cpu", "--quick", "--part", "swap", "--rows", whole_data / "rows")
    )
    failed = [row["error"] for row in read_rows(whole_data / "rows") if "error" in row]
    assert failed == ["BackendUnavailableError: the GPU's memory is taken"]


def test_what_audits_cost_is_a_row(whole_data, monkeypatch):
    # However busy the machine of the tests is.
    monkeypatch.setattr("pipeline.audit.shadow_gate._LEAST_IDLE_CORES", 0.0)
    monkeypatch.setattr("benchmarks.gpu.in_run._AUDIT_BEGINS_S", 300.0)
    row = measured("audit", whole_data)
    assert row["audits"] + row["skipped"] >= 1
    assert row["ratio"] == pytest.approx(row["fps"] / row["fps_without"], rel=0.01)


def test_parts_by_name_alone(data, monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(gpu, "_in_process", lambda part, *_: begun.append(part) or [])
    gpu.measure(options("--data", data, "--device", "cpu", "--parts", "swap", "decoding", "machine"))
    assert begun == ["swap", "machine"]  # there is no GPU that decodes
    with pytest.raises(OptionError, match="invalid choice: 'swop'"):
        options("--parts", "swop")


def test_plans_are_for_what_runs_here(monkeypatch):
    from benchmarks.gpu import planned

    def load(runtime):
        if runtime == "tensorrt":
            raise BackendUnavailableError("TensorRT is not here")

    monkeypatch.setattr(planned, "load_tensorrt", load)
    monkeypatch.setattr(planned, "find_gpu", lambda: SimpleNamespace(sm=90))
    with pytest.raises(
        BackendUnavailableError, match=r"^TensorRT is not here; tensorrt-rtx: it does not run on .* 9\.0$"
    ):
        planned.usable_runtimes()
    monkeypatch.setattr(planned, "find_gpu", lambda: SimpleNamespace(sm=89))
    assert planned.usable_runtimes() == ["tensorrt-rtx"]


def test_each_part_has_a_process_of_its_own_and_a_failure_is_a_row(data, tmp_path, monkeypatch, capfd):
    kept = {name: gpu.PARTS[name] for name in ("machine", "copies")}
    broken = {"torch": ("benchmarks.nowhere", "measure", 60, True)}
    monkeypatch.setattr(gpu, "PARTS", {**kept, **broken})
    path = tmp_path / "out" / "gpu_none.json"
    given = options("--data", data, "--device", "cpu", "--quick", "--json", path)
    commands = []
    run = gpu.subprocess.run

    def instead(command, **settings):
        commands.append(command)
        if "torch" not in command:
            return run(
                [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {command[2:]!r}; {CHILD}",
                ],
                **settings,
            )
        return run([sys.executable, "-c", "import os, sys; sys.stderr.write('x\\nbad\\n'); os.abort()"], **settings)

    monkeypatch.setattr(gpu.subprocess, "run", instead)
    gpu.measure(given)
    result = json.loads(path.read_text())
    parts = {row["part"] for row in result["table"]}
    assert "copies" not in parts  # there is no GPU
    assert "machine" in parts
    failed = [row for row in result["table"] if "error" in row]
    assert [(row["part"], row["error"]) for row in failed] == [("torch", "ended with status -6: bad")]
    assert result["question"] == "gpu"
    out, _ = capfd.readouterr()
    assert "FAILED torch, all of it: ended with status -6: bad" in out


CHILD = (
    "from benchmarks.questions import gpu; from pipeline.command.command_line import OptionParser; p = OptionParser(); "
    "p.add_argument('--json'); gpu.add_options(p); gpu.measure(gpu.Options(**vars(p.parse_args(sys.argv[2:]))))"
)


def test_a_part_that_takes_too_long_and_one_without_time_are_rows(data, monkeypatch):
    given = options("--data", data, "--device", "cpu", "--quick", "--limit", "0")
    (row, *_) = gpu._in_process("machine", 0.0, given)
    assert row["error"] == "not begun: the limit of 0 s is reached: --parts machine"

    def slow(command, timeout, **_):
        raise gpu.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.subprocess, "run", slow)
    (row, taken) = gpu._in_process("machine", 7.0, given)
    assert row["error"] == "ended after 7 s, its limit"
    assert taken["part"] == "time"


def test_without_a_gpu_one_line_says_so(data, monkeypatch):
    monkeypatch.setattr(gpu, "nvidia_smi", lambda _: {})
    with pytest.raises(
        BackendUnavailableError, match=r"^gpu: expected an NVIDIA GPU, got none \(nvidia-smi names none\)"
    ):
        gpu.measure(options("--data", data))


def test_without_its_data_the_script_that_makes_them_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"got no bundle-fp32: make them with benchmarks/gpu.sh prepare$"):
        gpu.measure(options("--data", tmp_path, "--device", "cpu"))


@pytest.mark.parametrize(
    ("out", "status", "expected"),
    [
        ("NVIDIA H200, 580.159.04\nNVIDIA H200, 580.159.04\n", 0, {"name": "NVIDIA H200", "driver": "580.159.04"}),
        ("NVIDIA-SMI has failed\n", 9, {}),
        ("", 0, {}),
    ],
)
def test_nvidia_smi_is_read(monkeypatch, out, status, expected):
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=out, returncode=status))
    assert gpu.nvidia_smi(("name", "driver")) == expected


def test_a_failure_is_a_row_and_rows_are_kept_at_once(tmp_path):
    rows = Rows(tmp_path / "rows")
    with rows.item("copies", "good") as row:
        row["up_gb_per_s"] = 1.0
    with rows.item("tensorrt-rtx", "bad") as row:
        row["plan_bytes"] = 3
        raise ValueError("TensorRT's words\nin two lines")
    assert read_rows(tmp_path / "rows") == rows.rows
    assert rows.rows[1]["error"] == "ValueError: TensorRT's words in two lines"
    assert rows.rows[1]["plan_bytes"] == 3
    with (tmp_path / "rows").open("a") as file:
        file.write('{"part": "cut o')
    assert len(read_rows(tmp_path / "rows")) == 2
    assert read_rows(tmp_path / "none") == []


ROWS = [
    {"part": "machine", "what": "gpu", "name": "NVIDIA H200"},
    {"part": "copies", "what": "page-locked", "up_gb_per_s": 51.24, "down_gb_per_s": 50.06},
    *(
        {"part": "frame program", "what": what, "size": size, "p50_ms": ms, "p95_ms": 2 * ms, "iou_mean": 0.99871}
        | {"max_difference": 3}
        for what, size, ms in (
            ("eager fp32", "1080x1920", 9.0),
            ("eager fp32", "720x1280", 4.5),
            ("new", "720x1280", 1.0),
        )
    ),
    {"part": "tensorrt-rtx", "what": "SM 80, fp16, build", "validity": "INVALID (UNSUPPORTED_CC)"},
    {"part": "tensorrt-rtx", "what": "SM 80, fp16", "error": "PlanError: " + "TensorRT refuses the plan. " * 9},
    {
        "part": "tensorrt-rtx",
        "what": "CURRENT, fp16",
        "p50_ms": 1.5,
        "p95_ms": 1.75,
        "iou_mean": 0.999,
        "max_difference": 1,
    }
    | {"first_start_s": 3.25, "second_start_s": 0.5},
    {"part": "pipeline", "what": "PyTorch fp16, engine alone", "engine_fps": 400.0},
    {
        "part": "pipeline",
        "what": "PyTorch fp16, memory to null",
        "engine_fps": 400.0,
        "pipeline_fps": 380.0,
        "ratio": 0.95,
    }
    | {"stages_p50_ms": {"decode": 0.1, "engine": 2.0, "render": 2.5}},
    {"part": "pipeline", "what": "drawn", "engine_fps": 400.0, "pipeline_fps": 380.0, "ratio": 0.95}
    | {"stages_p50_ms": {"render": 2.5}, "frames_per_joule": 1.254, "mean_w": 303.4, "throttled_by": ["power limit"]},
    {"part": "decoding", "what": "NVDEC, frames stay there", "frames": 300, "fps": 1234.56},
    {"part": "decoding", "what": "planes copied inside the GPU", "p50_us": 21.5, "max_difference": 0},
    {"part": "decoding", "what": "tensorrt, the GPU draws", "cuda_fps": 500.0, "cpu_fps": 250.0, "frames": 300}
    | {"stayed": 300, "iou_mean": 1.0, "iou_worst": 0.999, "max_difference": 1},
    {"part": "run", "what": "another engine takes over", "taken": False, "opened_s": 1.5, "longest_gap_ms": 20.0}
    | {"usual_gap_ms": 2.0},
    {"part": "run", "what": "audit of 1/10", "fps": 99.0, "fps_without": 100.0, "ratio": 0.99, "audits": 3}
    | {"skipped": 1},
    {"part": "decoding", "what": "all of it"},
    {"part": "time", "what": "torch", "took_s": 8.0},
]


def test_the_table():
    lines = table(ROWS)
    text = "\n".join(lines)
    assert "gpu: name NVIDIA H200" in lines
    assert "copies, page-locked: up 51.2 GB/s, down 50.1 GB/s" in lines
    start = lines.index("copies, page-locked: up 51.2 GB/s, down 50.1 GB/s") + 1
    header, fp32, new = lines[start : start + 3]
    assert "decoding, NVDEC, frames stay there: 1234.6 FPS" in lines
    assert "decoding, planes copied inside the GPU: 21.5 µs, max 0" in lines
    assert "NVDEC 500.0 FPS, CPU 250.0, stayed 300 of 300, IoU 1.00000, worst 0.99900, max 1" in " ".join(text.split())
    assert "NOT TAKEN, opened in 1.50 s, longest gap 20.0 ms, usual 2.0" in " ".join(text.split())
    assert "run, audit of 1/10: 99.0 FPS, without 100.0, ratio 0.990, 3 audits, 1 skipped" in lines
    assert header.index("1080x1920") < header.index("720x1280")
    assert fp32.split() == [*("eager", "fp32", "9.000", "18.000", "0.9987", "3"), *("4.500", "9.000", "0.9987", "3")]
    assert new.split() == ["new", "-", "1.000", "2.000", "0.9987", "3"]
    assert "TensorRT-RTX, SM 80, fp16, build: validity INVALID (UNSUPPORTED_CC)" in lines
    assert "1.500 ms, p95 1.750, IoU 0.9990, max 1, start 3.25 s, again 0.50 s" in text
    assert "memory to null: 380.0 FPS, engine alone 400.0, ratio 0.950, slowest render 2.5 ms" in text
    assert "slowest render 2.5 ms, 1.25 frames per joule at 303 W, throttled by power limit" in " ".join(text.split())
    assert "all of it" not in text
    failed, rest = lines[-3], lines[-1]
    assert failed.startswith("FAILED tensorrt-rtx, SM 80, fp16: PlanError: TensorRT refuses the plan.")
    assert rest.endswith("…")
    assert len(rest) < 100
    assert max(map(len, lines)) <= 118
    assert table([]) == []


def test_the_same_failure_is_shown_once():
    rows = [{"part": "frame program", "what": what, "error": "no CUDA"} for what in ("a", "b", "c")]
    assert table(rows) == ["FAILED frame program, a and 2 more: no CUDA"]


def test_the_ratios():
    assert ratios(ROWS) == {f"pipeline/engine, {what}": 0.95 for what in ("PyTorch fp16, memory to null", "drawn")}


def test_the_table_of_a_file(tmp_path, capsys):
    (tmp_path / "gpu.json").write_text(json.dumps({"table": ROWS}))
    gpu_rows.main(str(tmp_path / "gpu.json"))
    assert capsys.readouterr().out.splitlines() == table(ROWS)


def test_agreement_counts_the_worst_picture():
    expected = np.zeros((2, 4), np.uint8)
    expected[:, :2] = 255
    samples = [Sample(np.full((1, 2, 4, 3), value, np.uint8), expected) for value in (0, 1)]

    def masks_of(frames_nhwc):
        got = expected[None].copy()
        got[0, 0, 0] -= 200 * frames_nhwc.max()
        return got

    found = agreement(masks_of, samples, "binary")
    assert found == {"pictures": 2, "iou_mean": 0.875, "iou_worst": 0.75, "max_difference": 200}


def test_the_clip_is_written_larger_and_twice(data, tmp_path, read_pictures):
    gpu_prepare.write_clip(data / "clip.mp4", tmp_path / "clip.mp4", (96, 72))
    images = read_pictures(tmp_path / "clip.mp4")
    assert [image.shape for image in images] == [(72, 96, 3)] * 10
    assert [int(image.mean()) // 40 for image in images[1:5]] == pytest.approx([1, 2, 3, 4], abs=1)


def test_the_module_that_reads_energy_is_carried(tmp_path, monkeypatch, capsys):
    (tmp_path / "pynvml.py").write_text("carried = True")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)  # torch imports it where it is installed
    monkeypatch.syspath_prepend(tmp_path)
    (copied,) = gpu_prepare.copy_nvml(tmp_path / "gpu")
    assert copied == tmp_path / "gpu" / "site" / "pynvml.py"
    assert copied.read_text() == "carried = True"
    monkeypatch.setattr(gpu_prepare.importlib.util, "find_spec", lambda _: None)
    assert gpu_prepare.copy_nvml(tmp_path / "gpu") == []
    assert "pip install 'edgemask[energy]', and prepare again" in capsys.readouterr().out


@pytest.fixture
def read_pictures():
    def read(path):
        capture, images = cv2.VideoCapture(str(path)), []
        while True:
            more, image = capture.read()
            if not more:
                return images
            images.append(image)

    return read


def test_options_are_only_what_is_needed():
    given = options()
    assert (given.data, given.device, given.quick, given.part) == (".gpu", "cuda", False, None)


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["torch", "torch-compile", "pipeline-torch"])
def test_the_gpu_agrees_with_the_cpu(data, tmp_path, part):
    gpu.measure(options("--data", data, "--quick", "--part", part, "--rows", tmp_path / "rows"))
    rows = read_rows(tmp_path / "rows")
    assert [row["error"] for row in rows if "error" in row] == []
    for row in rows:
        if row["part"] == "frame program":
            assert row["iou_worst"] > (0.999 if row["what"].split()[1] == "fp32" else 0.95)
            assert row["max_difference"] <= (2 if row["what"].split()[1] == "fp32" else 8)


@pytest.mark.gpu
def test_the_engine_of_cuda_graphs_keeps_three_in_flight(data):
    from benchmarks.gpu.torch_engine import TorchGraphEngine

    network = gpu_torch.TrainedNetwork(data)
    gpu_torch.settle("cuda")
    small, large = (gpu_torch.take_samples(network, size_hw) for size_hw in ((48, 64), (90, 160)))
    with TorchGraphEngine(network.bundles["fp32"], network.program("fp32", "cuda")) as engine:
        for samples in (small, large, small):
            got = []
            for sample in samples:
                if len(engine._submitted) == engine.in_flight:
                    got.append(engine.collect())
                engine.submit(sample.frames_nhwc)
            got += [engine.collect() for _ in range(engine.in_flight)]
            for mask, sample in zip(got, samples, strict=True):
                np.testing.assert_allclose(mask[0].astype(int), sample.expected_hw, atol=2)


@pytest.mark.gpu
def test_nvdec_gives_the_pictures_of_the_cpu_and_pycuda_reads_them(tmp_path, cli):
    # In a process of its own: FFmpeg must be the first there to use the GPU.
    (tmp_path / "bundle-fp32").mkdir()
    shutil.copyfile(ROOT / "samples" / "clip.mp4", tmp_path / "clip.mp4")
    packages = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    words = ["--data", tmp_path, "--part", "decoding", "--rows", tmp_path / "rows"]
    done = cli("benchmarks", "gpu", *words, env={"PYTHONPATH": packages})
    rows = {row["what"]: row for row in read_rows(tmp_path / "rows")}
    assert [row for row in rows.values() if "error" in row] == [], done.stderr
    assert rows["pictures of both"]["max_difference"] == rows["planes copied inside the GPU"]["max_difference"] == 0
