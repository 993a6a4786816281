"""The backend that asks servers, with a server of its protocol that answers as it likes."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from pipeline.engines import open_engine
from pipeline.engines.server_options import ServerOptions
from pipeline.errors import BackendUnavailableError, BundleError

pytest.importorskip("tritonclient.grpc")

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from pipeline.engines import triton_memory
from pipeline.engines.triton_errors import Kind, server_error
from pipeline.engines.triton_memory import Region, Regions, is_left
from tests.conftest import ROOT

FRAMES = np.random.default_rng(0).integers(0, 256, (1, 9, 12, 3), np.uint8)


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Gives a frame's red channel, as ``answer`` changes it, from its second answer on or from the first."""

    def __init__(self):
        self.answer, self.asked, self.good = lambda response: None, 0, 1
        self.regions = set()

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelMetadata(self, request, context):
        response = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"])
        response.inputs.add(name="frames", datatype="UINT8", shape=[-1, -1, -1, 3])
        response.outputs.add(name="masks", datatype="UINT8", shape=[-1, -1, -1])
        return response

    def SystemSharedMemoryRegister(self, request, context):
        self.regions.add(request.name)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):
        self.regions.discard(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def SystemSharedMemoryStatus(self, request, context):
        response = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            response.regions[name].key = f"/{name}"
        return response

    def ModelInfer(self, request, context):
        shape = list(request.inputs[0].shape)
        masks = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)[..., 2]
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        response.outputs.add(name="masks", datatype="UINT8", shape=masks.shape)
        response.raw_output_contents.append(masks.tobytes())
        self.asked += 1
        if self.asked > self.good and (told := self.answer(response)) is not None:
            context.abort(*told)
        return response


@pytest.fixture
def server():
    """A server on loopback; ``servicer`` is what it does, ``options`` how it is reached."""
    with serving(Servicer()) as made:
        yield made


@contextmanager
def serving(servicer):
    """A server that does as it is told, as long as the body."""
    with ThreadPoolExecutor(4) as pool:
        made = grpc.server(pool)
        made.servicer = servicer
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(made.servicer, made)
        made.address = f"127.0.0.1:{made.add_insecure_port('127.0.0.1:0')}"
        made.options = ServerOptions(f"grpc://{made.address}")
        made.start()
        yield made
        made.stop(None).wait()


def other_bytes(change):
    def answer(response):
        response.raw_output_contents[0] = change(response.raw_output_contents[0])

    return answer


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (other_bytes(lambda masks: masks[:-1]), "expected masks of {} bytes, got another number of them"),
        (other_bytes(lambda masks: masks + b"x"), "expected masks of {} bytes, got another number of them"),
        (other_bytes(lambda masks: b""), "expected masks of {} bytes, got another number of them"),
        (
            lambda response: response.ClearField("raw_output_contents"),
            "expected masks of {} bytes, got another number of them",
        ),
        (lambda response: response.ClearField("outputs"), "got none ()"),
        (lambda response: setattr(response.outputs[0], "datatype", "FP32"), "got FP32 (1, "),
        (lambda response: response.outputs[0].shape.append(1), "got UINT8 (1, "),
    ],
)
def test_masks_that_are_none_are_told_in_one_line(red_bundle, server, answer, got, good):
    server.servicer.answer, server.servicer.good = answer, good
    expected = re.escape(got.format("@")).replace("@", r"\d+")
    with (
        pytest.raises(BundleError, match=rf"^grpc://{server.address}: .*{expected}") as caught,
        open_engine(red_bundle, "triton", servers=server.options) as engine,
    ):
        engine(FRAMES)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("good", [0, 1])
def test_what_a_server_says_is_shown_without_orders_to_the_terminal(red_bundle, server, good):
    server.servicer.answer = lambda response: (grpc.StatusCode.INTERNAL, "one\n\x1b[31mtwo\x07")
    server.servicer.good = good
    with (
        pytest.raises(BundleError, match=r"one \[31mtwo.*: look into the server's log") as caught,
        open_engine(red_bundle, "triton", servers=server.options) as engine,
    ):
        engine(FRAMES)
    assert str(caught.value).isprintable()


def test_a_server_that_fails_while_it_comes_back_is_tried_again(red_bundle, server):
    with open_engine(red_bundle, "triton", servers=server.options) as engine:
        np.testing.assert_array_equal(engine(FRAMES), FRAMES[..., 2])
        since = server.servicer.asked

        def answer(response):
            asked = server.servicer.asked - since
            if asked == 1:
                return grpc.StatusCode.UNAVAILABLE, "going"
            return (grpc.StatusCode.INTERNAL, "out of memory") if asked < 4 else None

        server.servicer.answer = answer
        np.testing.assert_array_equal(engine(FRAMES), FRAMES[..., 2])
        assert server.servicer.asked - since >= 5


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: tcp handshaker shutdown", Kind.GONE),
        ("UNAVAILABLE", "Handshake read failed (Endpoint closing)", Kind.GONE),
        ("UNAVAILABLE", "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: …", Kind.REFUSED),
        ("UNAVAILABLE", "last error: UNKNOWN: Failed to create security handshaker.", Kind.REFUSED),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-token'", Kind.REFUSED),
        ("UNAVAILABLE", "Exceeds maximum queue size", Kind.BUSY),
        ("UNIMPLEMENTED", "Received http2 header with status: 404", Kind.FAILED),
    ],
)
def test_errors_by_what_is_to_be_done_about_them(status, text, kind):
    assert server_error(InferenceServerException(text, f"StatusCode.{status}"), 1.0).kind is kind


def test_a_server_of_tls_that_says_nothing_is_late_and_not_refused(red_bundle):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendUnavailableError, match=r"expected masks within 0.5 s \(--server-wait\), got none"):
            open_engine(red_bundle, "triton", servers=ServerOptions(f"grpcs://{address}", wait_s=0.5))


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    """A folder in place of /dev/shm."""
    monkeypatch.setattr(triton_memory, "_FOLDER", tmp_path)
    return tmp_path


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(shared_memory):
    ours = Region(10)
    left = shared_memory / ours.name.replace(ours.name[-4:], "left")
    others = shared_memory / "psm_other"
    for path in (left, others):
        path.write_bytes(b"x")
    Regions()
    assert {path.name for path in shared_memory.iterdir()} == {ours.name, "psm_other"}
    ours.write(np.arange(10, dtype=np.uint8), 0)
    assert ours.read((10,), np.dtype(np.uint8), 0).tolist() == list(range(10))
    ours.remove()
    assert [path.name for path in shared_memory.iterdir()] == ["psm_other"]


def test_memory_that_is_not_there_is_told_and_not_written_to(shared_memory):
    with pytest.raises(
        BackendUnavailableError, match=r"^--server-memory shared: expected room for .* MB in .*, got none \("
    ) as caught:
        Region(1 << 60)
    assert "\n" not in str(caught.value)
    assert list(shared_memory.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system keeps shared memory elsewhere")
def test_a_server_forgets_what_killed_clients_have_left_there(red_bundle, server):
    there = Region(1)
    left = f"{there.name[:-4]}left"
    assert is_left(left)
    server.servicer.regions |= {left, there.name, "of-others"}
    options = ServerOptions(server.options.servers, "shared")
    try:
        with open_engine(red_bundle, "triton", servers=options):
            assert server.servicer.regions == {there.name, "of-others"}
    finally:
        there.remove()


class Hanging(Servicer):
    """Answers frames that come with the message, and never those in shared memory."""

    def __init__(self):
        super().__init__()
        self.hangs, self.is_over, self.seen = threading.Event(), threading.Event(), set()

    def SystemSharedMemoryRegister(self, request, context):
        self.seen.add(request.name)
        return super().SystemSharedMemoryRegister(request, context)

    def ModelInfer(self, request, context):
        if not request.raw_input_contents:
            self.hangs.set()
            self.is_over.wait()
            context.abort(grpc.StatusCode.INTERNAL, "over")
        return super().ModelInfer(request, context)


@pytest.fixture
def hanging():
    """A server that hangs; ``servicer.hangs`` says when."""
    with serving(Hanging()) as made:
        yield made
        made.servicer.is_over.set()


# The command, which waits so many seconds for masks in flight after a signal.
WAITS = """
import sys
from pipeline.__main__ import main
from pipeline.flow import run
run.HUNG_S = float(sys.argv.pop(1))
sys.exit(main())
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="this system keeps shared memory elsewhere")
@pytest.mark.parametrize(("hung_s", "signals"), [(0.1, 1), (1000, 1000)], ids=["once", "again and again"])
def test_who_is_stopped_while_a_server_hangs_leaves_no_shared_memory(red_bundle, hanging, tmp_path, hung_s, signals):
    words = ["--source", "test://?size=12x9", "--model", red_bundle.folder, "--backend", "triton"]
    words += ["--server", f"grpc://{hanging.address}", "--server-memory", "shared", "--output", "null", "--quiet"]
    command = [sys.executable, "-c", WAITS, str(hung_s), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert hanging.servicer.hangs.wait(120)
        assert shared_by(hanging)
        for _ in range(signals):
            job.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                job.wait(0.2 if signals > 1 else 120)
                break
        assert job.returncode == 143, job.communicate()
        assert shared_by(hanging) == set()
    finally:
        job.kill()
        job.communicate()


def shared_by(server):
    """Of the regions that a server was told of, those that are in the system."""
    return {name for name in server.servicer.seen if os.path.exists(f"/dev/shm/{name}")}


@pytest.mark.parametrize(
    ("goes_on", "deadlines_s"), [(True, [1.0, 4.0, 8.0, 10.0, 10.0]), (False, [10.0, 10.0, 20.0, 40.0, 60.0])]
)
def test_a_live_picture_stands_still_for_a_short_time_only(red_bundle, server, goes_on, deadlines_s):
    options = ServerOptions(server.options.servers, goes_on=goes_on)
    with open_engine(red_bundle, "triton", servers=options) as engine:
        engine._took_s.clear()
        got_s = [engine._deadline_s()]
        engine._took_s.extend([0.1, 2.0, 0.1])
        for patience in (1.0, 2.0, 4.0, 64.0):
            engine._patience = patience
            got_s.append(engine._deadline_s())
    assert got_s == deadlines_s
