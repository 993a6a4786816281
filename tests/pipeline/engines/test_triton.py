"""The backend that asks servers, with real ones: NVIDIA's tritonserver, and kserve's as a second of the same protocol."""

import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from pipeline.bundles.bundle import PROGRAM_NAME, Bundle
from pipeline.engines import open_engine
from pipeline.engines.server_options import ServerOptions
from pipeline.errors import BackendUnavailableError, BundleError, ServerAwayError
from pipeline.flow.run import run
from pipeline.flow.views import Views
from pipeline.frames.frame import Frame, SourceInfo
from pipeline.sinks.base import Sink
from pipeline.sources.base import Source
from tests.pipeline.engines.conftest import installed_servers, renamed

pytestmark = pytest.mark.slow
WAIT_S = 60  # only a broken test waits so long


def frames(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def at(*servers, **options):
    return ServerOptions(",".join(f"grpc://{server.address}" for server in servers), **options)


class Numbers(Source):
    """Frames whose red channel is their number; a live one has 50 of them a second, and waits for nobody."""

    def __init__(self, count, *, live=False, reached=None, more=lambda: True):
        self.info = SourceInfo("numbers", "numbers", frame_count=None if live else count, live=live)
        self.count, self.reached, self.more, self.read = count, reached or {}, more, 0

    def __iter__(self):
        for number in range(self.count):
            if not self.more():
                return
            if number in self.reached:
                self.reached[number]()
            if self.info.live:
                time.sleep(0.02)
            self.read += 1
            yield Frame(
                np.full((24, 32, 3), (0, 0, number % 251), np.uint8), number, number / 50, "numbers", f"{number}"
            )


class Kept(Sink):
    def __init__(self):
        self.frames = []

    def write(self, frame):
        self.frames.append(SimpleNamespace(index=frame.index, red=int(frame.mask[0, 0]), stale=frame.stale))


def through(source, engine, **options):
    sink = Kept()
    run(source, engine, Views(lambda image, mask: image), [sink], **options)
    return sink.frames


def require_right(written):
    """Every frame that says that its mask is its own has the right one, and the others have an empty one."""
    assert [frame.red for frame in written] == [0 if frame.stale else frame.index % 251 for frame in written]


@pytest.mark.parametrize("pixels", ["bgr", "nv12"])
def test_masks_are_exactly_those_of_the_program_here(triton, u2netp_bundle, tmp_path, pixels):
    bundle = u2netp_bundle
    sizes = [(90, 160), (48, 64), (120, 76)]
    if pixels == "nv12":
        pytest.importorskip("torch")
        from compile.program.nv12 import with_nv12

        program = with_nv12(bundle.program_path.read_bytes(), None)
        manifest = dataclasses.replace(bundle.manifest, pixels="nv12", engines=(), model="u2netp-planes")
        bundle = Bundle.write(tmp_path / "nv12", manifest, {PROGRAM_NAME: program})
    with (
        open_engine(bundle, "onnxruntime") as here,
        open_engine(triton.serve(bundle, threads=2), "triton", servers=at(triton.server, memory="shared")) as there,
    ):
        given = []
        for seed, (height, width) in enumerate(sizes):
            shape = (1, height * 3 // 2, width) if pixels == "nv12" else (1, height, width, 3)
            given.append(np.random.default_rng(seed).integers(16, 236, shape, np.uint8))
            there.submit(given[-1])
        for one in given:
            expected = here(one)
            assert expected.any()
            np.testing.assert_array_equal(there.collect(), expected)


def test_when_one_of_two_servers_is_killed_no_frame_is_lost_or_out_of_order(triton, red_bundle, said):
    bundle, _ = triton.put(red_bundle, triton.folder / "second", delay_s=0.01)
    with (
        triton.another(triton.folder / "second", log="killed") as killed,
        triton.another(triton.folder / "second", log="other") as other,
    ):
        killed.wait(), other.wait()
        with open_engine(bundle, "triton", servers=at(killed, other)) as engine:
            written = through(Numbers(300, reached={100: killed.kill}), engine)
    assert [frame.index for frame in written] == list(range(300))
    assert [frame.red for frame in written] == [index % 251 for index in range(300)]
    assert not any(frame.stale for frame in written)
    (told,) = [line for line in said if "gone" in line]
    assert told.startswith(f"warning: grpc://{killed.address}: gone (")
    assert told.endswith("): its frames go to the others")


def test_frames_are_shared_between_the_servers(triton, red_bundle):
    bundle = triton.serve(red_bundle)
    with triton.another(triton.repository, "--model-control-mode=explicit", log="shared") as other:
        other.wait().load(bundle.manifest.model)
        with open_engine(bundle, "triton", servers=at(triton.server, other)) as engine:
            assert engine.in_flight == 5
            for seed in range(5):
                engine.submit(frames(1, 4, 6, seed))
            assert sorted(watched.server.waiting for watched in engine._all) == [2, 3]
            for seed in range(5):
                np.testing.assert_array_equal(engine.collect(), frames(1, 4, 6, seed)[..., 2])


def test_a_live_source_goes_on_while_its_server_is_dead_and_has_masks_when_it_is_back(triton, red_bundle, said):
    bundle, _ = triton.put(red_bundle, triton.folder / "dead")
    server = triton.another(triton.folder / "dead", log="dead").wait()
    back = threading.Event()
    restarted = []

    def restart():
        restarted.append(triton.another(triton.folder / "dead", log="again", port=server.port))

    class Seen(Kept):
        def write(self, frame):
            super().write(frame)
            if restarted and not frame.stale:
                back.set()

    try:
        with open_engine(bundle, "triton", servers=at(server, goes_on=True)) as engine:
            source = Numbers(
                50 * WAIT_S, live=True, reached={20: server.kill, 60: restart}, more=lambda: not back.is_set()
            )
            sink = Seen()
            run(source, engine, Views(lambda image, mask: image), [sink])
    finally:
        for one in (server, *restarted):
            one.kill()
    assert back.is_set()
    require_right(sink.frames)
    assert not sink.frames[0].stale
    unmasked = sum(frame.stale for frame in sink.frames)
    assert unmasked >= 30  # between the two
    assert [line for line in said if "frames go on without masks until it is back" in line]
    assert [line for line in said if "back after" in line and "frames had no mask" in line]
    assert said[-1] == f"warning: {unmasked} frames had no mask, for the servers were gone or busy"


@pytest.fixture
def stopped(triton, red_bundle):
    """A server of its own that can be stopped and continued with all its processes."""
    bundle, _ = triton.put(red_bundle, triton.folder / "stopped")
    with triton.another(triton.folder / "stopped", log="stopped") as server:
        server.bundle = bundle

        def send(number):
            server.process.send_signal(number)
            if number == signal.SIGSTOP:  # which takes a moment on a busy machine
                os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)

        server.send = send
        yield server.wait()
        server.send(signal.SIGCONT)
    shutil.rmtree(triton.folder / "stopped")


def test_a_live_source_does_not_wait_for_a_server_that_hangs(stopped, said):
    back = threading.Event()

    class Seen(Kept):
        def write(self, frame):
            super().write(frame)
            if source.read > 260 and not frame.stale:
                back.set()

    with open_engine(stopped.bundle, "triton", servers=at(stopped, goes_on=True, memory="shared")) as engine:
        source = Numbers(
            50 * WAIT_S,
            live=True,
            reached={20: lambda: stopped.send(signal.SIGSTOP), 260: lambda: stopped.send(signal.SIGCONT)},
            more=lambda: not back.is_set(),
        )
        sink = Seen()
        run(source, engine, Views(lambda image, mask: image), [sink])
    assert back.is_set()  # it came to frame 260 while nobody answered
    require_right(sink.frames)
    assert sum(frame.stale for frame in sink.frames) > 10
    (told, *_) = [line for line in said if "gone" in line]
    assert "gone (no answer within" in told


def test_a_file_waits_for_a_server_that_hangs_up_to_its_limit(stopped):
    with open_engine(stopped.bundle, "triton", servers=at(stopped, wait_s=1.5)) as engine:
        engine(frames(1, 4, 6))
        stopped.send(signal.SIGSTOP)
        for seed in range(2):
            engine.submit(frames(1, 4, 6, seed))
        message = (
            rf"^grpc://{stopped.address}: .*: expected masks within 1.5 s \(--server-wait\), got none: start the server"
        )
        for _ in range(2):  # what was in flight is not waited for again
            with pytest.raises(BackendUnavailableError, match=message) as caught:
                engine.collect()
            assert "\n" not in str(caught.value)


def test_a_file_goes_on_when_its_server_goes_on(stopped):
    with open_engine(stopped.bundle, "triton", servers=at(stopped, wait_s=WAIT_S, memory="shared")) as engine:
        engine._took_s.clear()
        timer = threading.Timer(1.0, lambda: stopped.send(signal.SIGCONT))
        written = through(Numbers(30, reached={10: lambda: (stopped.send(signal.SIGSTOP), timer.start())}), engine)
    assert [(frame.index, frame.red, frame.stale) for frame in written] == [(n, n, False) for n in range(30)]


def test_another_program_is_refused_before_the_first_frame(triton, red_bundle, counting_bundle):
    served = triton.serve(red_bundle)
    other = other_program(red_bundle)
    mine = renamed(other, triton.folder / "mine", served.manifest.model)
    shas = [bundle.manifest.files[PROGRAM_NAME][:12] for bundle in (mine, served)]
    with pytest.raises(
        BundleError, match=rf"program sha256 {shas[0]}…, as .*mine has, got {shas[1]}… \(version 1\)"
    ) as caught:
        open_engine(mine, "triton", servers=at(triton.server))
    assert "\n" not in str(caught.value)
    counting = renamed(counting_bundle, triton.folder / "counting", served.manifest.model)
    with pytest.raises(BundleError, match=r"program sha256"):
        open_engine(counting, "triton", servers=at(triton.server))


def other_program(bundle):
    """A bundle whose masks are the green channel, which is the red one's program in all else."""
    program = onnx.load(str(bundle.program_path))
    program.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("red", onnx.TensorProto.INT64, [], [1]))
    folder = bundle.folder.parent / "green"
    return Bundle.write(folder, bundle.manifest, {PROGRAM_NAME: program.SerializeToString()})


def test_a_server_that_says_the_hash_but_has_something_else_is_found_out(triton, red_bundle):
    bundle, name = triton.put(red_bundle, delay_s=0.001)
    green = other_program(red_bundle)
    shutil.copyfile(green.program_path, triton.repository / name / "1" / PROGRAM_NAME)
    triton.server.load(name)
    with pytest.raises(
        BundleError, match=r"expected a mask equal to that of .*, got another in \d+\.\d% of its pixels"
    ) as caught:
        open_engine(bundle, "triton", servers=at(triton.server))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("same", [True, False])
def test_a_version_that_is_swapped_under_the_run_is_compared_again(triton, red_bundle, said, same):
    bundle, name = triton.put(red_bundle, delay_s=0.002 + same / 1000)
    triton.server.load(name)
    with open_engine(bundle, "triton", servers=at(triton.server)) as engine:
        np.testing.assert_array_equal(engine(frames(1, 4, 6)), frames(1, 4, 6)[..., 2])
        folder = triton.repository / name
        os.rename(folder / "1", folder / "2")
        text = (folder / "config.pbtxt").read_text().replace("versions: 1", "versions: 2")
        sha256 = bundle.manifest.files[PROGRAM_NAME]
        text = text.replace("program_sha256.1", "program_sha256.2")
        if not same:
            green = other_program(red_bundle)
            shutil.copyfile(green.program_path, folder / "2" / PROGRAM_NAME)
            text = text.replace(sha256, green.manifest.files[PROGRAM_NAME])
        (folder / "config.pbtxt").write_text(text)
        triton.server.load(name)
        if same:
            np.testing.assert_array_equal(engine(frames(1, 4, 6)), frames(1, 4, 6)[..., 2])
            assert [line for line in said if "it is compared with the bundle again" in line]
        else:
            got = green.manifest.files[PROGRAM_NAME][:12]
            with pytest.raises(
                BundleError, match=rf"sha256 {sha256[:12]}…, as .* has, got {got}… \(version 2\)"
            ) as caught:
                engine(frames(1, 4, 6))
            assert "\n" not in str(caught.value)


def test_an_answer_of_another_version_is_not_taken(triton, red_bundle, said):
    bundle = triton.serve(red_bundle)
    with open_engine(bundle, "triton", servers=at(triton.server)) as engine:
        (watched,) = engine._all
        models = {size: model._replace(version="7") for size, model in watched.server.connected.models.items()}
        sent = watched.server.connected.client.async_infer
        watched.server.connected = watched.server.connected._replace(models=models)
        watched.server.connected.client.async_infer = lambda name, given, told, version, *more, **options: sent(
            name, given, told, "1", *more, **options
        )
        np.testing.assert_array_equal(engine(frames(1, 4, 6)), frames(1, 4, 6)[..., 2])
        assert [line for line in said if f"version 1 of {bundle.manifest.model} in place of 7" in line]


@pytest.fixture(scope="module")
def slow(triton, red_bundle):
    """A bundle whose server takes its time, and lets one frame wait."""
    return triton.serve(red_bundle, delay_s=0.2, queue=1)


def test_a_file_tries_again_where_the_queue_is_full(triton, slow):
    with open_engine(slow, "triton", servers=at(triton.server, in_flight=12)) as engine:
        for seed in range(12):
            engine.submit(frames(1, 4, 6, seed))
        for seed in range(12):
            np.testing.assert_array_equal(engine.collect(), frames(1, 4, 6, seed)[..., 2])


def test_a_live_source_goes_without_masks_where_the_queue_is_full(triton, slow, said):
    with open_engine(slow, "triton", servers=at(triton.server, in_flight=12, goes_on=True)) as engine:
        for seed in range(12):
            engine.submit(frames(1, 4, 6, seed))
        got, told = 0, []
        for seed in range(12):
            try:
                masks = engine.collect()
            except ServerAwayError as error:
                told.append(str(error))
            else:
                np.testing.assert_array_equal(masks, frames(1, 4, 6, seed)[..., 2])
                got += 1
        assert 0 < got < 12
        assert all("its queue is full" in line and "\n" not in line for line in told)
    assert said[-1] == f"warning: {12 - got} frames had no mask, for the servers were gone or busy"


def test_a_file_gives_up_where_the_queue_stays_full(triton, red_bundle):
    bundle = triton.serve(red_bundle, delay_s=1.0, queue=1)
    with (
        open_engine(bundle, "triton", servers=at(triton.server)) as first,
        open_engine(bundle, "triton", servers=at(triton.server)) as second,
    ):
        second._options = dataclasses.replace(second._options, wait_s=0.1)
        for seed in range(3):
            first.submit(frames(1, 4, 6, seed))
        second.submit(frames(1, 4, 6))
        with pytest.raises(BackendUnavailableError, match=r"its queue is full .*: expected masks within 0.1 s"):
            second.collect()


@pytest.mark.parametrize("memory", ["raw", "shared"])
def test_frames_of_all_sizes_pass_in_any_order(triton, red_bundle, memory):
    with open_engine(triton.serve(red_bundle), "triton", servers=at(triton.server, memory=memory)) as engine:
        random = np.random.default_rng(1)
        given = [frames(int(n), int(h), int(w), int(h)) for n, h, w in random.integers(1, (7, 60, 80), (30, 3))]
        for first, second, third in zip(given[::3], given[1::3], given[2::3], strict=True):
            for one in (first, second, third):
                engine.submit(one)
            for one in (first, second, third):
                np.testing.assert_array_equal(engine.collect(), one[..., 2])


def test_frames_of_a_size_that_has_a_model_of_its_own_go_there(triton, red_bundle):
    from benchmarks.shared.tritonserver import put_on_python_backend

    bundle, name = triton.put(red_bundle, delay_s=0.004)
    sized = put_on_python_backend(bundle, triton.repository, frame_size_hw=(24, 32))
    assert sized == f"{name}-24x32"
    for each in (name, sized):
        triton.server.load(each)
    with (
        open_engine(bundle, "triton", servers=at(triton.server)) as engine,
        grpc_client(triton.server) as client,
    ):
        before = computed_by(client, sized)
        for size_hw in ((24, 32), (8, 6), (24, 32)):
            np.testing.assert_array_equal(engine(frames(1, *size_hw)), frames(1, *size_hw)[..., 2])
        assert computed_by(client, sized) == before + 2


def test_what_a_server_cannot_compute_is_told_after_one_more_try_and_the_engine_goes_on(triton, red_bundle):
    bundle, name = triton.put(red_bundle, delay_s=0.005)
    model = triton.repository / name / "1" / "model.py"
    fails = """
        self.sevens = getattr(self, "sevens", 0) + (frames.shape[1] == 7)
        if frames.shape[1] == 5 or (frames.shape[1] == 7 and self.sevens == 1):
            return backend.InferenceResponse(error=backend.TritonError("out of\\nmemory"))
        try:
"""
    model.write_text(model.read_text().replace("        try:\n", fails.removeprefix("\n"), 1))
    triton.server.load(name)
    with open_engine(bundle, "triton", servers=at(triton.server)) as engine:
        with pytest.raises(
            BundleError,
            match=r"cannot run .*program.onnx \(out of memory\): look into the server's log, or compile the bundle again$",
        ):
            engine(frames(1, 5, 6))
        for height in (7, 4):
            np.testing.assert_array_equal(engine(frames(1, height, 6)), frames(1, height, 6)[..., 2])


def grpc_client(server):
    import tritonclient.grpc as grpc

    return grpc.InferenceServerClient(server.address)


def computed_by(client, name):
    (model,) = client.get_inference_statistics(name).model_stats
    return model.inference_count


def test_shared_memory_is_given_back(triton, red_bundle):
    before = {name for name in os.listdir("/dev/shm") if name.startswith("edgemask-frames-")}
    with open_engine(triton.serve(red_bundle), "triton", servers=at(triton.server, memory="shared")) as engine:
        for seed in range(3):
            engine.submit(frames(1, 40, 60, seed))
        engine.collect()
        names = [region for watched in engine._all for region in watched.server._regions]
        assert names
        assert {name for name in os.listdir("/dev/shm") if name.startswith("edgemask-frames-")} - before
    assert {name for name in os.listdir("/dev/shm") if name.startswith("edgemask-frames-")} <= before
    with grpc_client(triton.server) as client:
        assert not set(names) & set(client.get_system_shared_memory_status().regions)


def test_a_server_that_cannot_see_our_memory_is_told_at_the_start(triton, red_bundle, monkeypatch):
    from pipeline.engines.triton_memory import Region

    bundle = triton.serve(red_bundle)
    made = Region.__init__

    def elsewhere(self, size_bytes):
        made(self, size_bytes)
        self.key = "/edgemask-not-here"

    monkeypatch.setattr(Region, "__init__", elsewhere)
    with pytest.raises(
        BackendUnavailableError, match=r"it cannot share our memory \(.*\): start its container with --ipc=host"
    ) as caught:
        open_engine(bundle, "triton", servers=at(triton.server, memory="shared"))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def secured(triton, red_bundle):
    """A server that speaks TLS alone, asks for a certificate of ours, and for a token."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine")
    folder = triton.folder / "secured"
    folder.mkdir()

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for authority in ("ca", "other-ca"):
        openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{authority}.key",
            "-out",
            f"{authority}.pem",
            "-subj",
            f"/CN={authority}",
            "-days",
            "2",
        )
    for name in ("server", "client"):
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
        )
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            f"{name}.pem",
            "-days",
            "2",
            "-extfile",
            "names",
        )
    bundle, _ = triton.put(red_bundle, folder / "repository")
    options = [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={folder / 'server.pem'}",
        f"--grpc-server-key={folder / 'server.key'}",
        f"--grpc-root-cert={folder / 'ca.pem'}",
        "--grpc-restricted-protocol=inference:token=right-token",
    ]
    with triton.another(folder / "repository", *options, log="secured") as server:
        server.bundle, server.keys = bundle, folder
        yield server.wait()


def secured_options(server, **others):
    given = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key", "token": "right-token", **others}
    for name in ("ca", "cert", "key"):
        given[name] = given[name] and str(server.keys / given[name])
    return ServerOptions(f"grpc://{server.address}", wait_s=WAIT_S, **given)


def test_certificates_and_a_token(secured):
    with open_engine(secured.bundle, "triton", servers=secured_options(secured)) as engine:
        np.testing.assert_array_equal(engine(frames(2, 8, 6)), frames(2, 8, 6)[..., 2])


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"token": "wrong-token"},
            r"it does not take our token \(.*restricted.*\): give its token with --server-token-file$",
        ),
        ({"token": None}, r"it does not take our token \(.*restricted.*\): give its token with --server-token-file$"),
        ({"ca": "other-ca.pem"}, r"no trusted connection \(.*\): check --server-ca, --server-cert and --server-key"),
        ({"cert": "other-ca.pem", "key": "other-ca.key"}, r"no trusted connection \(.*\): check --server-ca"),
    ],
)
def test_a_wrong_token_or_certificate_ends_it_at_once(secured, given, message, goes_on):
    start_s = time.monotonic()
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        open_engine(secured.bundle, "triton", servers=secured_options(secured, goes_on=goes_on, **given))
    assert "\n" not in str(caught.value)
    assert "wrong-token" not in str(caught.value)
    assert time.monotonic() - start_s < WAIT_S  # it is not waited for, as a server that is gone would be


def test_kserve_speaks_the_same_protocol(triton, red_bundle, counting_bundle, tmp_path):
    installed = installed_servers()
    if not (installed / "kserve" / "bin" / "python").exists():
        pytest.skip(f"no kserve in {installed}")
    from benchmarks.shared.tritonserver import free_port

    port = free_port()
    script = tmp_path / "serve.py"
    script.write_text(KSERVE)
    command = [
        str(installed / "kserve/bin/python"),
        str(script),
        str(counting_bundle.program_path),
        "red",
        str(port),
        str(free_port()),
    ]
    log = tmp_path / "kserve.log"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, env=environment) as server:
        try:
            with open_engine(
                counting_bundle, "triton", servers=ServerOptions(f"grpc://127.0.0.1:{port}", wait_s=WAIT_S)
            ) as engine:
                for shape in ((1, 8, 12), (3, 5, 7), (1, 90, 160)):
                    given = frames(*shape)
                    engine.submit(given)
                    computed = engine.collect_all()
                    np.testing.assert_array_equal(computed.masks_nhw, given[..., 2])
                    np.testing.assert_array_equal(computed.not_finite, (given[..., 2] == 255).sum((1, 2)))
            wrong = other_program(red_bundle)
            with pytest.raises(BundleError, match=r"expected a mask equal to that of .*, got another"):
                open_engine(wrong, "triton", servers=ServerOptions(f"grpc://127.0.0.1:{port}", wait_s=WAIT_S))
        finally:
            server.kill()


KSERVE = """
import sys

import numpy as np
import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer

program, name, port, http = sys.argv[1:]


class Served(Model):
    def __init__(self):
        super().__init__(name)
        self.session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
        self.ready = True

    async def get_input_types(self):
        return [{"name": "frames", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]

    async def get_output_types(self):
        return [
            {"name": "masks", "datatype": "UINT8", "shape": [-1, -1, -1]},
            {"name": "not_finite", "datatype": "INT32", "shape": [-1]},
        ]

    def predict(self, request, headers=None, response_headers=None):
        arrays = self.session.run(None, {"frames": request.inputs[0].as_numpy()})
        outputs = []
        for value, array in zip(self.session.get_outputs(), arrays):
            output = InferOutput(value.name, list(array.shape), "UINT8" if array.dtype == np.uint8 else "INT32")
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(request.id, name, outputs)


ModelServer(http_port=int(http), grpc_port=int(port), workers=1).start([Served()])
"""


@pytest.mark.parametrize("live", [True, False])
def test_no_server_at_the_start_ends_with_one_line(red_bundle, live):
    pytest.importorskip("tritonclient.grpc")
    options = ServerOptions("grpc://127.0.0.1:1", wait_s=0.3, goes_on=live)
    message = (
        r"^grpc://127.0.0.1:1: .*refused.*: expected masks within 0.3 s \(--server-wait\), got none: start the server"
    )
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        open_engine(red_bundle, "triton", servers=options)
    assert "\n" not in str(caught.value)


def test_a_server_without_the_model_is_told_how_it_gets_it(triton, red_bundle):
    with pytest.raises(
        BundleError, match=r"expected a model red, got none \(.*\): export one with python -m compile --bundle"
    ):
        open_engine(red_bundle, "triton", servers=at(triton.server))


def test_a_program_that_draws_is_refused(red_bundle, tmp_path):
    pytest.importorskip("tritonclient.grpc")
    manifest = dataclasses.replace(red_bundle.manifest, composes=True)
    bundle = Bundle.write(tmp_path / "draws", manifest, {PROGRAM_NAME: red_bundle.program_path.read_bytes()})
    with pytest.raises(
        BundleError, match=r"draws: expected a program for Triton that gives masks alone, got one that draws"
    ):
        open_engine(bundle, "triton", servers=ServerOptions("grpc://127.0.0.1:1"))
