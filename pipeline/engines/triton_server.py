"""One inference server that speaks Triton's protocol: looked over, compared with the bundle, and given frames."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotThere  # before Python 3.11 it is not the built-in one
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # of what goes wrong we tell ourselves; it is read once, at the import
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from pipeline.bundles.bundle import FRAMES, MASKS, NOT_FINITE, PROGRAM_NAME
from pipeline.engines.served import PROGRAM_SHA256, served_name, size_in_name
from pipeline.engines.server_options import ServerOptions
from pipeline.engines.triton_errors import Kind, ServerError, server_error
from pipeline.engines.triton_memory import Region, is_left
from pipeline.engines.triton_reference import Reference
from pipeline.frames.pixels import frames_nhw, frames_shape, input_type

# Of a server's answers to questions, which take milliseconds.
_ASKED_S = 2.0
# gRPC ends a call that is late; this much later it is taken for ended in any case.
_MARGIN_S = 0.5
# Masks of one program on two machines: rounding moves a value by 1 or 2, and a border of classes; a GPU computes in other precisions.
_ROUNDED, _MOST_ROUNDED = 2, 0.001
_OFF_ON_GPU, _MOST_OFF_ON_GPU = 16, 0.01
_MESSAGE_BYTES = 2**31 - 1
MOST_MASK_BYTES = 1 << 27
"""So large may the masks of one answer be; more is not received, whatever a server sends. It is the largest picture that is read."""
_MOST_SIZES = 64
_CHANNEL = [
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MOST_MASK_BYTES + (1 << 20)),
    ("grpc.enable_http_proxy", 0),  # to nobody else than whom --server names, as by all other connections
    ("grpc.use_local_subchannel_pool", 1),  # or a new connection would wait as long as the one that failed
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class Model(NamedTuple):
    """A model on a server, as it was compared with the bundle.

    Attributes:
        name: on the server.
        version: that was compared, and that every answer must have.
        most: how many frames it takes at once.
        runs_on: what computes it, in the server's words.
        on_gpu: it says that it is on a GPU.
    """

    name: str
    version: str
    most: int
    runs_on: str
    on_gpu: bool


class Answer(NamedTuple):
    """What a server made of some frames: (N, H, W) uint8, and (N,) int32 where the program counts; the caller's own."""

    masks_nhw: NDArray[np.uint8]
    not_finite: NDArray[np.int32] | None


class Connected(NamedTuple):
    """A server that was looked over: its models by the (height, width) that they are for, None: any; and the time of one frame."""

    client: Any
    models: Mapping[tuple[int, int] | None, Model]
    frame_s: float


class Attempt:
    """Frames that are on their way to a server.

    Attributes:
        server: which one.
        model: which of its models.
        connected: the connection that they went by.
    """

    def __init__(self, server: TritonServer, model: Model, deadline_s: float) -> None:
        self.server, self.model, self.connected = server, model, server.connected
        self._began_s = time.monotonic()
        self._deadline_s = deadline_s
        self._arrived_s = self._began_s
        self._result: Future[Any] = Future()

    def arrived(self, result: Any, error: Exception | None) -> None:
        """Called by the client, on a thread of its own."""
        self._arrived_s = time.monotonic()
        if error is None:
            self._result.set_result(result)
        else:
            self._result.set_exception(error)

    @property
    def took_s(self) -> float:
        """How long it took to be answered."""
        return self._arrived_s - self._began_s

    def result(self) -> Any:
        """Wait for the answer, as long as its deadline says.

        Raises:
            ServerError: there is none, or it is of another version.
        """
        left_s = self._began_s + self._deadline_s - time.monotonic()
        try:
            result = self._result.result(max(0.0, left_s) + _MARGIN_S)
        except NotThere:
            raise ServerError(Kind.GONE, f"no answer within {self._deadline_s:.3g} s") from None
        except InferenceServerException as error:
            raise server_error(error, self._deadline_s) from error
        finally:
            self.server.waiting -= 1
        got = result.get_response().model_version
        if got != self.model.version:
            raise ServerError(
                Kind.CHANGED, f"version {got or 'none'} of {self.model.name} in place of {self.model.version}"
            )
        return result


class TritonServer:
    """A server, and what is known of it. ``connect`` may run on any thread, the rest on the engine's.

    Args:
        address: "host:port".
        options: how it is spoken to.
        reference: what it must agree with.

    Attributes:
        waiting: how many attempts are on their way to it.
        connected: what it has; None while it is not there.
    """

    def __init__(self, address: str, options: ServerOptions, reference: Reference) -> None:
        self.address, self._options, self._reference = address, options, reference
        self.waiting = 0
        self.connected: Connected | None = None
        self._fresh: Any = None
        self._regions: set[str] = set()
        self._headers: dict[str, str] = {}
        if (token := options.read_token()) is not None:
            # Triton's own protection, and what proxies before a server ask for.
            self._headers = {"triton-grpc-protocol-token": token, "authorization": f"Bearer {token}"}

    def __str__(self) -> str:
        return f"{'grpcs' if self._options.is_tls else 'grpc'}://{self.address}"

    def connect(self, frame_deadline_s: float) -> Connected:
        """Look the server over, and have it compute a frame whose mask is known.

        Args:
            frame_deadline_s: how long that frame may take; a server that has just started may be slow.

        Raises:
            ServerError: it is not there, or not what the bundle asks for.
        """
        client = self._fresh = self._new_client()
        try:
            if not client.is_server_ready(headers=self._headers, client_timeout=_ASKED_S):
                raise ServerError(Kind.GONE, "it is not ready yet")
            if self._options.memory == "shared":
                self._share(client)
            name = served_name(self._reference.bundle.manifest)
            models: dict[tuple[int, int] | None, Model] = {}
            frame_s = 0.0
            for size_hw, named in ((None, name), *self._sized(client, name).items()):
                models[size_hw], took_s = self._compared(
                    client, self._found(client, named, size_hw), size_hw, frame_deadline_s
                )
                frame_s = max(frame_s, took_s)
        except BaseException as error:
            client.close()
            if isinstance(error, InferenceServerException):
                found = server_error(error, frame_deadline_s)
                if found.kind is Kind.FAILED:
                    told = f"expected a server of Triton's protocol that computes a frame, got {found}: look into the server's log"
                    found = ServerError(found.kind, told)
                raise found from error
            raise
        return Connected(client, models, frame_s)

    def use(self, connected: Connected | None) -> None:
        """Take a new connection in place of the one there was; None: it is gone."""
        if self.connected is not None:
            self.connected.client.close()
        self.connected = connected
        if connected is not None:
            self.forget()  # it may be the one that had them, or a new one that does not know them

    def model_for(self, size_hw: tuple[int, int]) -> Model:
        """The model that computes frames of a (height, width); it must be connected."""
        assert self.connected is not None
        models = self.connected.models
        return models[size_hw] if size_hw in models else models[None]

    def send(
        self,
        frames: NDArray[np.uint8],
        size_hw: tuple[int, int],
        deadline_s: float,
        room: tuple[Region, Mapping[str, int]] | None,
    ) -> Attempt:
        """Give it frames, which may be no more than the model takes.

        Args:
            frames: as the program takes them, contiguous, unchanged until they are answered.
            size_hw: their height and width.
            deadline_s: after which nobody waits for the answer.
            room: a region and the places in it; it holds the frames already. None: they go with the message.

        Raises:
            ServerError: it cannot be asked.
        """
        assert self.connected is not None
        client, model = self.connected.client, self.model_for(size_hw)
        region = None if room is None else room[0]
        attempt = Attempt(self, model, deadline_s)
        try:
            if region is not None and region.name not in self._regions:
                client.register_system_shared_memory(
                    region.name, region.key, region.size_bytes, headers=self._headers, client_timeout=_ASKED_S
                )
                self._regions.add(region.name)
            client.async_infer(
                model.name,
                [_given(frames, room)],
                attempt.arrived,
                model.version,
                self._asked_for(len(frames), size_hw, room),
                timeout=round(deadline_s * 1e6),
                client_timeout=deadline_s,
                headers=self._headers,
            )
        except InferenceServerException as error:
            raise server_error(error, deadline_s) from error
        self.waiting += 1
        return attempt

    def forget(self) -> bool:
        """Have it let go of all shared memory; False if some of it is still in use there."""
        if self.connected is None:
            return True
        for name in sorted(self._regions):
            with suppress(InferenceServerException):
                self.connected.client.unregister_system_shared_memory(
                    name, headers=self._headers, client_timeout=_ASKED_S
                )
                self._regions.discard(name)
        return not self._regions

    def close(self) -> None:
        """Break off everything."""
        self.use(None)
        if self._fresh is not None:
            with suppress(Exception):  # another thread may be using it
                self._fresh.close()

    def _new_client(self) -> Any:
        options = self._options
        return grpc.InferenceServerClient(
            self.address,
            ssl=options.is_tls,
            root_certificates=options.ca,
            private_key=options.key,
            certificate_chain=options.cert,
            channel_args=_CHANNEL,
        )

    def _share(self, client: Any) -> None:
        """Find out whether the server can see our memory: one in a container does not always."""
        region = Region(1)
        try:
            client.register_system_shared_memory(
                region.name, region.key, region.size_bytes, headers=self._headers, client_timeout=_ASKED_S
            )
            client.unregister_system_shared_memory(region.name, headers=self._headers, client_timeout=_ASKED_S)
            there = client.get_system_shared_memory_status(headers=self._headers, client_timeout=_ASKED_S).regions
            for name in filter(is_left, there):  # or a server would keep that of every client that was killed
                with suppress(InferenceServerException):  # it still writes there
                    client.unregister_system_shared_memory(name, headers=self._headers, client_timeout=_ASKED_S)
        except InferenceServerException as error:
            found = server_error(error, _ASKED_S)
            if "shared memory" not in str(found).lower() and found.kind is not Kind.FAILED:
                raise
            raise ServerError(
                Kind.REFUSED,
                f"it cannot share our memory ({found}): start its container with --ipc=host, or take --server-memory raw",
            ) from error
        finally:
            region.remove()

    def _sized(self, client: Any, name: str) -> dict[tuple[int, int], str]:
        """The models for frames of one size that the server has of this bundle; none where it does not tell."""
        if self._reference.bundle.manifest.frame_size_hw is not None:
            return {}
        try:
            index = client.get_model_repository_index(headers=self._headers, client_timeout=_ASKED_S)
        except InferenceServerException as error:
            if server_error(error, _ASKED_S).kind is Kind.GONE:
                raise
            return {}
        names = {entry.name for entry in index.models if entry.state == "READY"}
        sized = {each: size_in_name(each, name) for each in sorted(names)}
        # Each is compared with a frame of its size, which is made here.
        taken = {
            size_hw: each for each, size_hw in sized.items() if size_hw and 0 < math.prod(size_hw) <= MOST_MASK_BYTES
        }
        if len(taken) > _MOST_SIZES:
            raise ServerError(
                Kind.WRONG,
                f"expected model {name} for at most {_MOST_SIZES} sizes of frames, got {len(taken)}: unload some",
            )
        return taken

    def _found(self, client: Any, name: str, size_hw: tuple[int, int] | None) -> Model:
        """The version of a model that has the bundle's program, by what the server says of it."""
        config, version = None, ""
        with suppress(InferenceServerException):  # a part of the protocol that only Triton has
            config = client.get_model_config(name, headers=self._headers, client_timeout=_ASKED_S).config
        runs_on, on_gpu, most = "its own backend", False, None
        if config is not None:
            version = self._version(name, config)
            runs_on, most = config.backend or config.platform, config.max_batch_size
            on_gpu = any(group.Kind.Name(group.kind) == "KIND_GPU" for group in config.instance_group)
        try:
            metadata = client.get_model_metadata(name, version, headers=self._headers, client_timeout=_ASKED_S)
        except InferenceServerException as error:
            found = server_error(error, _ASKED_S)
            if found.kind in (Kind.CHANGED, Kind.FAILED):
                raise ServerError(
                    Kind.ABSENT if found.kind is Kind.CHANGED else Kind.WRONG,
                    f"expected a model {name}{f' of version {version}' * bool(version)}, got none ({found}): export one with python -m "
                    f"compile --bundle {self._reference.bundle.folder} --target triton --output REPOSITORY",
                ) from error
            raise found from error
        self._check_tensors(name, metadata, size_hw or self._reference.bundle.manifest.frame_size_hw)
        many = not self._reference.one_at_a_time and most != 0
        return Model(name, version, (most or 1 << 16) if many else 1, runs_on, on_gpu)

    def _version(self, name: str, config: Any) -> str:
        """The newest version whose program is the bundle's; "" where the server does not say which program it has."""
        bundle = self._reference.bundle
        wanted = bundle.manifest.files[PROGRAM_NAME]
        hashes = {
            key.removeprefix(PROGRAM_SHA256): value.string_value
            for key, value in config.parameters.items()
            if key.startswith(PROGRAM_SHA256)
        }
        pinned = {str(version) for version in config.version_policy.specific.versions} or set(hashes)
        fitting = [version for version, sha256 in hashes.items() if sha256 == wanted and version in pinned]
        if hashes and not fitting:
            got = ", ".join(f"{sha256[:12]}… (version {version})" for version, sha256 in sorted(hashes.items()))
            raise ServerError(
                Kind.WRONG,
                f"expected model {name} with program sha256 {wanted[:12]}…, as {bundle.folder} has, got {got}: export the bundle with "
                "--target triton, or run with the one that the server has",
            )
        return max(fitting, key=lambda version: int(version) if version.isdigit() else 0, default="")

    def _check_tensors(self, name: str, metadata: Any, size_hw: tuple[int, int] | None) -> None:
        """Refuse a model whose inputs and outputs are not those of the bundle's program, for frames of a size or of any."""
        manifest = self._reference.bundle.manifest
        frames = list(frames_shape(manifest.pixels, -1, size_hw or (2, 2)))
        if size_hw is None:
            frames[1:3] = -1, -1
        wanted = {FRAMES: (_kind(input_type(manifest.pixels)), frames), MASKS: ("UINT8", [-1, *(size_hw or (-1, -1))])}
        if self._reference.counts:
            wanted[NOT_FINITE] = ("INT32", [-1])
        got = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in (*metadata.inputs, *metadata.outputs)}
        for tensor, (datatype, shape) in wanted.items():
            if tensor not in got or got[tensor][0] != datatype or not _fits(got[tensor][1], shape):
                given = f"{got[tensor][0]} {got[tensor][1]}" if tensor in got else f"none (it has {', '.join(got)})"
                raise ServerError(
                    Kind.WRONG,
                    f"expected {tensor} {datatype} {shape} of model {name}, as {self._reference.bundle.folder} has, got {given}: "
                    "export the bundle with --target triton",
                )
        if others := [tensor.name for tensor in metadata.inputs if tensor.name != FRAMES]:
            raise ServerError(Kind.WRONG, f"expected one input of model {name}, got {', '.join(others)} too")

    def _compared(
        self, client: Any, model: Model, size_hw: tuple[int, int] | None, deadline_s: float
    ) -> tuple[Model, float]:
        """The model with the version that computed a frame as the bundle's program does, and how long that took."""
        frames, mask = self._reference.sample(size_hw)
        nhw = frames_nhw(self._reference.bundle.manifest.pixels, frames.shape)
        assert nhw is not None
        start_s = time.monotonic()
        result = client.infer(
            model.name,
            [_given(frames, None)],
            model.version,
            self._asked_for(1, nhw[1:], None),
            client_timeout=deadline_s,
            headers=self._headers,
        )
        took_s = time.monotonic() - start_s
        try:
            got = self.answer(result, nhw, None).masks_nhw[0]
        except ServerError as error:
            raise ServerError(
                error.kind, f"model {model.name}: {error}: export the bundle with --target triton"
            ) from error
        off, most, in_words = _ROUNDED, _MOST_ROUNDED, "equal to"
        if model.on_gpu:
            off, most, in_words = _OFF_ON_GPU, _MOST_OFF_ON_GPU, "near"
        if self._reference.bundle.manifest.task == "classes":
            off = 0
        differing = float(np.mean(np.abs(got.astype(np.int16) - mask) > off))
        if differing > most:
            raise ServerError(
                Kind.WRONG,
                f"expected a mask {in_words} that of {self._reference.bundle.program_path} on ONNX Runtime here, got another in "
                f"{differing:.1%} of its pixels from model {model.name}: export the bundle with --target triton",
            )
        return model._replace(version=result.get_response().model_version), took_s

    def _asked_for(
        self, count: int, size_hw: tuple[int, int], room: tuple[Region, Mapping[str, int]] | None
    ) -> list[Any]:
        names = [MASKS, NOT_FINITE] if self._reference.counts else [MASKS]
        asked = [grpc.InferRequestedOutput(name) for name in names]
        if room is not None:
            region, offsets = room
            asked[0].set_shared_memory(region.name, count * size_hw[0] * size_hw[1], offsets[MASKS])
        return asked

    def answer(self, result: Any, nhw: tuple[int, int, int], room: tuple[Region, Mapping[str, int]] | None) -> Answer:
        """What is in a server's answer, as the caller's own.

        Raises:
            ServerError: it is not what was asked for.
        """
        masks = result.get_output(MASKS)
        got = (masks.datatype, tuple(masks.shape)) if masks is not None else ("none", ())
        if got != ("UINT8", nhw):
            raise ServerError(Kind.WRONG, f"expected masks UINT8 {nhw}, got {got[0]} {got[1]}")
        if room is not None:
            masks_nhw = room[0].read(nhw, np.dtype(np.uint8), room[1][MASKS])
        else:
            raw = _array(result, MASKS)
            if raw is None or raw.shape != nhw:  # a server may say a shape and send nothing
                raise ServerError(Kind.WRONG, f"expected masks of {np.prod(nhw)} bytes, got another number of them")
            masks_nhw = raw.copy()
        if not self._reference.counts:
            return Answer(masks_nhw, None)
        counts = _array(result, NOT_FINITE)
        if counts is None or counts.size != nhw[0] or counts.dtype != np.int32:
            raise ServerError(
                Kind.WRONG, f"expected {NOT_FINITE} INT32 [{nhw[0]}], got {'none' if counts is None else counts.shape}"
            )
        return Answer(masks_nhw, counts.reshape(-1).copy())


def tensor_sizes(frames: NDArray[np.uint8], nhw: tuple[int, int, int]) -> dict[str, int]:
    """The bytes of what travels in shared memory."""
    return {FRAMES: frames.nbytes, MASKS: int(np.prod(nhw))}


def _array(result: Any, name: str) -> NDArray[Any] | None:
    """A tensor of an answer; None where it has none, or not as many bytes as it says."""
    try:
        array: NDArray[Any] | None = result.as_numpy(name)
    except ValueError:
        return None
    return array


def _given(frames: NDArray[Any], room: tuple[Region, Mapping[str, int]] | None) -> Any:
    given = grpc.InferInput(FRAMES, list(frames.shape), _kind(frames.dtype))
    if room is None:
        given.set_data_from_numpy(frames)
    else:
        given.set_shared_memory(room[0].name, frames.nbytes, room[1][FRAMES])
    return given


def _kind(dtype: np.dtype[Any]) -> str:
    """A type as the protocol calls it."""
    return str(dtype.name).upper()


def _fits(got: list[int], wanted: list[int]) -> bool:
    """Whether a server's tensor takes what the program takes; -1 is any. The first side may be 1; counts may have one more."""
    if wanted == [-1]:
        return got in ([-1], [-1, 1], [1])
    return (
        len(got) == len(wanted)
        and got[0] in (1, -1)
        and all(here in (there, -1) for here, there in zip(got[1:], wanted[1:], strict=True))
    )
