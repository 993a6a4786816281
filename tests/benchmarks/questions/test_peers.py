import json
import os
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import av
import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.__main__ import main
from benchmarks.peers import commands as peers_commands
from benchmarks.peers import on_gpu as peers_gpu
from benchmarks.peers.runs import Clock, Run, read_masks
from benchmarks.peers.trtexec import TOOLS
from benchmarks.questions.peers import PEERS, ratios
from benchmarks.shared.plots import WIDTH_PX
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.errors import BackendUnavailableError, OptionError

FAKE_REMBG = """#!{python}
import os, sys
import cv2, numpy as np
width, height = map(int, sys.argv[-2:])
target = sys.argv[sys.argv.index("-o") + 1]
assert sys.argv[1:4] == ["b", "-m", "tiny"], sys.argv
assert os.path.isfile(os.path.join(os.environ["U2NET_HOME"], "tiny.onnx"))
index = 0
while len(raw := sys.stdin.buffer.read(width * height * 3)) == width * height * 3:
    rgb = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
    picture = rgb[..., 0] if "-om" in sys.argv else np.dstack([rgb[..., ::-1], rgb[..., 0]])
    cv2.imwrite(target % index, picture)
    index += 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, red_bundle):
    """6 frames of a red square on grey, a network whose scores are the red channel, and a bundle whose masks are."""
    folder = tmp_path_factory.mktemp("peers")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(6):
            image = np.full((64, 96, 3), 40, np.uint8)
            image[16:48, 20 + 2 * index : 60 + 2 * index] = (30, 30, 230)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    graph = helper.make_graph(
        [helper.make_node("Slice", ["input", "from", "to", "axis"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 48])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 32, 48])],
        initializer=[
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("from", 0), ("to", 1), ("axis", 1))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "tiny.onnx"))
    manifest = replace(red_bundle.manifest, model="tiny", network_size_hw=(32, 48))
    Bundle.write(folder / "bundle", manifest, {PROGRAM_NAME: red_bundle.program_path.read_bytes()})
    return folder


def no_driver():
    raise BackendUnavailableError("no driver")


def given(place, *more):
    known = {"--clip": place / "clip.mp4", "--model": place / "bundle", "--network": place / "tiny.onnx"}
    options = {**known, "--frames": 3, "--rounds": 1, **dict(zip(more[::2], more[1::2], strict=True))}
    return ["peers", *(str(part) for pair in options.items() for part in pair)]


def test_loops_are_compared_and_tools_that_are_not_here_are_told(place, tmp_path, monkeypatch, capsys):
    for name in ("rembg", "supervision", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(peers_commands, "_rembg_program", lambda: None)
    monkeypatch.setattr(peers_gpu, "require_driver", no_driver)
    result, plot = tmp_path / "result.json", tmp_path / "plots" / "plot.png"
    assert main(given(place, "--rounds", 2, "--json", result, "--plot", plot)) == 0
    printed = capsys.readouterr().out
    assert "tiny, fp32, contract stream, 3 frames of clip.mp4 (96×64), median of 2 rounds" in printed
    assert "rembg is not here: pip install 'edgemask[peers]'" in printed
    entries = json.loads(result.read_text())
    rows = {row["tool"]: row for row in entries["table"]}
    assert set(rows) == {f"edgemask_{name}" for name in peers_gpu.ALL_OURS} | set(PEERS)
    missing = {key for key, row in rows.items() if "missing" in row}
    assert missing == {*PEERS, "edgemask_video_gpu"} - {"opencv", "opencv_dnn"}
    assert "not here: the bundle has no plan for a GPU: build one with: python -m compile --bundle" in printed
    assert {row["tool"] for row in entries["engines"] if "missing" in row} == set(TOOLS)
    assert set(entries["ratios"]) == {
        f"{rate}_over_{key}" for rate in ("fps", "running_fps", "cpu") for key in ("opencv", "opencv_dnn")
    }
    for key in ("opencv", "opencv_dnn"):
        assert rows[key]["iou_mean"] > 0.9
        assert len(rows[key]["ours_over_each"]) == 2
        assert rows[key]["ours_over"] == entries["ratios"][f"fps_over_{key}"] > 0
        assert rows[key]["written_bytes"] > 0
    assert rows["edgemask_video"]["written_bytes"] > 0
    assert rows["edgemask_masks"]["written_bytes"] > 0
    assert cv2.imread(str(plot)).shape[1] == WIDTH_PX


@pytest.mark.needs_program("ffmpeg")
def test_rembg_as_a_command_gets_raw_frames_and_its_masks_and_cutouts_are_read(place, tmp_path, monkeypatch, capsys):
    program = tmp_path / "rembg"
    program.write_text(FAKE_REMBG.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(peers_commands, "_rembg_program", lambda: str(program))
    result = tmp_path / "result.json"
    assert main(given(place, "--only", "rembg,rembg_cutouts", "--json", result)) == 0
    entries = json.loads(result.read_text())
    assert [row["tool"] for row in entries["table"]] == [
        "edgemask_command_masks",
        "edgemask_command_cutouts",
        "rembg",
        "rembg_cutouts",
    ]
    found = entries["ratios"]
    assert found["iou_with_rembg"] > 0.95
    assert found["fps_over_rembg"] > 0
    assert found["running_fps_over_rembg_cutouts"] > 0
    assert entries["table"][3]["iou_worst"] > 0.95


@pytest.mark.needs_program("ffmpeg")
def test_a_command_that_fails_is_told_in_its_row(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers_commands, "_rembg_program", lambda: shutil.which("false"))
    assert main(given(place, "--only", "rembg")) == 0
    assert "false: expected it to run, got exit status 1" in capsys.readouterr().out


@pytest.mark.needs("PIL")
def test_rembg_in_the_process_runs_with_the_network_that_is_given(place, tmp_path, monkeypatch):
    from PIL import Image

    homes = []

    def new_session(name):
        homes.append(os.listdir(os.environ["U2NET_HOME"]))
        return name

    def remove(picture, *, session, only_mask):
        assert (session, only_mask) == ("tiny", True)
        return Image.fromarray(np.asarray(picture)[..., 0])

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(new_session=new_session, remove=remove))
    result = tmp_path / "result.json"
    assert main(given(place, "--only", "rembg_remove", "--json", result)) == 0
    assert homes[0] == ["tiny.onnx"]
    (row,) = [row for row in json.loads(result.read_text())["table"] if row["tool"] == "rembg_remove"]
    assert row["iou_worst"] > 0.95


def test_supervision_and_openvino_stand_in_the_same_loop(place, tmp_path, monkeypatch):
    drawn, configs = [], []

    class MaskAnnotator:
        def __init__(self, color, opacity):
            assert (color, opacity) == ((0, 255, 0), 0.5)

        def annotate(self, image, detections):
            drawn.append(detections.mask.shape)
            return image

    class Core:
        def compile_model(self, path, device, config):
            configs.append((device, config))
            return lambda blob: [blob[:, :1]]

    fake = SimpleNamespace(
        MaskAnnotator=MaskAnnotator,
        Color=lambda *rgb: rgb,
        mask_to_xyxy=lambda masks: np.zeros((len(masks), 4), int),
        Detections=lambda xyxy, mask, class_id: SimpleNamespace(mask=mask),
    )
    monkeypatch.setitem(sys.modules, "supervision", fake)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    result = tmp_path / "result.json"
    assert main(given(place, "--only", "supervision,openvino,openvino_fp32", "--json", result)) == 0
    assert drawn[-3:] == [(1, 64, 96)] * 3
    assert ("CPU", {}) in configs
    assert ("CPU", {"INFERENCE_PRECISION_HINT": "f32"}) in configs
    rows = {row["tool"]: row for row in json.loads(result.read_text())["table"]}
    assert rows["openvino"]["iou_mean"] > 0.9
    assert rows["supervision"]["iou_mean"] > 0.9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--frames", 0), "--frames: expected 1 or more, got 0"),
        (("--rounds", -1), "--rounds: expected 1 or more, got -1"),
        (("--frames", 7), "--frames: expected at most the 6 frames of"),
        (("--only", "rembg,imgly"), "--only: expected some of rembg, "),
        (("--network", "nowhere.onnx"), "--network nowhere.onnx: no such file"),
    ],
)
def test_what_cannot_be_measured_is_told(place, more, message, capsys):
    assert main(given(place, *more)) == 2
    assert message in capsys.readouterr().err


def test_a_bundle_of_classes_is_refused(place, class_bundle, capsys):
    assert main(given(place, "--model", class_bundle.folder)) == 2
    assert "expected a bundle of binary masks, got one of classes" in capsys.readouterr().err


def test_ratios_are_those_of_the_tools_that_ran():
    rows = [
        {"tool": "edgemask_command_masks", "fps": 4.0},
        {
            "tool": "rembg",
            "ours_over": 1.3,
            "ours_over_running": 1.2,
            "ours_over_cpu": 1.1,
            "iou_mean": 0.995,
            "iou_worst": 0.99,
        },
        {"tool": "openvino", "missing": "openvino is not here"},
    ]
    assert ratios(rows) == {
        "fps_over_rembg": 1.3,
        "running_fps_over_rembg": 1.2,
        "cpu_over_rembg": 1.1,
        "iou_with_rembg": 0.995,
        "iou_with_rembg_worst": 0.99,
    }


def test_rates_count_the_start_or_leave_it_out(tmp_path):
    mask = np.zeros((2, 2), np.uint8)
    run = Run(4.0, 2.0, [mask] * 5)
    assert (run.fps, run.running_fps) == (1.25, 2.0)
    assert Run(4.0, 0.0, [mask]).running_fps == 0.25
    (tmp_path / "file").write_bytes(b"12345")
    clock = Clock(start_s=0.0, finished_s=[1.0, 3.0])
    clocked = clock.run([mask] * 2, tmp_path)
    assert (clocked.running_s, clocked.written) == (2.0, 5)


def test_pictures_that_are_no_masks_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.full((4, 6, 4), (1, 2, 3, 200), np.uint8))
    cv2.imwrite(str(tmp_path / "1.png"), np.full((4, 6), 100, np.uint8))
    assert [int(mask[0, 0]) for mask in read_masks(tmp_path, 2)] == [200, 100]
    with pytest.raises(OptionError, match="expected 3 pictures, got 2"):
        read_masks(tmp_path, 3)
    cv2.imwrite(str(tmp_path / "2.png"), np.full((4, 6, 3), 100, np.uint8))
    with pytest.raises(OptionError, match=r"2\.png: expected a mask or a cut-out, got another picture"):
        read_masks(tmp_path, 3)
