"""What TensorRT tells of a plan, and the times of its layers, on the fake GPU."""

import json

import numpy as np
import pytest

from compile.inspect.__main__ import main
from compile.inspect.report import inspect_bundle
from pipeline.engines import open_engine


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def runtime(request, fake_machine):
    fake_machine.install(request.param)
    return request.param


@pytest.mark.parametrize("integrated", [False, True], ids=["desktop", "jetson"])
@pytest.mark.parametrize("schedule", ["late", "others first", "eager"])
def test_looking_at_a_plan_does_not_disturb_it(fake_machine, add_plan, red_bundle, runtime, schedule, integrated):
    fake_machine.gpu.schedule, fake_machine.gpu.integrated = schedule, integrated
    frames = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 3), np.uint8)
    with open_engine(add_plan(red_bundle, runtime), runtime) as engine:
        facts = engine.inspect()
        assert json.loads(facts.layers_json)["Layers"][0]["Inputs"][0]["Dimensions"] == [1, 64, 64, 3]
        assert facts.weights_bytes is None  # the fake has the names that all versions have
        assert engine.profile_layers(4) == {"red": [0.5] * 4}
        for _ in range(4):
            np.testing.assert_array_equal(engine(frames), frames[..., 2])
        assert engine.profile_layers(2) == {"red": [0.5] * 2}


def test_the_report_has_layers_and_times(add_plan, red_bundle, runtime, capsys):
    bundle = add_plan(red_bundle, runtime)
    (plan,) = inspect_bundle(bundle.folder, 3).plans
    assert plan.problem is None
    assert plan.engine.total_ms == 0.5
    assert main([str(bundle.folder), "--times", "3"]) == 0
    assert "0.5" in capsys.readouterr().out
    assert main([str(bundle.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["problem"] is None
