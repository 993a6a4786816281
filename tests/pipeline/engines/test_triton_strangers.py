"""Servers that begin late, refuse us for a while, or send what nobody asked for: made up here, for real ones do so seldom."""

import contextlib
import math
import socket
import time
from concurrent import futures

import numpy as np
import pytest

from pipeline.bundles.bundle import FRAMES, MASKS, PROGRAM_NAME
from pipeline.engines import open_engine
from pipeline.engines.server_options import ServerOptions
from pipeline.errors import BackendUnavailableError, BundleError, ServerAwayError

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402

WAIT_S = 60  # only a broken test waits so long
FRAME = np.full((1, 24, 32, 3), (0, 0, 77), np.uint8)
NO_TOKEN = (grpc.StatusCode.UNAUTHENTICATED, "who are you")
NO_MODEL = (grpc.StatusCode.NOT_FOUND, "Request for unknown model")
NO_GPU = (grpc.StatusCode.INTERNAL, "CUDA error: an illegal memory access was encountered")


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Has the program of ``red_bundle``; ``refuses`` says of which of its questions it thinks otherwise."""

    def __init__(self, bundle, port=0):
        self.refuses, self.sizes, self.more = {}, (), b""
        self._sha256 = bundle.manifest.files[PROGRAM_NAME]
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def stop(self):
        self._server.stop(None).wait()

    def _allow(self, question, context):
        if question in self.refuses:
            context.abort(*self.refuses[question])

    def ServerReady(self, request, context):
        self._allow("ready", context)
        return service_pb2.ServerReadyResponse(ready=True)

    def RepositoryIndex(self, request, context):
        index = service_pb2.RepositoryIndexResponse()
        for height, width in self.sizes:
            index.models.add(name=f"red-{height}x{width}", state="READY")
        return index

    def ModelConfig(self, request, context):
        self._allow("model", context)
        answer = service_pb2.ModelConfigResponse()
        answer.config.name, answer.config.backend = request.name, "made up"
        answer.config.parameters["program_sha256.1"].string_value = self._sha256
        return answer

    def ModelMetadata(self, request, context):
        self._allow("model", context)
        answer = service_pb2.ModelMetadataResponse(name=request.name, versions=["1"])
        answer.inputs.add(name=FRAMES, datatype="UINT8", shape=[-1, -1, -1, 3])
        answer.outputs.add(name=MASKS, datatype="UINT8", shape=[-1, -1, -1])
        return answer

    def ModelInfer(self, request, context):
        self._allow("frame", context)
        shape = list(request.inputs[0].shape)
        red = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape)[..., 2]
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        answer.outputs.add(name=MASKS, datatype="UINT8", shape=shape[:3])
        answer.raw_output_contents.append(red.tobytes() + self.more)
        return answer


@pytest.fixture
def serve(red_bundle):
    with contextlib.ExitStack() as stack:

        def serve(port=0):
            server = Server(red_bundle, port)
            stack.callback(server.stop)
            return server

        yield serve


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def at(port, **options):
    return ServerOptions(f"grpc://127.0.0.1:{port}", **options)


def mask(engine):
    engine.submit(FRAME)
    return engine.collect()


def when_there(engine):
    """The first mask that is not missing."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        with contextlib.suppress(ServerAwayError):
            return mask(engine)
        time.sleep(0.02)
    raise AssertionError("no mask came")


def test_a_live_run_that_nobody_watches_begins_without_its_server(red_bundle, serve, free_port, said):
    servers = at(free_port, goes_on=True, refused_s=math.inf, wait_s=0.2)
    with open_engine(red_bundle, "triton", servers=servers) as engine:
        assert engine.description.endswith(": not there yet")
        with pytest.raises(ServerAwayError):
            mask(engine)
        serve(free_port)
        assert (when_there(engine) == 77).all()
    assert [line for line in said if "not there (" in line and "frames go on without masks until it is there" in line]
    assert [line for line in said if f"grpc://127.0.0.1:{free_port}: there after" in line]


@pytest.mark.parametrize("refuses", [{"model": NO_MODEL}, {"frame": NO_GPU}])
def test_what_a_server_says_that_begins_is_not_final(red_bundle, serve, said, refuses):
    server = serve()
    server.refuses = refuses
    options = {"goes_on": True, "wait_s": 0.2}
    with pytest.raises(BundleError, match=r"got none|got CUDA error"):
        open_engine(red_bundle, "triton", servers=at(server.port, **options))
    with open_engine(red_bundle, "triton", servers=at(server.port, refused_s=math.inf, **options)) as engine:
        with pytest.raises(ServerAwayError):
            mask(engine)
        server.refuses = {}
        assert (when_there(engine) == 77).all()
    (told,) = [line for line in said if "got none" in line or "got CUDA error" in line]
    assert told.endswith("frames go on without masks until it is there")


def test_a_token_that_is_refused_is_final(red_bundle, serve):
    server = serve()
    servers = at(server.port, goes_on=True, refused_s=math.inf)
    with open_engine(red_bundle, "triton", servers=servers) as engine:
        assert (mask(engine) == 77).all()
        server.refuses = {"frame": NO_TOKEN, "ready": NO_TOKEN}
        with pytest.raises(BackendUnavailableError, match="it does not take our token"):
            when_there(engine)
    with pytest.raises(BackendUnavailableError, match="it does not take our token"):
        open_engine(red_bundle, "triton", servers=servers)


@pytest.mark.parametrize("refuses", [{"frame": NO_MODEL, "model": NO_MODEL}, {"frame": NO_GPU}])
def test_a_live_run_that_had_masks_does_not_end_for_its_server(red_bundle, serve, said, refuses):
    server = serve()
    with open_engine(red_bundle, "triton", servers=at(server.port, goes_on=True)) as engine:
        assert (mask(engine) == 77).all()
        server.refuses = refuses
        for _ in range(20):
            with pytest.raises(ServerAwayError):
                mask(engine)
        server.refuses = {}
        assert (when_there(engine) == 77).all()
    assert 1 <= len([line for line in said if line.startswith("warning: grpc://")]) <= 3


def test_an_answer_of_more_than_the_largest_picture_is_not_received(red_bundle, serve):
    server = serve()
    with open_engine(red_bundle, "triton", servers=at(server.port)) as engine:
        assert (mask(engine) == 77).all()
        server.more = bytes(140 << 20)
        with pytest.raises(BundleError, match="larger than max"):
            mask(engine)


def test_sizes_that_no_picture_has_are_not_made(red_bundle, serve):
    server = serve()
    server.sizes = [(99_999, 99_999), (20_000, 20_000), (0, 5), (24, 32)]
    with open_engine(red_bundle, "triton", servers=at(server.port)) as engine:
        assert (mask(engine) == 77).all()
        (watched,) = engine._all
        assert set(watched.server.connected.models) == {None, (24, 32)}
    server.sizes = [(side, side) for side in range(1, 100)]
    with pytest.raises(BundleError, match=r"expected model red for at most 64 sizes of frames, got 99: unload some$"):
        open_engine(red_bundle, "triton", servers=at(server.port))


def test_no_proxy_is_asked_for_a_server(red_bundle, serve, monkeypatch):
    server = serve()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("grpc_proxy", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with open_engine(red_bundle, "triton", servers=at(server.port, wait_s=WAIT_S)) as engine:
            assert (mask(engine) == 77).all()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
