"""The gate for a plan whose GPU is here: it is run before it is put into the bundle."""

from dataclasses import replace

import numpy as np
import pytest

from compile.draft import Draft
from compile.options import BuildOptions
from compile.plans import plans
from compile.plans.tensorrt_build import Plan, PlanOptions
from compile.proof.verify import Proof, Sample
from pipeline.engines.gpu import Gpu
from pipeline.errors import CompileError

OPTIONS = BuildOptions(bundle="a bundle", target="tensorrt", quiet=True)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def add(request, fake_machine, red_bundle, monkeypatch, caplog):
    """``add(content, factor)``: puts in a plan with this content, checked on red pictures ``factor`` times as large in the mask."""
    fake_machine.install(request.param)
    program = red_bundle.program_path.read_bytes()

    def put_in(content=program, expected=lambda red: red):
        sm = fake_machine.gpu.capability[0] * 10 + fake_machine.gpu.capability[1]
        built = PlanOptions(request.param, (sm,), Gpu("Fake GPU", sm, 1 << 30), batch=1)
        version = "10.3.0.30" if request.param == "tensorrt" else "1.7.1.116"
        monkeypatch.setattr(plans, "build_plan", lambda *_, **__: Plan(content, version, (sm,), built))
        random = np.random.default_rng(0)
        frames = [random.integers(0, 256, (1, 64, 64, 3), np.uint8) for _ in range(3)]
        samples = [Sample(str(index), frame, expected(frame[..., 2])) for index, frame in enumerate(frames)]
        proof = Proof(samples, "binary", "frames", "the network")
        draft = Draft(replace(red_bundle.manifest, files={}), {"program.onnx": program})
        caplog.set_level("INFO", "edgemask")
        result = plans.add_plan(draft, built, proof, OPTIONS)
        return result.manifest, result.files, caplog.messages

    return put_in


def test_a_plan_that_agrees_goes_in_with_what_was_measured(add):
    manifest, files, said = add()
    (entry,) = manifest.engines
    assert set(files) == {"program.onnx", entry.file}
    assert (entry.verification["iou_mean"], entry.verification["frames"]) == (1.0, 3)
    assert "Fake GPU" in entry.verification["runtime"]
    assert entry.verification["against"] == "the network"
    assert "it agrees with the network on 3 frames: mean IoU 1.0000" in said[-1]


def test_a_plan_that_gives_other_masks_does_not(add):
    with pytest.raises(
        CompileError, match=r"^what was compiled does not agree with the network on 3 frames .*Fake GPU"
    ):
        add(expected=lambda red: 255 - red)


def test_a_plan_that_the_gpu_does_not_run_does_not(add):
    with pytest.raises(
        CompileError, match=r"^the plan was built, but this GPU does not run it: TensorRT refuses the plan: "
    ) as caught:
        add(content=b"no plan")
    assert "rebuild" not in str(caught.value)
