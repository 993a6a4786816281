"""Torch-TensorRT where there is no GPU: its own converters and a real TensorRT-RTX that builds, and stand-ins for what asks for a GPU.

Run as a script, with the folder of tests/install-torch-tensorrt first on PYTHONPATH: builds the networks named on the command line, and
prints what became of them as JSON. A process of its own, because the stand-ins reach into torch.

What is real: torch.export, Torch-TensorRT's lowering, partitioning and converters, TensorRT's builder, saving and loading the program.
What is not: an engine is never deserialised, which needs a driver; it is run as the graph that was given to TensorRT.
"""

import copy
import ctypes
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
import types
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from compile.networks.contract import Contract
from compile.networks.u2net import U2Net, u2net_lite
from compile.networks.unet import UNet
from compile.plans.torch_tensorrt_build import TorchTensorRTProgram, build_content, frame_profile
from compile.plans.torch_tensorrt_network import (
    Scores,
    build_options,
    compile_network,
    engine_count,
    operators_outside,
    require_whole,
)
from compile.program.onnx_export import lower_pooling
from compile.program.program import FrameProgram
from pipeline.bundles.bundle import PROGRAM_NAME, Bundle, Manifest
from pipeline.engines.torch_tensorrt import CPU_SM, TorchTensorRTEngine
from pipeline.errors import CompileError, ShapeError

SM = (8, 6)


class StandInEngine:
    """What a deserialised engine says of itself."""

    streamable_weights_size = 0

    def __init__(self, content, tensors):
        self.content, self.tensors = bytes(content), tensors

    def serialize(self):
        return self.content

    def get_tensor_dtype(self, name):
        return self.tensors[name][0]

    def get_tensor_shape(self, name):
        return self.tensors[name][1]

    def is_shape_inference_io(self, _):
        return False


def install():
    """Import Torch-TensorRT with its stand-ins; gives the module and the list of engines that will be built."""
    (carrier,) = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx").submodule_search_locations
    for name in ("libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*"):
        ctypes.CDLL(str(next(Path(carrier).glob(name))), ctypes.RTLD_GLOBAL)
    sys.modules["tensorrt_rtx"] = bindings = importlib.import_module("tensorrt_rtx_bindings")

    gpu = types.SimpleNamespace(major=SM[0], minor=SM[1], name="a GPU that is not here", total_memory=1 << 34)
    torch.cuda.get_device_capability = lambda *_: SM
    torch.cuda.get_device_properties = lambda *_: gpu
    torch.cuda.current_device = lambda: 0
    torch.cuda.default_stream = lambda *_: None
    torch.cuda.mem_get_info = lambda *_: (1 << 34, 1 << 34)
    torch.Tensor.cuda = lambda tensor, *_: tensor
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})

    # Its native half links torch's CUDA half; without the files it takes the one in Python.
    isfile = os.path.isfile
    os.path.isfile = lambda path: "libtorchtrt" not in str(path) and isfile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_tensorrt = importlib.import_module("torch_tensorrt")
    os.path.isfile = isfile

    interpreter = importlib.import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter").TRTInterpreter
    engine = importlib.import_module("torch_tensorrt.dynamo.runtime._TRTEngine").TRTEngine
    built = []
    configured = interpreter._populate_trt_builder_config

    def configure(self, *arguments):
        config = configured(self, *arguments)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(bindings.ComputeCapability, f"SM{SM[0]}{SM[1]}"), 0)
        network = self.ctx.net
        ends = [network.get_input(index) for index in range(network.num_inputs)]
        ends += [network.get_output(index) for index in range(network.num_outputs)]
        tensors = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in ends}
        built.append({"tensors": tensors, "graph": copy.deepcopy(self.module), "layers": network.num_layers})
        return config

    class Runtime:
        def __init__(self, _):
            pass

        def deserialize_cuda_engine(self, content):
            digest = hashlib.sha256(bytes(content)).hexdigest()
            entry = next((entry for entry in built if entry.get("digest") == digest), None) or built[-1]
            entry.update(digest=digest, size_bytes=len(bytes(content)))
            return StandInEngine(content, entry["tensors"])

    def execute(self, inputs):
        digest = hashlib.sha256(self.cuda_engine.content).hexdigest()
        (entry,) = [entry for entry in built if entry.get("digest") == digest]
        entry["runs"] = entry.get("runs", 0) + 1
        return entry["graph"](*inputs)

    def infer_outputs(self, shapes):
        captured = self.symbolic_shape_expressions
        known = {
            expression: size
            for entry, shape in zip(captured["inputs"], shapes, strict=True)
            for expression, size in zip(entry["shape_exprs"], shape, strict=True)
        }
        return [[known.get(size, size) for size in entry["shape_exprs"]] for entry in captured["outputs"]]

    importlib.import_module("torch_tensorrt.dynamo._compiler").to_torch_device = lambda _: torch.device("cpu")
    interpreter._populate_trt_builder_config = configure
    engine.infer_outputs = infer_outputs
    sys.modules["tensorrt"].Runtime = Runtime
    engine.execute = execute
    return torch_tensorrt, built


TINY = ((3, 2, 4), *((4, 2, 4),) * 5, *((8, 2, 4),) * 5)
NETWORKS = {  # name: network, (height, width) inside it
    "u2netp": lambda: (u2net_lite(), (320, 320)),
    "unet-transposed-1": lambda: (UNet(3, 1), (256, 256)),
    "unet-transposed-19": lambda: (UNet(3, 19), (256, 256)),
    "unet-bilinear-1": lambda: (UNet(3, 1, bilinear=True), (256, 256)),
    "unet-bilinear-19": lambda: (UNet(3, 19, bilinear=True), (256, 256)),
    "tiny-u2net": lambda: (U2Net(1, TINY), (64, 32)),
    "tiny-unet": lambda: (UNet(3, 3, base_width=4), (48, 64)),
}
SIZES_HW = ((48, 64), (1, 1), (47, 200), (95, 31), (90, 160))


class WithoutConverter(torch.nn.Module):
    """A network with an operator that Torch-TensorRT has no converter for."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 1, 3, padding=1)

    def logits(self, x):
        return torch.special.bessel_j0(self.conv(x))


class Recipe:
    """Builds without a GPU; each method gives what a test wants to know of it."""

    def __init__(self):
        self.torch_tensorrt, self.built = install()

    def whole(self, name, precision):
        """A network of real size, converted and built as it is."""
        program = program_of(name, precision)
        lower_pooling(program.network, program.before.size_hw)
        compiled = self.convert(program)
        (entry,) = self.built
        (frames_dtype, frames_shape), *_ = entry["tensors"].values()
        return {
            "engines": engine_count(compiled),
            "outside": operators_outside(compiled),
            "size_bytes": entry["size_bytes"],
            "layers": entry["layers"],
            "input": [str(frames_dtype), frames_shape],
        }

    def not_whole(self, name):
        """What is said of a network that does not convert whole."""
        contract = Contract("x", (64, 32))
        network = WithoutConverter() if name == "no-converter" else U2Net(1, TINY)  # which rounds up
        program = FrameProgram(network.eval(), contract).eval()
        try:
            require_whole(self.convert(program, dryrun=True))
        except CompileError as error:
            return str(error)
        return "it converts"

    def convert(self, program, **options):
        x = torch.zeros((1, 3, *program.before.size_hw), dtype=torch.float16 if program.half_network else torch.float32)
        with torch.no_grad():
            exported = torch.export.export(Scores(program.network), (x,), strict=False)
        spec = self.torch_tensorrt.Input(tuple(x.shape), dtype=x.dtype)
        with tempfile.TemporaryDirectory() as folder:
            settings = build_options(self.torch_tensorrt, torch.device("cpu"), Path(folder) / "timings")
            return compile_network(self.torch_tensorrt, exported, spec, {**settings, **options})

    def run(self, name, precision, batch):
        """A program for frames of any size: built, saved, loaded by the engine of the run half, and run."""
        reference = program_of(name, precision)
        steps, largest, refused = [], 0.0, ""
        with tempfile.TemporaryDirectory() as folder:
            content = self.content(name, precision, batch, Path(folder) / "cache", lambda *told: steps.append(told))
            count = len(self.built)
            again = self.content(name, precision, batch, Path(folder) / "cache", None)
            program = TorchTensorRTProgram(content, versions(), CPU_SM, frame_profile(None, batch))
            bundle = write_bundle(Path(folder) / "bundle", program, precision)
            runs = 0
            with TorchTensorRTEngine(bundle, device="cpu") as engine:
                for height, width in SIZES_HW:
                    for frames in (batch, 1):
                        given = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
                        with torch.no_grad():
                            expected = reference(torch.from_numpy(given))[0].numpy()
                        largest = max(largest, float((engine(given) != expected).mean()))
                        runs += 1
                try:
                    engine(np.zeros((batch + 1, 4, 4, 3), np.uint8))
                except ShapeError as error:
                    refused = str(error)
        return {
            "engines": count,
            "again": [len(self.built) - count, again == content],
            "steps": steps,
            "runs": [sum(entry.get("runs", 0) for entry in self.built), runs],
            "differing": largest,
            "refused": refused,
            "input": [str(self.built[0]["tensors"]["x"][0]), self.built[0]["tensors"]["x"][1]],
        }

    def content(self, name, precision, batch, cache, step):
        program = program_of(name, precision)
        return build_content(self.torch_tensorrt, program, torch.device("cpu"), None, batch, cache, "test", step)


def program_of(name, precision):
    torch.manual_seed(0)
    network, imgsz = NETWORKS[name]()
    return FrameProgram(network.eval(), Contract("x", imgsz), half=precision == "fp16").eval()


def versions():
    return {name: metadata.version(name.replace("tensorrt", "tensorrt-rtx")) for name in ("torch_tensorrt",)} | {
        "torch": torch.__version__.partition("+")[0],
        "tensorrt": "none",
    }


def write_bundle(folder, program, precision):
    file = program.file_name(precision)
    entry = program.entry(precision)
    manifest = Manifest(
        model="x",
        task="classes",
        classes=("a", "b", "c"),
        network_size_hw=(48, 64),
        precision=precision,
        contract={},
        weights={},
        tools={},
        created="",
        engines=(entry,),
    )
    return Bundle.write(folder, manifest, {PROGRAM_NAME: b"", file: program.content})


def main():
    """Each argument is a method and what it takes, such as ``whole,u2netp,fp16``."""
    torch.set_num_threads(1)
    gc.disable()  # a graph is a million small objects, looked at again and again
    recipe, results = Recipe(), {}
    for argument in sys.argv[1:]:
        start = time.monotonic()
        name, *values = argument.split(",")
        recipe.built.clear()
        results[argument] = getattr(recipe, name)(*(int(value) if value.isdigit() else value for value in values))
        sys.stderr.write(f"{argument}: {time.monotonic() - start:.1f} s\n")
    sys.stdout.write(f"{json.dumps(results)}\n")


if __name__ == "__main__":
    main()
