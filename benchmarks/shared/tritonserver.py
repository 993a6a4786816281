"""NVIDIA's tritonserver, as ``tests/install-triton`` installs it, with a bundle's program on its Python backend.

Its backends for ONNX Runtime and TensorRT are on no package index. Everything else is the server's own: protocol, queue, batches,
versions, shared memory, tokens and certificates.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as grpc
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from compile.plans.triton_repository import CONFIG_NAME, config_text, write_repository
from pipeline.bundles.bundle import Bundle
from pipeline.errors import BackendUnavailableError

_READY_S = 300.0
_MODEL = """
import os
import time

import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    def initialize(self, args):
        import json

        parameters = json.loads(args["model_config"])["parameters"]
        self.delay_s = float(parameters["delay_s"]["string_value"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.log_severity_level = 3
        program = os.path.join(args["model_repository"], args["model_version"], "program.onnx")
        self.session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        time.sleep(self.delay_s)
        names = [value.name for value in self.session.get_outputs() if value.name in request.requested_output_names()]
        frames = backend.get_input_tensor_by_name(request, "frames").as_numpy()
        try:
            arrays = self.session.run(names, {"frames": frames})
        except Exception as error:
            return backend.InferenceResponse(error=backend.TritonError(str(error).splitlines()[0]))
        return backend.InferenceResponse([backend.Tensor(*each) for each in zip(names, arrays)])
"""


def default_folder() -> Path:
    """Where ``make test`` has the servers installed."""
    return Path(os.environ.get("EDGEMASK_TEST_TRITON") or Path(sys.prefix) / "triton")


def put_on_python_backend(
    bundle: Bundle,
    repository: Path,
    *,
    instances: int = 1,
    threads: int = 1,
    delay_s: float = 0.0,
    queue: int | None = None,
    frame_size_hw: tuple[int, int] | None = None,
) -> str:
    """Export a bundle as ``--target triton`` does it, and let the server's Python backend run its program.

    Args:
        bundle: its program is exported.
        repository: to where.
        instances: how many processes compute.
        threads: of each of them.
        delay_s: sleep so long before each request.
        queue: how many requests may wait; None: as it is exported.
        frame_size_hw: a model for frames of one (height, width); None: as the program takes them.

    Returns:
        The model's name.
    """
    version, *_ = write_repository(
        bundle, repository, frame_size_hw=frame_size_hw
    )  # the program comes before the plans
    path = version.parent / CONFIG_NAME
    config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    config.backend, config.default_model_filename = "python", "model.py"
    del config.instance_group[:]
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=instances)
    config.parameters["threads"].string_value = str(threads)
    config.parameters["delay_s"].string_value = str(delay_s)
    del config.model_warmup[1:]
    for warmup in config.model_warmup:  # a small one: the server is there sooner
        dims = warmup.inputs["frames"].dims
        if list(config.input[0].dims[:2]) == [-1, -1]:
            dims[:2] = [24, 32]
    if queue is not None:
        config.dynamic_batching.default_queue_policy.max_queue_size = queue
    path.write_text(config_text(config), encoding="utf-8")
    (version / "model.py").write_text(_MODEL, encoding="utf-8")
    return str(config.name)


class TritonServer:
    """A server with a process of its own; use it in a ``with`` block.

    Args:
        folder: of ``tests/install-triton``.
        repository: of models.
        options: more of the server's own.
        log: a file for what it says.

    Attributes:
        address: "host:port" of gRPC.
        process: it.

    Raises:
        BackendUnavailableError: it is not installed.
    """

    def __init__(self, folder: Path, repository: Path, *options: str, log: Path, port: int | None = None) -> None:
        found = sorted(folder.glob("server/lib/python3.*/site-packages/pytriton/tritonserver"))
        if not found:
            raise BackendUnavailableError(
                f"{folder}: expected a tritonserver, got none: tests/install-triton {folder} makes it"
            )
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = log
        self._memory = f"edgemask-{os.getpid()}-{self.port}-"
        libraries = [found[0] / "external_libs", found[0].parents[1] / "nvidia_pytriton.libs"]
        environment = {
            **os.environ,
            "PATH": f"{folder / 'server' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(folder / "server"),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }
        environment.pop("PYTHONPATH", None)  # ours is for another NumPy
        command = [
            str(found[0] / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={found[0] / 'backends'}",
            "--disable-auto-complete-config",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=2",
            "--backend-config=python,stub-timeout-seconds=600",  # or a busy machine ends the processes of its models
            f"--backend-config=python,shm-region-prefix-name={self._memory}",
            *options,
        ]
        with log.open("ab") as said:
            # Of our own session: of another one it would have a share of the processor of its own, whatever we do.
            self.process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def wait(self) -> TritonServer:
        """Wait until it is ready.

        Raises:
            BackendUnavailableError: it ended, or is not ready in time; with the end of what it said.
        """
        until_s = time.monotonic() + _READY_S
        while time.monotonic() < until_s and self.process.poll() is None:
            # By what it says, for it may ask for a token.
            if "Started GRPCInferenceService" in self._log.read_text(encoding="utf-8", errors="replace"):
                return self
            time.sleep(0.05)
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise BackendUnavailableError(f"tritonserver: expected it ready within {_READY_S:g} s, got: {' '.join(said)}")

    def load(self, name: str) -> None:
        """Have it load a model, or load it again as it is in the repository now; for ``--model-control-mode=explicit``."""
        with grpc.InferenceServerClient(self.address) as client:
            client.load_model(name, client_timeout=_READY_S)

    def kill(self) -> None:
        """End it at once, with the processes of its models."""
        if self.process.poll() is None:
            models = self._models()
            self.process.kill()
            for pid in models:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for left in Path("/dev/shm").glob(f"{self._memory}*"):  # what a server that is killed does not remove
            left.unlink(missing_ok=True)

    def _models(self) -> list[int]:
        """The processes that compute for it."""
        found: list[int] = []
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, path.read_text(encoding="ascii").split())
        return found


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
