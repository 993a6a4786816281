"""A network's frame program in one precision or another, with the layers that do not take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from calibration.int8.cache import RecipeCache
from calibration.int8.recipe import Int8Recipe, Step
from calibration.sets.frames import HashedFrames
from compile.options import BuildOptions
from compile.program.cpu_int8 import exact_layers
from compile.program.network import Network
from compile.proof.verify import Sample
from pipeline.bundles.bundle import CPU_GRAPH, FILE_GRAPH, Precision, cache_folder
from pipeline.errors import CompileError
from pipeline.frames.frame import Frame
from pipeline.sources.base import Source
from pipeline.terminal import logger_of

# Below this many calibration frames a user is told.
_FEW_FRAMES = 16

log = logger_of(__name__)


@dataclass(frozen=True)
class Program:
    """A frame program.

    Attributes:
        precision: of the network inside.
        content: as ONNX.
        layers: those of another precision, with theirs.
        calibration: of INT8, for the manifest.
    """

    precision: Precision
    content: bytes
    layers: Mapping[str, str]
    calibration: Mapping[str, Any] = field(default_factory=dict)


def single_precision(layers: Mapping[str, str]) -> list[str]:
    """The layers that stay FP32."""
    return [name for name, kind in layers.items() if kind == "fp32"]


class Programs:
    """A network's program in each precision.

    Args:
        network: the trained one.
        searched: gives frames to search on for layers that FP16 would spoil, none of which judges what is found.
        calibration: frames to calibrate INT8 on; None without.
        weights_sha256: of the file of weights.
        options: fixed sizes, the target, and how INT8 is calibrated.
    """

    def __init__(
        self,
        network: Network,
        searched: Callable[[], Sequence[Sample]],
        calibration: Source | None,
        weights_sha256: str,
        options: BuildOptions,
    ) -> None:
        self._network, self._searched, self._options = network, searched, options
        self._frames = calibration
        self._weights_sha256 = weights_sha256
        self._kept: tuple[str, ...] | None = None
        self._int8: Int8Recipe | None = None
        self._for_cpu: Program | None = None
        self._calibration: dict[str, Any] = {}

    def export(self, precision: Precision) -> Program:
        """Make the program.

        Raises:
            CompileError: the network does not take the precision, or cannot be exported.
            EdgemaskError: there are no frames to calibrate on.
        """
        if not self._network.has_layers and precision == self._network.precision:
            log.info("exporting the frame program, %s", precision)
            content = self._network.export(precision, self._options.frame_size_hw, ()).SerializeToString()
            return Program(precision, content, {}, {"graph": FILE_GRAPH} if precision == "int8" else {})
        if precision == "int8" and self._options.target == "onnxruntime":
            self._int8_layers()
            assert self._for_cpu is not None
            return self._for_cpu
        if precision == "fp32":
            kept = self._kept_beside_bf16() if self._options.target == "openvino" else ()
        else:
            kept = self._kept_in_single()
        layers = dict.fromkeys(kept, "fp32")
        if precision == "int8":
            layers = self._int8_layers() | layers
        log.info("exporting the frame program, %s", precision)
        program = self._network.export(
            precision, self._options.frame_size_hw, single_precision(layers)
        ).SerializeToString()
        return Program(precision, program, layers, self._calibration if precision == "int8" else {})

    def _kept_in_single(self) -> tuple[str, ...]:
        """Layers that FP16 would spoil."""
        network = self._network
        if not network.has_layers:
            return ()
        if self._kept is None:
            samples = self._searched()
            beyond = network.beyond_half()
            for name, largest in beyond.items():
                log.info("%s stays FP32: its values reach %.3g, and FP16 ends at 65504", name, largest)
            sensitive = network.sensitive(samples, beyond) if samples else ()
            for name in sensitive:
                log.info("%s stays FP32: the masks depend on more than FP16's 11 bits there", name)
            self._kept = (*beyond, *sensitive)
        return self._kept

    def _kept_beside_bf16(self) -> tuple[str, ...]:
        """Layers that BF16 would spoil; the ends of the network need not be named, for they are never BF16."""
        samples = self._searched() if self._network.has_layers else ()
        sensitive = self._network.sensitive(samples, self._network.ends(), "bf16") if samples else ()
        for name in sensitive:
            log.info("%s stays FP32 where others are BF16: the masks depend on more than 8 bits there", name)
        return sensitive

    def _int8_layers(self) -> dict[str, str]:
        """Find what can be INT8 from the calibration frames; gives the layers that are not."""
        if self._int8 is None:
            self._int8 = self._search_int8()
        return dict.fromkeys(self._int8.left, "fp16")

    def _search_int8(self) -> Int8Recipe:
        options, network = self._options, self._network
        if not network.has_layers:
            raise CompileError("--precision: expected fp32 for a network that cannot be brought into layers, got int8")
        source = self._frames
        assert source is not None  # the options were checked
        hashed = HashedFrames(source)
        for _ in hashed:
            pass
        if hashed.count < _FEW_FRAMES:
            log.info(
                "--calib %s: %d frame(s) to calibrate on, expected %d or more: INT8 may not fit frames that are different",
                *(options.calibration, hashed.count, _FEW_FRAMES),
            )
        depends_on = {
            "weights": self._weights_sha256,
            "contract": network.contract.as_dict(),
            "frames": hashed.sha256,
            "method": options.calibration_method,
        }
        cache = RecipeCache(cache_folder() / "int8", depends_on)
        recipe = cache.load()
        if recipe is not None:
            log.info("INT8 as found before for these weights and %d frames, from %s", hashed.count, cache.path.parent)
            network.use_int8(recipe)
        else:
            frames = tqdm(source, "calibrating", hashed.count, unit=" frames", leave=False, disable=options.quiet)
            recipe = self._searched_int8(frames)
            cache.save(recipe)
        if options.target == "onnxruntime":
            self._for_cpu = self._export_for_cpu(recipe, source, hashed)
            return recipe
        _log_recipe(recipe, hashed.count, str(options.calibration))
        self._calibration = {**self._calibrated_on(hashed), **recipe.as_dict()}
        return recipe

    def _searched_int8(self, frames: Iterable[Frame]) -> Int8Recipe:
        # A share of the whole, with the time that is left: how many steps there are depends on what they find.
        form = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}, about {remaining} left"
        # What is left follows from the mean rate so far: one slow step changes that little.
        with tqdm(
            desc="searching INT8",
            total=1.0,
            bar_format=form,
            leave=False,
            disable=self._options.quiet,
            delay=1.0,
            smoothing=0.0,
            miniters=0.0,
        ) as bar:
            is_begun = False

            def show(done: float) -> None:
                nonlocal is_begun
                if not is_begun:
                    bar.reset()  # its time begins after the calibration
                    is_begun = True
                bar.update(done - bar.n)

            return self._network.search_int8(frames, self._options.calibration_method, _log_step, show)

    def _calibrated_on(self, hashed: HashedFrames) -> dict[str, Any]:
        options = self._options
        return {
            "source": options.calibration,
            "frames": hashed.count,
            "sha256": hashed.sha256,
            "method": options.calibration_method,
        }

    def _export_for_cpu(self, recipe: Int8Recipe, source: Iterable[Frame], hashed: HashedFrames) -> Program:
        options = self._options
        log.info("exporting the frame program, int8 for CPUs")
        frames = tqdm(source, "ranges", hashed.count, unit=" frames", leave=False, disable=options.quiet)
        program, share = self._network.export_for_cpu(options.frame_size_hw, frames, options.calibration_method)
        exact = sorted(exact_layers(recipe))
        log.info(
            "INT8 for CPUs from %d frames of %s: %.1f %% of the layers' weights, %d layers stay FP32",
            *(hashed.count, options.calibration, 100 * share, len(exact)),
        )
        calibration = {**self._calibrated_on(hashed), "graph": CPU_GRAPH, "share_of_weights": round(share, 5)}
        return Program("int8", program.SerializeToString(), dict.fromkeys(exact, "fp32"), calibration)


def _log_step(step: Step) -> None:
    log.info(
        "INT8, %s: %.1f %% of the MACs in INT8, RMS logit error %.3f, IoU %.4f on the hardest calibration frames",
        *(step.what, 100 * step.share, step.result.noise, step.result.iou),
    )


def _log_recipe(recipe: Int8Recipe, frame_count: int, source: str) -> None:
    for name, layer in recipe.layers.items():
        if layer.exact:
            log.info(
                "%s: input channel(s) %s stay in FP16: outlier channels, or those that lose most in INT8",
                *(name, ", ".join(map(str, layer.exact))),
            )
    log.info(
        "INT8 calibrated on %d frames of %s: %d of %d layers, %.1f %% of the MACs",
        *(frame_count, source, len(recipe.layers), len(recipe.work), 100 * recipe.share),
    )
