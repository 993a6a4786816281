"""Signs of a GPU, on machines that are folders."""

import pytest

from pipeline.machine.gpu_sign import is_on_the_bus, is_seen

BUS = "sys/bus/pci/devices/0000:01:00.0"


def machine(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ({"dev/nvidia0": ""}, True),
        ({"dev/nvidia7": ""}, True),
        ({"dev/nvhost-gpu": ""}, True),
        ({"dev/nvgpu/igpu0/ctrl": ""}, True),
        ({"usr/lib/wsl/lib/libcuda.so.1": ""}, True),
        ({f"{BUS}/vendor": "0x10de\n", f"{BUS}/class": "0x030200\n"}, True),
        ({f"{BUS}/vendor": "0x10de\n", f"{BUS}/class": "0x040300\n"}, False),  # its sound
        ({f"{BUS}/vendor": "0x8086\n", f"{BUS}/class": "0x030000\n"}, False),
        ({f"{BUS}/vendor": "0x10de\n"}, False),
        ({"dev/nvidiactl": "", "dev/dri/card0": "", "usr/lib/libcuda.so.1": ""}, False),
        ({}, False),
    ],
)
def test_what_is_a_sign(tmp_path, files, seen):
    root = machine(tmp_path, files)
    assert is_seen(root, {}) is seen
    assert is_seen(root, {"CUDA_VISIBLE_DEVICES": "0"}) is seen
    assert not is_seen(root, {"CUDA_VISIBLE_DEVICES": ""})
    assert not is_seen(root, {"CUDA_VISIBLE_DEVICES": "-1"})
    assert is_on_the_bus(root) is (seen and BUS in "".join(files))
