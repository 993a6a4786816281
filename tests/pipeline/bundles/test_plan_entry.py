"""What a manifest says of a plan: read into a type, and written again as it was."""

import dataclasses
import json

import pytest

from pipeline.bundles.plan_entry import PlanEntry

ENTRY = {
    "file": "engines/tensorrt-10.3-sm87-fp16.plan",
    "runtime": "tensorrt",
    "version": "10.3.0.30",
    "sms": [87],
    "hardware": "ampere+",
    "version_compatible": True,
    "device": "Orin",
    "profile": [[1, 64, 64, 3], [1, 720, 1280, 3], [4, 2160, 3840, 3]],
    "dla_core": 1,
    "gpu_layers": ["resize"],
    "float_scales": False,
    "size_bytes": 4,
}


def test_an_entry_is_read_into_its_type():
    entry = PlanEntry.from_dict(ENTRY)
    assert (entry.sms, entry.profile[1], entry.gpu_layers) == ((87,), (1, 720, 1280, 3), ("resize",))
    assert (entry.hardware, entry.version_compatible, entry.dla_core) == ("ampere+", True, 1)
    assert entry.is_complete("bgr")
    assert not entry.is_complete("nv12")
    assert entry.others == {}


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        dict(reversed(ENTRY.items())),
        {"runtime": "torch-tensorrt", "file": "x", "versions": {"torch": "2.13.0"}, "sms": [90]},
        {**ENTRY, "verification": {"iou_mean": 0.99}, "of a later version": [1, {"a": None}]},
        {**ENTRY, "sms": ["87"], "profile": None, "dla_core": -1, "gpu_layers": 7, "keys": 1, "others": 2},
        {"runtime": []},
        {},
    ],
)
def test_what_is_read_is_written_as_it_was(entry):
    assert json.dumps(PlanEntry.from_dict(entry).as_dict()) == json.dumps(entry)


def test_what_was_measured_comes_to_the_end_of_an_entry():
    entry = dataclasses.replace(PlanEntry.from_dict(ENTRY), verification={"iou_mean": 0.99})
    assert entry.as_dict() == {**ENTRY, "verification": {"iou_mean": 0.99}}


@pytest.mark.parametrize(
    ("other", "replaced"),
    [
        ({"version": "10.4.0.1", "file": "engines/other.plan"}, True),
        ({"sms": [86]}, True),  # the same file
        ({"file": "engines/other.plan", "sms": [86]}, False),
        ({"file": "engines/other.plan", "dla_core": None}, False),
        ({"file": "engines/other.plan", "runtime": "tensorrt-rtx"}, False),
        ({"file": "engines/other.plan", "hardware": "same"}, False),
    ],
)
def test_which_plan_is_replaced(other, replaced):
    assert PlanEntry.from_dict(ENTRY).replaces(PlanEntry.from_dict({**ENTRY, **other})) == replaced
