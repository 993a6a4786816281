"""What a run is asked for. Only this leaves the command line; nothing else sees argparse."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pipeline.audit.rate import AuditRate
from pipeline.bundles.plan import BUILT_FROM_PROGRAM
from pipeline.drift.options import DriftOptions
from pipeline.engines.server_options import ServerOptions
from pipeline.flight.options import FlightOptions
from pipeline.page.options import PageOptions
from pipeline.quick_dataclass import dataclass
from pipeline.results.zone_options import ZoneOptions
from pipeline.sinks.options import SinkOptions
from pipeline.sources.options import Decode, LiveOptions

OnTruncated = Literal["auto", "keep", "refuse"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What computes the masks.

    Attributes:
        name: a bundle's folder, or the name of a published network.
        backend: a key of ``ENGINES``, or "auto".
        may_build: where the bundle has no plan for this GPU and its TensorRT, build it here, once.
        may_tune: where it is not known which backend and precision is the fastest here, find out, if the run is long enough.
        servers: that compute, for the backend that asks servers; None: there are none.
    """

    name: str = "u2netp"
    backend: str = "auto"
    may_build: bool = True
    may_tune: bool = True
    servers: ServerOptions | None = None

    @property
    def may_build_for_gpu(self) -> bool:
        """Whether the network may be compiled for the GPU that is here, where it is to be compiled."""
        return self.may_build and self.backend in ("auto", *BUILT_FROM_PROGRAM)


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """What becomes of masks before they are drawn.

    Attributes:
        smooth: steady over time: "off", "on", "strong", or "auto": on for live sources.
        fps: keep this rate in Hz on a slower engine: between its masks the last one is moved; None: every frame is computed.
        refine_edges: draw masks to the edges in the picture.
        compose: where the overlay is drawn: "host", "device", or "auto": by a GPU whose bundle can.
    """

    smooth: str = "auto"
    fps: float | None = None
    refine_edges: bool = False
    compose: str = "auto"


@dataclass(frozen=True, slots=True)
class LookOptions:
    """How masks are shown.

    Attributes:
        mode: a key of ``pipeline.render.modes.MODES``.
        alpha: strength of the colour, 0 to 1.
        threshold: probability from which a pixel counts, 0 to 1.
        palette: a name, a YAML file, or "#rrggbb,#rrggbb".
        background: behind "cutout" and "replace": "#rrggbb" or a picture's path; None: the mode's own.
        legend: draw the classes and the share of the picture that each covers.
        hud: draw rate, times and model.
    """

    mode: str = "overlay"
    alpha: float = 0.5
    threshold: float = 0.5
    palette: str = "default"
    background: str | None = None
    legend: bool = False
    hud: bool = False


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where views and masks go.

    Attributes:
        names: the outputs' strings, as ``open_sink`` takes them; "{source}" in one is the source's name.
        save: one more; "": named after the source; None: there is none.
        show: a window beside other outputs. Where there is no other, there is a window in any case.
        headless: never a window.
    """

    names: tuple[str, ...] = ()
    save: str | None = None
    show: bool = False
    headless: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One run of ``python -m pipeline``.

    Attributes:
        sources: their strings, as ``open_source`` takes them.
        model: what computes the masks.
        masks: what becomes of them.
        look: how they are shown.
        outputs: where they go.
        recording: what outputs may need beyond their names.
        zones: what is watched for events.
        live: how long cameras and streams are waited for.
        page: the page; None: there is none.
        audit: how often a frame is computed by the bundle's FP32 program too; "auto": once a minute of live sources, where that says
            something.
        flight: what is recorded of events; None: nothing is.
        decode: "cuda": by the GPU's decoder, from where the engine takes frames; "auto": as each source does it.
        drop_oldest: give the engine the newest frame and drop older ones; None: for live sources.
        on_truncated: of a file that is cut off, "keep" what came before under a name that says so, "refuse" it, or "auto": keep it
            from a minute on.
        memory_bytes: what the process may take; beyond it the source that takes it is given up. None: half of the machine.
        max_frames: end after so many frames of a source; None: with its last one.
        drift: whether frames are compared with those that the bundle was verified on.
        quiet: say nothing but warnings and errors.
        config: the YAML file that some of this is from; None: there is none.
        watch_model: take the model's bundle anew when its folder has changed.
        named: all of this by the options' names, to tell what has changed.
    """

    sources: tuple[str, ...]
    model: ModelOptions = ModelOptions()
    masks: MaskOptions = MaskOptions()
    look: LookOptions = LookOptions()
    outputs: OutputOptions = OutputOptions()
    recording: SinkOptions = field(default_factory=SinkOptions)
    zones: ZoneOptions = field(default_factory=ZoneOptions)
    live: LiveOptions = field(default_factory=LiveOptions)
    page: PageOptions | None = None
    audit: AuditRate = "auto"
    flight: FlightOptions | None = None
    decode: Decode = "auto"
    drop_oldest: bool | None = None
    max_frames: int | None = None
    memory_bytes: int | None = None
    drift: DriftOptions = field(default_factory=DriftOptions)
    on_truncated: OnTruncated = "auto"
    quiet: bool = False
    config: str | None = None
    watch_model: bool = False
    named: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reloads(self) -> bool:
        """Whether SIGHUP asks for a new look at these options: where a file holds them, for a service, and for a watched model."""
        is_service = "NOTIFY_SOCKET" in os.environ or os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
        return self.config is not None or self.watch_model or is_service
