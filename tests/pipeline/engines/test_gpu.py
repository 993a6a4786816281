"""On a real GPU: PyCUDA beside PyTorch, graphs, and TensorRT-RTX through the command and the engine."""

import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.bundles.bundle import Bundle
from pipeline.engines import open_engine
from pipeline.errors import BackendUnavailableError, PlanError

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.gpu
needs_rtx = pytest.mark.needs("tensorrt_rtx_bindings")

# TensorRT-RTX 1.7 on a GPU that it is not made for; any other failure is one.
UNSUPPORTED = re.compile(
    r"cannot run on this GPU|does not support this compute capability|[Cc]ompute capability is invalid or not supported"
    r"|Target GPU SM ?\d+ is not supported|UNSUPPORTED_CC"
)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def device():
    from pipeline.engines.cuda_device import CudaDevice

    return CudaDevice()


class InDevice:
    """Device memory at an address, as PyTorch takes it."""

    def __init__(self, address, size):
        self.__cuda_array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (address, False)}


def content(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def test_name_and_capability_are_those_that_others_see(device, torch):
    line = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[0]
    assert line == f"{device.name}, {device.sm // 10}.{device.sm % 10}"
    assert torch.cuda.get_device_name(0) == device.name
    assert torch.cuda.get_device_capability(0) == (device.sm // 10, device.sm % 10)
    with device:
        assert 0 < device.free_bytes <= torch.cuda.get_device_properties(0).total_memory


def test_a_buffer_goes_up_on_one_stream_and_comes_down_on_another(device):
    given = content(3 << 20)
    with device:
        buffer, upload, download = device.buffer(given.size), device.stream(), device.stream()
        up, down = device.event(), device.event()
        buffer.host[:] = given
        buffer.to_device(given.size, upload)
        up.record(upload)
        up.synchronize()
        if not device.integrated:
            buffer.host[:] = 0
        download.wait_for_event(up)
        buffer.to_host(given.size - 5, download)
        down.record(download)
        down.synchronize()
        got = buffer.host.copy()
        buffer.free()
    np.testing.assert_array_equal(got[:-5], given[:-5])
    if not device.integrated:
        assert not got[-5:].any()


def test_what_pytorch_wrote_is_read_by_pycuda(device, torch):
    from pycuda import driver

    given = content(100_003)
    tensor = torch.from_numpy(given).cuda()
    torch.cuda.synchronize()
    got = np.zeros_like(given)
    with device:
        driver.memcpy_dtoh(got, tensor.data_ptr())
    np.testing.assert_array_equal(got, given)


def test_what_pycuda_wrote_is_read_by_pytorch(device, torch):
    given = content(100_003)
    with device:
        buffer, stream = device.buffer(given.size), device.stream()
        buffer.host[:] = given
        buffer.to_device(given.size, stream)
        stream.synchronize()
    got = torch.as_tensor(InDevice(buffer.address, given.size), device="cuda").cpu().numpy()
    np.testing.assert_array_equal(got, given)
    with device:
        buffer.free()


def test_pytorch_works_on_pycudas_stream_and_after_all_was_freed(device, torch):
    with device:
        stream = device.stream()
        with torch.cuda.stream(torch.cuda.ExternalStream(int(stream.handle))):
            total = torch.arange(1000, device="cuda").sum()
        stream.synchronize()
        assert int(total) == 499_500
        del stream
    del device
    assert int(torch.arange(1000, device="cuda").sum()) == 499_500


def test_made_on_one_thread_and_used_on_another(device):
    given, made, got = content(1 << 16), [], []

    def make():
        with device:
            made.extend((device.buffer(given.size), device.stream()))

    def use():
        buffer, stream = made
        with device:
            buffer.host[:] = given
            buffer.to_device(given.size, stream)
            stream.synchronize()
            buffer.to_host(given.size, stream)
            stream.synchronize()
            got.append(buffer.host.copy())
            buffer.free()
            made.clear()
            del stream

    for work in (make, use):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    np.testing.assert_array_equal(got[0], given)


def test_a_graph_of_copies_is_launched_again_with_new_content(device):
    graph_module = pytest.importorskip("pipeline.engines.cuda_graph")
    from pycuda import driver

    size = 1 << 16
    with device:
        buffer, other, stream = device.buffer(size), device.buffer(size), device.stream()

        def copies():
            driver.memcpy_htod_async(buffer.address, buffer.host, stream)
            driver.memcpy_dtod_async(other.address, buffer.address, size, stream)
            driver.memcpy_dtoh_async(other.host, other.address, stream)

        copies()
        stream.synchronize()
        other.host[:] = 7
        graph = graph_module.CudaGraph(int(stream.handle), copies)
        stream.synchronize()
        assert (other.host == 7).all()  # it was recorded, and not run
        for seed in (1, 2):
            buffer.host[:] = content(size, seed)
            graph.launch()
            stream.synchronize()
            np.testing.assert_array_equal(other.host, content(size, seed))
        graph.close()
        buffer.free()
        other.free()


def test_a_stream_is_as_before_after_work_that_cannot_be_recorded(device):
    graph_module = pytest.importorskip("pipeline.engines.cuda_graph")
    from pycuda import driver

    given = content(4096)
    with device:
        buffer, stream = device.buffer(given.size), device.stream()
        with pytest.raises(driver.Error):
            graph_module.CudaGraph(int(stream.handle), stream.synchronize)  # waiting is no work
        with pytest.raises(ZeroDivisionError):
            graph_module.CudaGraph(int(stream.handle), lambda: 1 / 0)
        buffer.host[:] = given
        for _ in range(2):
            buffer.to_device(given.size, stream)
            buffer.host[:] = given if device.integrated else 0
            buffer.to_host(given.size, stream)
            stream.synchronize()
        np.testing.assert_array_equal(buffer.host, given)
        graph = graph_module.CudaGraph(int(stream.handle), lambda: buffer.to_host(given.size, stream))
        graph.launch()
        stream.synchronize()
        graph.close()
        buffer.free()


def test_cudas_errors_leave_the_device_in_one_sentence(device):
    from pycuda import driver

    with pytest.raises(BackendUnavailableError, match=r"CUDA failed: .*out of memory") as caught, device:
        driver.mem_alloc(1 << 45)
    assert "\n" not in str(caught.value)
    with device:
        device.buffer(16).free()


@pytest.fixture(scope="module", params=["red", "u2netp fp32", "u2netp fp16"])
def planned(request, red_bundle, cli, tmp_path_factory):
    """A copy of a bundle with the plan that ``python -m compile --bundle`` built for this GPU, and checked on it."""
    name, _, precision = request.param.partition(" ")
    source = red_bundle.folder if name == "red" else ROOT / ".gpu" / f"bundle-{precision}"
    if not source.is_dir():
        pytest.skip("benchmarks/gpu.sh prepare was not run")
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    shutil.copytree(source, folder)
    done = cli("compile", "--bundle", folder, "--target", "tensorrt-rtx")
    if done.returncode != 0:
        words = done.stderr.strip()
        (pytest.skip if UNSUPPORTED.search(words) else pytest.fail)(f"TensorRT-RTX on this GPU: {words}")
    return Bundle.read(folder)


@pytest.fixture
def rtx_engine(planned):
    try:
        engine = open_engine(planned, "tensorrt-rtx")
    except PlanError as error:
        if UNSUPPORTED.search(str(error)):
            pytest.skip(f"TensorRT-RTX on this GPU: {error}")
        raise
    with engine:
        yield engine


def pictures(count, height, width):
    """Soft blobs, (1, height, width, 3) each, in which a network finds something."""
    cv2 = pytest.importorskip("cv2")
    blobs = np.random.default_rng(height).integers(0, 256, (count, 6, 6, 3), np.uint8)
    return [cv2.resize(blob, (width, height), interpolation=cv2.INTER_CUBIC)[None] for blob in blobs]


def assert_alike(got, expected):
    """Equal but for rounding: FP16 moves a soft edge by a few steps of 255."""
    difference = np.abs(got.astype(int) - expected)
    assert got.shape == expected.shape
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 8


@needs_rtx
def test_masks_are_those_of_onnx_runtime_whatever_the_size(rtx_engine, planned):
    with open_engine(planned, "onnxruntime") as reference:
        for height, width in ((360, 640), (64, 64), (720, 1280), (360, 640), (333, 257)):
            (given,) = pictures(1, height, width)
            for _ in range(3):  # plainly, recorded, and as a graph
                assert_alike(rtx_engine(given), reference(given))


@needs_rtx
def test_three_in_flight_come_back_in_order(rtx_engine, planned):
    given = pictures(9, 240, 320)
    with open_engine(planned, "onnxruntime") as reference:
        expected = [reference(frames) for frames in given]
    got = []
    for number, frames in enumerate(given):
        if number >= rtx_engine.in_flight:
            got.append(rtx_engine.collect())
        rtx_engine.submit(frames)
    got += [rtx_engine.collect() for _ in range(rtx_engine.in_flight)]
    for mask, other in zip(got, expected, strict=True):
        assert_alike(mask, other)


@needs_rtx
def test_the_runtime_cache_is_written_and_read_again(rtx_engine, planned, monkeypatch):
    from pipeline.engines.runtime_cache import RuntimeCacheFile

    (given,) = pictures(1, 240, 320)
    expected = rtx_engine(given)
    rtx_engine.close()
    (cache,) = planned.folder.rglob("*.cache")
    assert cache.stat().st_size > 0
    loaded = []
    load = RuntimeCacheFile.load
    monkeypatch.setattr(RuntimeCacheFile, "load", lambda file, into: loaded.append(load(file, into)) or loaded[-1])
    with open_engine(planned, "tensorrt-rtx") as again:
        np.testing.assert_array_equal(again(given), expected)
    assert loaded == [True]


@needs_rtx
def test_pytorch_goes_on_beside_and_after_an_engine(rtx_engine, torch):
    (given,) = pictures(1, 240, 320)
    before = torch.arange(1000, device="cuda")
    rtx_engine(given)
    assert int(before.sum()) == 499_500
    rtx_engine.close()
    assert int((before + 1).sum()) == 500_500
