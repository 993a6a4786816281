"""A corpus on Ray Data: a pool of actors with a child process and an engine each. Nothing else knows Ray.

Ray gives a unit to another actor when one dies with its machine, and what the first one had written is found there. A source that
ends its process ends the actor's child alone: Ray would start an actor that dies again and again without an end.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from pipeline.corpus.crew import Crew, Result
from pipeline.corpus.job import Job
from pipeline.corpus.listing import Entry
from pipeline.errors import BackendUnavailableError, EdgemaskError, OptionError
from pipeline.own_process import HOME
from pipeline.terminal import logger_of

log = logger_of(__name__)

_REACHED_WITHIN_S = 10.0


def results(job: Job, units: Iterator[Sequence[Entry]], address: str, workers: int | None) -> Iterator[Result]:
    """Do the units of a corpus on Ray.

    Args:
        job: what to do; model, sources and output are on a disk that all nodes see.
        units: each a video or some pictures.
        address: the cluster's, "auto" for the one that this machine is a node of; "": that of ``RAY_ADDRESS``, else a cluster of this
            machine alone, for this run.
        workers: actors; None: one for each GPU, or for each node where there are none.

    Yields:
        A result for each source; those of a unit come together.

    Raises:
        BackendUnavailableError: there is no such cluster, or it cannot go on.
        EdgemaskError: a worker cannot begin.
    """
    with _cluster(address):
        count, resources = _share(workers)
        log.info(f"on Ray: {len(_nodes())} nodes, {count} workers")
        # A unit is a block, and a block is a task: what is lost with a machine is a unit.
        packed = [{"unit": pickle.dumps(list(unit))} for unit in units]
        done = ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
            _Actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            **resources,
        )
        try:
            for row in done.iter_rows():
                result: Result = pickle.loads(row["result"])
                yield result
        except RayTaskError as error:
            if isinstance(error.cause, EdgemaskError):
                raise error.cause from None
            raise
        except RayError as error:
            raise BackendUnavailableError(f"--on ray: the cluster cannot go on ({_line(error)})") from error


class _Actor:
    """Lives in a process of Ray's."""

    def __init__(self, job: Job) -> None:
        context = ray.get_runtime_context()
        self._crew = Crew(job, name=f"node {context.get_node_id()[:8]}, worker {os.getpid()}")

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for result in self._crew(map(pickle.loads, batch["unit"])):
            yield {"result": [pickle.dumps(result)]}  # Arrow's texts are UTF-8, and not all names of files are


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Within the body this process is a driver."""
    # Without an address Ray would join any cluster that runs on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("auto", "local"):
        _check_reached(address)
    ended_by = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it says of restarts is no matter here
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    env_vars = {"PYTHONPATH": os.pathsep.join(filter(None, (HOME, os.environ.get("PYTHONPATH"))))}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, runtime_env={"env_vars": env_vars})
    except Exception as error:  # Ray raises that itself where a machine is too slow for its cluster
        where = "ray" if address == "local" else f"ray:{address}"
        raise BackendUnavailableError(f"--on {where}: expected a Ray cluster, got none ({_line(error)})") from error
    finally:
        for number, before in ended_by.items():  # Ray takes them
            signal.signal(number, before)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its file keeps all
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reached(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise OptionError(f"--on ray:{address}: expected ray:HOST:PORT, such as ray:10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), _REACHED_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise BackendUnavailableError(
            f"--on ray:{address}: expected a Ray cluster there, got none ({error}): start it with: ray start --head"
        ) from error


def _nodes() -> list[dict[str, Any]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _share(workers: int | None) -> tuple[int, dict[str, float]]:
    """How many workers there are, and what of the cluster is each one's: GPUs where there are any, else cores."""
    nodes = _nodes()
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    count = workers or int(gpus) or len(nodes)
    if gpus:
        return count, {"num_gpus": min(1.0, gpus / count)}
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    return count, {"num_cpus": max(1.0, min([*cores, sum(cores) // count]))}


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
