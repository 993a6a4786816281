"""The frame program as a TensorRT plan, TensorRT proper or TensorRT-RTX: three frames in flight, no copy on a Jetson.

    submit    frame -> page-locked memory ──upload──▶ device ──compute──▶ device ──download──▶ page-locked memory    collect -> mask

A plan that composes takes a look beside the frame and gives a view beside the mask; what nobody asked for does not come down. How many
scores of a frame are not finite comes down with its mask, where the plan counts them.

Each arrow is a stream of its own with an event at its end, so that the next frame goes up and the last mask comes down while the GPU
computes. On a Jetson both sides share one memory, and only the middle arrow is left.

Frames of NV12 that a decoder left on the device are copied there: the upload stream waits for the decoder's, and nothing goes up.

Views in NV12 can stay on the device for an encoder: in place of the download, the same stream copies each into a ``Surface``, before
the event that ``collect`` waits for. So the slot is free again and the picture is complete when it is handed on, and no stream of
the encoder's has to wait for one of these. The surface is used again when nobody holds its picture, which an encoder does until it
has read it.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import FRAMES, LOOK, LOOK_VALUES, MASKS, NEXT_STATE, NOT_FINITE, STATE, VIEWS, Bundle
from pipeline.bundles.plan import NAMES, read_plan, rebuild_command
from pipeline.engines.base import Computed, Engine, State
from pipeline.engines.cuda_device import Buffer, CudaDevice, Surface, keep_for_ever
from pipeline.engines.kinds import EngineKind
from pipeline.engines.runtime_cache import RuntimeCacheFile
from pipeline.engines.tensorrt_layers import PlanFacts, facts_of, layer_times
from pipeline.engines.tensorrt_library import load_tensorrt, log_of
from pipeline.errors import BackendUnavailableError, PlanError, ShapeError
from pipeline.frames.on_device import FramesOnDevice, OnDevice
from pipeline.frames.pixels import frames_nhw, frames_shape, input_type

TENSORRT = EngineKind(
    name="tensorrt",
    opens="TensorRTEngine",
    help="TensorRT, on NVIDIA's GPUs and Jetsons",
    order=10,
    extra="tensorrt",
    gpu=True,
    plans=True,
    needs=("gpu", "tensorrt", "pycuda", "opencv"),
)
TENSORRT_RTX = EngineKind(
    name="tensorrt-rtx",
    opens="TensorRTRTXEngine",
    help="TensorRT-RTX, on GeForce RTX and their kin; it also builds plans for GPUs that are elsewhere",
    order=20,
    extra="tensorrt-rtx,pycuda",
    gpu=True,
    plans=True,
    needs=("gpu", "tensorrt_rtx", "pycuda", "opencv"),
    capabilities=((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)),  # of TensorRT-RTX 1.7: no Jetson, no H100
    builds_anywhere=True,
)

Shape = tuple[int, ...]

_LOOK_BYTES = 4 * len(LOOK_VALUES)
_COUNT_BYTES = 4


class _Slot:
    """One frame in flight: its memory, its events, and the recorded work for its shape."""

    def __init__(self, device: CudaDevice, sizes_bytes: Mapping[str, int]) -> None:
        self.buffers: dict[str, Buffer] = {}
        with ExitStack() as stack:
            for name, size_bytes in sizes_bytes.items():
                self.buffers[name] = device.buffer(size_bytes)
                stack.callback(self.buffers[name].free)
            # After what may fail: an exception keeps them until it is forgotten, and no context is current then.
            self.decoded, self.uploaded, self.computed, self.downloaded = (device.event() for _ in range(4))
            stack.pop_all()
        self.masks_shape: Shape = ()
        self.with_look = False
        self.left: list[Surface] = []  # where its views are, if they stay
        self.given: FramesOnDevice | None = None  # whose memory is read until all that was enqueued is done
        self.graph: Any = None

    def drop_graph(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.graph = None

    def free(self) -> None:
        self.drop_graph()
        for buffer in self.buffers.values():
            buffer.free()


class _Memory:
    """What a recurrent plan keeps for one source, twice: it reads the one and writes the other, and stays on the device."""

    def __init__(self, device: CudaDevice, sizes_bytes: Mapping[str, int]) -> None:
        self._sides: list[dict[str, Buffer]] = [{}, {}]
        self._newest: int | None = None
        with ExitStack() as stack:
            stack.callback(self.free)
            for side in self._sides:
                for name, size_bytes in sizes_bytes.items():
                    side[name] = device.buffer(size_bytes)
            stack.pop_all()

    def forget(self) -> None:
        """Begin anew."""
        self._newest = None

    def turn(self, zeros: Mapping[str, Buffer]) -> dict[str, int]:
        """The addresses of inputs and outputs for the next frame; of the first the inputs are zeros."""
        read = zeros if self._newest is None else self._sides[self._newest]
        self._newest = 0 if self._newest is None else 1 - self._newest
        written = self._sides[self._newest]
        addresses = {name: buffer.address for name, buffer in read.items()}
        return addresses | {name.replace(STATE, NEXT_STATE, 1): buffer.address for name, buffer in written.items()}

    def free(self) -> None:
        for side in self._sides:
            for buffer in side.values():
                buffer.free()
            side.clear()


class _Lease:
    """Who holds it has a surface for a picture; then it is for another."""

    def __init__(self, surface: Surface, spare: deque[Surface]) -> None:
        weakref.finalize(self, spare.append, surface).atexit = False


class TensorRTEngine(Engine):
    """Runs the plan of a bundle that fits this GPU and this TensorRT.

    Raises:
        BackendUnavailableError: TensorRT, PyCUDA or the GPU is not here, or the GPU has too little memory.
        PlanError: the bundle has no plan for this GPU and version, or it was changed.
    """

    in_flight = 3
    on_gpu = True
    takes_looks = True
    runtime = "tensorrt"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        try:
            self._device = CudaDevice()
        except BackendUnavailableError as error:
            read_plan(bundle, self.runtime, "", None, str(error))  # which says it with what the plan is for
            raise
        trt = load_tensorrt(self.runtime)
        version = str(trt.__version__)
        self._entry, plan = read_plan(bundle, self.runtime, version, self._device.sm, self._device.name)
        self.batch = self._entry.profile[2][0]
        self.takes_device = self.pixels == "nv12"
        self._frame_type = input_type(self.pixels)
        self._busy: deque[_Slot] = deque()
        self._free: deque[_Slot] = deque()
        self._shape: Shape = ()
        self._shape_ran = False
        self._state_bytes: dict[str, int] = {}
        self._zeros: dict[str, Buffer] = {}
        self._memories: list[_Memory] = []
        self._spare: list[_Memory] = []  # of sources that are gone
        self._surfaces: deque[Surface] = deque()  # of views that nobody holds any more
        self._cache_file: RuntimeCacheFile | None = None
        self._cache: Any = None
        self._cache_saved = False
        with self._device, ExitStack() as stack:
            stack.callback(self._release)
            self._load(trt, plan)
            self._upload, self._compute, self._download = (self._device.stream() for _ in range(3))
            for name, size_bytes in self._state_bytes.items():
                self._zeros[name] = self._device.buffer(size_bytes)
                self._zeros[name].host[:] = 0
                self._zeros[name].to_device(size_bytes, self._compute)
            stack.pop_all()
        self.batch = 1 if self.keeps_state else self.batch
        # Recorded work has fixed addresses, and a state's change with each frame.
        self._graphs = None if self.keeps_state or self.runtime != "tensorrt" else _graph_recorder()
        sm = self._device.sm
        self.description = f"{NAMES[self.runtime]} {version}, {self._device.name} ({sm // 10}.{sm % 10})"

    def try_out(self) -> None:
        """Run black frames of the plan's usual size."""
        self(np.zeros(self._entry.profile[1], self._frame_type))

    def inspect(self) -> PlanFacts:
        """What TensorRT tells of the plan's layers, for frames of the plan's usual size; nothing may be in flight."""
        with self._device:
            self._set_shape(self._entry.profile[1])
            return facts_of(load_tensorrt(self.runtime), self._engine, self._context)

    def profile_layers(self, runs: int) -> dict[str, list[float]]:
        """Milliseconds by layer for so many grey frames of the plan's usual size, launched one by one."""
        with self._device:
            return self._profile(load_tensorrt(self.runtime), runs)

    def _profile(self, trt: ModuleType, runs: int) -> dict[str, list[float]]:
        # In a context of its own: one that has a profiler keeps it, and one that makes graphs has no layers to time.
        if self.runtime == "tensorrt-rtx":
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            config.set_runtime_cache(self._cache)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        self._require(context is not None, f"TensorRT cannot run the plan: {log_of(trt).last_words}")
        shape = self._entry.profile[1]
        slot = self._slot_for(shape)
        self._free.append(slot)
        fits = context.set_input_shape(self._input, shape) and not context.infer_shapes()
        addresses = {name: buffer.address for name, buffer in slot.buffers.items()} | self._state_addresses(State())
        for name, address in addresses.items():
            fits = fits and context.set_tensor_address(name, address)
        self._require(fits, f"TensorRT refuses frames of {shape}")
        there = slot.buffers[self._input]
        there.host.view(self._frame_type)[:] = 128
        there.to_device(self._frame_type.itemsize * math.prod(shape), self._compute)
        if self.composes:
            slot.buffers[LOOK].host[:] = 0
            slot.buffers[LOOK].to_device(_LOOK_BYTES, self._compute)

        def run() -> None:
            self._require(context.execute_async_v3(int(self._compute.handle)), "TensorRT cannot run the plan")
            self._compute.synchronize()

        return layer_times(trt, context, run, runs)

    def _load(self, trt: ModuleType, plan: bytes) -> None:
        log = log_of(trt)
        log.clear()
        self._runtime = trt.Runtime(log.logger)
        if self._entry.version_compatible:
            self._runtime.engine_host_code_allowed = True  # it carries the runtime of the version that built it
        if self._entry.dla_core is not None:
            self._runtime.DLA_core = self._entry.dla_core
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._require(self._engine is not None, f"TensorRT refuses the plan: {log.last_words}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        states = self._find_states(trt, names)
        names = [name for name in names if name not in states]
        inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.counts = NOT_FINITE in outputs
        given = [name for name in outputs if name != NOT_FINITE]
        types = {name: self._engine.get_tensor_dtype(name) for name in names}
        wide = (LOOK, NOT_FINITE) if self._frame_type == np.uint8 else (LOOK, NOT_FINITE, *inputs)
        all_uint8 = all(types[name] == trt.DataType.UINT8 for name in names if name not in wide)
        self._require(
            self._frame_type == np.uint8 or all(types[name] == trt.DataType.INT32 for name in inputs),
            "expected int32 for frames of 16 bits, got another type: this is no such frame program",
        )
        self._require(
            not self.counts or types[NOT_FINITE] == trt.DataType.INT32,
            f"expected int32 for {NOT_FINITE}, got another type: this is no frame program",
        )
        if self.composes:
            self._require(
                {*inputs} == {FRAMES, LOOK} and {*given} == {MASKS, VIEWS} and all_uint8,
                f"expected {FRAMES}, {LOOK}, {MASKS} and {VIEWS} of a program that composes, got {', '.join(names)}",
            )
            self._input, self._output = FRAMES, MASKS
        else:
            self._require(
                len(inputs) == len(given) == 1 and all_uint8,
                f"expected one uint8 input and one uint8 output, got {', '.join(names)}: this is no frame program",
            )
            (self._input,), (self._output,) = inputs, given
        if self.runtime == "tensorrt-rtx":
            self._context = self._engine.create_execution_context(self._runtime_config(trt))
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None and "memory" in log.last_words.lower():
            command = rebuild_command(self.bundle, self.runtime)
            raise BackendUnavailableError(
                f"{self._device.name}: TensorRT cannot run the plan: {log.last_words}: end what else uses the GPU's memory, or build a "
                f"plan for frames of one size, which takes less, with: {command} --frame HEIGHTxWIDTH"
            )
        self._require(self._context is not None, f"TensorRT cannot run the plan: {log.last_words}")

    def _find_states(self, trt: ModuleType, names: list[str]) -> set[str]:
        """What the plan keeps between frames, by the names of inputs and outputs."""
        inputs = [name for name in names if name.startswith(STATE)]
        pairs = {name: name.replace(STATE, NEXT_STATE, 1) for name in inputs}
        shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in inputs}
        fits = {name for name in names if name.startswith(NEXT_STATE)} == set(pairs.values()) and all(
            min(shapes[name]) > 0
            and tuple(self._engine.get_tensor_shape(pair)) == shapes[name]
            and {self._engine.get_tensor_dtype(name), self._engine.get_tensor_dtype(pair)} == {trt.DataType.FLOAT}
            for name, pair in pairs.items()
        )
        self._require(fits, "expected an input and an output in FP32 of one size for each state, got others")
        self._state_bytes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
        self.keeps_state = self.one_at_a_time = bool(inputs)
        return {*pairs, *pairs.values()}

    def _state_addresses(self, state: State) -> dict[str, int]:
        """Where a state is read and written for the next frame; it is moved on."""
        if not self.keeps_state:
            return {}
        if state.values is None:
            if not self._spare:
                self._memories.append(_Memory(self._device, self._state_bytes))
                self._spare.append(self._memories[-1])
            state.values = self._spare.pop()
            state.values.forget()
            # To be used again behind what is enqueued: nothing is freed, and the compute stream keeps the order.
            weakref.finalize(state, self._spare.append, state.values)
        addresses: dict[str, int] = state.values.turn(self._zeros)
        return addresses

    def _runtime_config(self, trt: ModuleType) -> Any:
        config = self._engine.create_runtime_config()
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.DISABLED if self.keeps_state else strategies.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        self._cache_file = RuntimeCacheFile(self.bundle.folder / self._entry.file, self._device.sm)
        self._cache_file.load(self._cache)
        config.set_runtime_cache(self._cache)
        return config

    def _submit(self, frames: NDArray[np.uint8] | FramesOnDevice) -> None:
        self._put_in_flight(frames, None)

    def _submit_with_look(self, frames: NDArray[np.uint8] | FramesOnDevice, look: NDArray[np.float32]) -> None:
        self._put_in_flight(frames, look)

    def _put_in_flight(self, frames: NDArray[np.uint8] | FramesOnDevice, look: NDArray[np.float32] | None) -> None:
        shape: Shape = frames.shape
        with self._device:
            if shape != self._shape:
                self._set_shape(shape)
            slot = self._slot_for(shape)
            try:
                there = slot.buffers[self._input]
                if isinstance(frames, FramesOnDevice):
                    self._take(frames, slot)
                else:
                    np.copyto(there.host[: frames.nbytes].view(self._frame_type).reshape(shape), frames)
                    there.to_device(frames.nbytes, self._upload)
                if self.composes:
                    values = np.zeros(len(LOOK_VALUES), np.float32) if look is None else look
                    slot.buffers[LOOK].host[:] = np.frombuffer(values.tobytes(), np.uint8)
                    slot.buffers[LOOK].to_device(_LOOK_BYTES, self._upload)
                slot.uploaded.record(self._upload)
                self._compute.wait_for_event(slot.uploaded)
                self._enqueue(slot)
                slot.computed.record(self._compute)
                self._download.wait_for_event(slot.computed)
                slot.buffers[self._output].to_host(math.prod(slot.masks_shape), self._download)
                if self.counts:
                    slot.buffers[NOT_FINITE].to_host(_COUNT_BYTES * slot.masks_shape[0], self._download)
                slot.with_look = look is not None
                if slot.with_look:
                    self._take_views(slot)
                slot.downloaded.record(self._download)
            except BaseException:
                self._surfaces.extend(slot.left)
                slot.left = []
                self._free.append(slot)
                raise
            self._busy.append(slot)

    def _take(self, frames: FramesOnDevice, slot: _Slot) -> None:
        """Put the copies of pictures that lie on the device onto the upload stream."""
        slot.given = frames
        slot.decoded.record()  # on the default stream, where the decoder works
        self._upload.wait_for_event(slot.decoded)
        end = 0
        for picture in frames.pictures:
            height, width = picture.size_hw
            for plane, rows in ((picture.luma, height), (picture.chroma, height // 2)):
                slot.buffers[self._input].take_rows(end, plane, (rows, width), self._upload)
                end += rows * width

    def _take_views(self, slot: _Slot) -> None:
        """Put the copies of views, down or within the device, onto the download stream."""
        shape = self._views_shape(slot.masks_shape)
        if not (self.leaves_views and self.takes_device and self.bundle.manifest.views == "nv12"):
            slot.buffers[VIEWS].to_host(math.prod(shape), self._download)
            return
        for index in range(shape[0]):
            slot.left.append(self._surface(slot.masks_shape[1:]))
            slot.buffers[VIEWS].put_rows(index * math.prod(shape[1:]), slot.left[-1], self._download)

    def _surface(self, size_hw: Shape) -> Surface:
        """One that nobody holds; those of other sizes go."""
        while self._surfaces:
            surface = self._surfaces.popleft()
            if surface.size_hw == size_hw:
                return surface
        return self._device.surface((size_hw[0], size_hw[1]))

    def _views(self, slot: _Slot) -> NDArray[np.uint8] | FramesOnDevice | None:
        """What has landed of a slot's views; they are no longer the slot's."""
        if not slot.left:
            return _copied(slot.buffers[VIEWS], self._views_shape(slot.masks_shape)) if slot.with_look else None
        left, slot.left = slot.left, []
        return FramesOnDevice(
            tuple(
                OnDevice(one.luma, one.chroma, one.size_hw, one.to_host, _Lease(one, self._surfaces), one)
                for one in left
            )
        )

    def _collect(self) -> Computed:
        slot = self._landed()
        shape, buffers = slot.masks_shape, slot.buffers
        return Computed(
            _copied(buffers[self._output], shape),
            self._views(slot),
            _copied(buffers[NOT_FINITE], (_COUNT_BYTES * shape[0],)).view(np.int32) if self.counts else None,
        )

    def _landed(self) -> _Slot:
        """Wait for the oldest frame; its slot is free again, and keeps what came down until the next submission."""
        slot = self._busy.popleft()
        self._free.append(slot)
        with self._device:
            slot.downloaded.synchronize()
            slot.given = None
            if self._cache_file is not None and not self._cache_saved:
                self._cache_file.save(self._cache)  # now too, for a process that is killed has no end
                self._cache_saved = True
        return slot

    def _close(self) -> None:
        try:
            with self._device:
                self._synchronize()
        except BackendUnavailableError:
            # On a GPU that failed PyCUDA complains about each object it destroys, and ends the process where it cannot push.
            keep_for_ever(self)
            return
        with self._device, ExitStack() as stack:
            stack.callback(self._release)
            if self._cache_file is not None:
                self._cache_file.save(self._cache)

    def _synchronize(self) -> None:
        # A method, for its loop's last stream must be forgotten while the device is current.
        for stream in (self._upload, self._compute, self._download):
            stream.synchronize()

    def _release(self) -> None:
        """Free everything, in the reverse order of its making; the device is current."""
        held: list[_Slot | _Memory | Buffer] = [*self._busy, *self._free, *self._memories, *self._zeros.values()]
        for one in held:
            one.free()
        del held
        for holder in (self._busy, self._free, self._memories, self._spare, self._zeros, self._surfaces):
            holder.clear()
        self._surfaces = deque()  # those that come back yet are freed with the old one
        for name in ("_context", "_cache", "_engine", "_runtime", "_upload", "_compute", "_download"):
            self.__dict__.pop(name, None)

    def _set_shape(self, shape: Shape) -> None:
        smallest, _, largest = self._entry.profile
        if not all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)):
            command = rebuild_command(self.bundle, self.runtime)
            low, got, high = (self._masks_shape(frames) for frames in (smallest, shape, largest))
            raise ShapeError(
                f"frames: expected {_sizes(low, high)} as the plan was built for, got {_sizes(got, got)}: "
                f"rebuild it with: {command} --frame {got[1]}x{got[2]} --batch {got[0]}"
            )
        # What is in flight was enqueued for the old shape and uses the context's memory; so does what was recorded.
        self._compute.synchronize()
        for slot in (*self._busy, *self._free):
            slot.drop_graph()
        self._shape = ()
        fits = self._context.set_input_shape(self._input, shape) and not self._context.infer_shapes()
        self._require(fits, f"TensorRT refuses frames of {shape}")
        expected, masks_shape = self._masks_shape(shape), tuple(self._context.get_tensor_shape(self._output))
        self._require(masks_shape == expected, f"expected masks of {expected} for these frames, got {masks_shape}")
        if self.composes:
            drawn, views_shape = self._views_shape(expected), tuple(self._context.get_tensor_shape(VIEWS))
            self._require(views_shape == drawn, f"expected views of {drawn} for these frames, got {views_shape}")
        if self.counts:
            counts_shape = tuple(self._context.get_tensor_shape(NOT_FINITE))
            self._require(
                counts_shape == expected[:1], f"expected counts of {expected[:1]} for these frames, got {counts_shape}"
            )
        self._shape, self._shape_ran = shape, False

    def _slot_for(self, shape: Shape) -> _Slot:
        """Take a free slot with memory for a shape."""
        slot = self._free.popleft() if self._free else None
        masks_shape = self._masks_shape(shape)
        frames_bytes = self._frame_type.itemsize * math.prod(shape)
        sizes_bytes = {self._input: frames_bytes, self._output: math.prod(masks_shape)}
        if self.composes:
            sizes_bytes |= {LOOK: _LOOK_BYTES, VIEWS: math.prod(self._views_shape(masks_shape))}
        if self.counts:
            sizes_bytes[NOT_FINITE] = _COUNT_BYTES * masks_shape[0]
        if slot is not None and any(slot.buffers[name].host.size < size for name, size in sizes_bytes.items()):
            slot.free()
            slot = None
        if slot is None:
            slot = _Slot(self._device, sizes_bytes)
        slot.masks_shape = masks_shape
        return slot

    def _masks_shape(self, shape: Shape) -> Shape:
        nhw = frames_nhw(self.bundle.manifest.pixels, shape)
        assert nhw is not None  # frames and profiles were checked
        return nhw

    def _views_shape(self, masks_shape: Shape) -> Shape:
        count, height, width = masks_shape
        return frames_shape(self.bundle.manifest.views, count, (height, width))

    def _enqueue(self, slot: _Slot) -> None:
        """Put the plan's work onto the compute stream: plainly the first time a shape comes, from then on as a graph."""
        if slot.graph is None:
            addresses = {name: buffer.address for name, buffer in slot.buffers.items()}
            for name, address in (addresses | self._state_addresses(self._state)).items():
                fits = self._context.set_tensor_address(name, address)
                self._require(fits, f"TensorRT refuses memory for {name}")
            if not self._shape_ran or self._graphs is None:
                self._execute()
                self._shape_ran = True
                return
            try:
                slot.graph = self._graphs(int(self._compute.handle), self._execute)
            except (BackendUnavailableError, PlanError):
                # A layer that cannot be recorded, as CUDA or TensorRT says it: it runs as well, only launched one by one.
                self._graphs = None
                self._execute()
                return
        slot.graph.launch()

    def _execute(self) -> None:
        done = self._context.execute_async_v3(int(self._compute.handle))
        self._require(done, "TensorRT cannot run the plan")

    def _require(self, fits: Any, problem: str) -> None:
        if not fits:
            path = self.bundle.folder / self._entry.file
            command = rebuild_command(self.bundle, self.runtime)
            raise PlanError(f"{path}: {problem}: rebuild it with: {command}", problem)


class TensorRTRTXEngine(TensorRTEngine):
    """The same with TensorRT-RTX, which finishes its plans on the machine that they run on and makes graphs itself."""

    runtime = "tensorrt-rtx"


def _graph_recorder() -> Callable[[int, Callable[[], None]], Any] | None:
    try:
        from pipeline.engines.cuda_graph import CudaGraph
    except (ImportError, OSError):  # cuda-bindings is not installed: nothing but launches is lost
        return None
    return CudaGraph


def _copied(buffer: Buffer, shape: Shape) -> NDArray[np.uint8]:
    copied: NDArray[np.uint8] = buffer.host[: math.prod(shape)].reshape(shape).copy()
    return copied


def _sizes(smallest: Any, largest: Any) -> str:
    low, high = (f"{shape[0]} of {shape[1]}×{shape[2]}" for shape in (smallest, largest))
    return low if low == high else f"from {low} to {high}"
