"""Actors by Ray: how they are started, called, waited for and replaced. All that depends on Ray's own calls is here."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedsim.base.devices import cores
from fedsim.base.errors import HostError, SettingError
from fedsim.engines.actor import Actor, versions

INSTALL = "pip install 'fedsim-flower[ray]'"
PATIENCE = 300.0  # seconds until an actor has started
ANSWER = 3.0  # seconds for a head to take a connection
STORE = 1 << 30  # bytes of the object store of an own instance, at most


class Paths(list[str]):
    """Where actors look for modules first: Ray would add the working folder, whose files then come before Python's own."""

    def extend(self, more: Iterable[str]) -> None:
        """No more than there are."""


class LostError(Exception):
    """An actor, or what it had made, is gone."""


def check(actors: int, threads: int, gpus: float, address: str) -> str:
    """What can be said before anything is started; the address of the cluster, "" for an own one. Raises SettingError."""
    if sys.modules.get("ray", True) is None or find_spec("ray") is None:
        raise SettingError("engine.name", f"`ray` needs Ray, which is not installed here: {INSTALL}")
    address = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if address in ("", "local"):
        if actors * threads > cores():
            what = f"{actors} actors" if threads == 1 else f"{actors} actors of {threads} threads"
            raise SettingError("engine.actors", f"{what}, and this machine has {cores()} cores; `engine.address` names a cluster")
        _enough_gpus(actors, gpus, torch.cuda.device_count(), "this machine")
        return ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SettingError("engine.address", f"{address!r}: HOST:PORT of a Ray head is due, `local`, or `auto`")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except OSError as error:
        raise SettingError("engine.address", _silent(address, str(error.strerror or error))) from error
    if not os.environ.get("RAY_USE_TLS", "0").strip("0"):
        _speaks(address)
    return address


def _silent(address: str, why: str) -> str:
    return f"no Ray answers at {address} ({why}); on the head, `ray start --head --port {address.rpartition(':')[2]}`"


def _speaks(address: str) -> None:
    """Ray's own first call would wait for minutes. Raises SettingError where whoever listens is no gRPC server."""
    import grpc

    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(ANSWER)
    except grpc.FutureTimeoutError as error:
        raise SettingError("engine.address", _silent(address, "what listens there does not speak gRPC")) from error
    finally:
        channel.close()


def join(address: str, actors: int, threads: int, gpus: float) -> None:
    """Connects this process to a cluster, or starts one of its own on the loopback. Raises SettingError where that can't be."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # nothing of it listens elsewhere than on the loopback
    import ray

    if not ray.is_initialized():
        house = Path(__file__).parents[2]
        job = ray.job_config.JobConfig()
        job._py_driver_sys_path = Paths([] if house.name.endswith("-packages") else [str(house)])
        quiet: Any = {"log_to_driver": False, "logging_level": logging.CRITICAL, "job_config": job}
        try:
            with _own_signals():
                if address:
                    ray.init(address=address, **quiet)
                else:
                    ray.init(
                        address="local",
                        num_cpus=1,  # of which the actors need none: `check` has counted the cores
                        include_dashboard=False,
                        object_store_memory=_store(),
                        **quiet,
                    )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise SettingError("engine.address", _refused(address, error)) from error
    there = ray.cluster_resources()
    _enough_gpus(actors, gpus, there.get("GPU", 0), "the cluster" if address else "this machine, says Ray,")
    if address and there.get("CPU", 0) < actors * threads:
        raise SettingError("engine.actors", f"{actors * threads} cores are due, and the cluster has {there.get('CPU', 0):g}")


def _enough_gpus(actors: int, gpus: float, there: float, where: str) -> None:
    each = max(1, int(1 / gpus)) if gpus else 0  # actors that share one
    if gpus and there < (-(-actors // each) if gpus <= 1 else gpus * actors):
        raise SettingError("engine.gpus", f"{actors} actors with {gpus:g} GPUs each, and {where} has {there:g} GPUs")


def _store() -> int:
    from fedsim.base.memory import free_memory

    return max(80 << 20, min(STORE, free_memory() // 4))


def _refused(address: str, error: Exception) -> str:
    """Why a cluster could not be joined, in a line."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = str(causes[-1])
    if "ersion mismatch" in text or "started with" in text:
        mine = versions()
        found = [" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))][:2]
        return (
            f"the head at {address} has {', '.join(found).replace(':', '')}, and this process Ray {mine['ray']}, Python {mine['Python']}; "
            "they must be the same everywhere"
        )
    where = f"Ray at {address} can't be joined" if address else "Ray can't be started here"
    return f"{where}: {text.strip().splitlines()[0] if text.strip() else type(error).__name__}"


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; what a run does with it stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class Troupe:
    """Actors that stay from run to run, for starting one takes seconds; of them `count` are at work."""

    idle: ClassVar[list["Troupe"]] = []

    def __init__(self, address: str, threads: int, gpus: float) -> None:
        self.kind = (address, threads, gpus)
        self.count, self.hosts = 0, list[str]()
        self.actors: list[Any] = []

    @classmethod
    def of(cls, count: int, address: str, threads: int, gpus: float) -> "Troupe":
        """One with so many actors, all alive, that nobody else uses. Raises SettingError where they can't be had."""
        join(address, count, threads, gpus)
        known = [troupe for troupe in cls.idle if troupe.kind == (address, threads, gpus)]
        if not known:
            for troupe in cls.idle:  # they hold what this one needs
                troupe.end()
            cls.idle.clear()
        troupe = known[0] if known else cls(address, threads, gpus)
        if known:
            cls.idle.remove(troupe)
        troupe.count = count  # more of them may rest
        troupe.actors[:count] = [actor if troupe._alive(actor) else troupe._new() for actor in troupe.actors[:count]]
        troupe.actors += [troupe._new() for _ in range(count - len(troupe.actors))]
        troupe.hosts = [troupe._greeted(place) for place in range(count)]
        return troupe

    def release(self) -> None:
        """Another run may use it."""
        import ray

        if ray.is_initialized():
            for place in range(self.count):
                self.call(place, "rest")
            Troupe.idle.append(self)

    def end(self) -> None:
        """Ends all of them."""
        import ray

        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def _new(self) -> Any:
        import ray

        address, threads, gpus = self.kind
        options: dict[str, Any] = {"num_cpus": threads if address else 0, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        if address:
            options["scheduling_strategy"] = "SPREAD"
        return ray.remote(Actor).options(**options).remote()

    def _alive(self, actor: Any) -> bool:
        try:
            self.get(actor.hello.remote(), ANSWER)
        except HostError:
            return True  # it is only slow
        except LostError:
            return False
        return True

    def _greeted(self, place: int) -> str:
        """The actor's machine. Raises SettingError where something there has another version, HostError where it doesn't start."""
        try:
            theirs, host, _ = self.get(self.actors[place].hello.remote())
        except LostError as error:
            raise HostError(f"an actor of Ray did not start: {error}") from error
        mine = versions()
        if wrong := [f"{name} {theirs[name]}" for name in mine if theirs[name] != mine[name]]:
            here = ", ".join(f"{name} {mine[name]}" for name in mine if theirs[name] != mine[name])
            raise SettingError("engine.address", f"the machine {host} has {', '.join(wrong)}, and this process {here}")
        return str(host)

    def replace(self, place: int) -> None:
        """Another actor takes the place of one that is gone; it starts while others work."""
        import ray

        ray.kill(self.actors[place])
        self.actors[place] = self._new()

    def call(self, place: int, method: str, *words: Any) -> Any:
        """Asks an actor for something; where its answer will be."""
        return getattr(self.actors[place], method).remote(*words)

    def put(self, value: Any) -> Any:
        """Into the object store: it goes once to each machine that asks for it."""
        import ray

        return ray.put(value)

    def get(self, answer: Any, seconds: float | None = PATIENCE) -> Any:
        """Waits for an answer. Raises LostError where it never comes, HostError where it takes too long."""
        import ray

        try:
            return ray.get(answer, timeout=seconds)
        except ray.exceptions.GetTimeoutError as error:
            raise HostError(f"Ray: no answer within {seconds} s; has the cluster room for all actors?") from error
        except ray.exceptions.RayTaskError as error:
            raise LostError(str(error).strip().splitlines()[-1]) from error
        except (ray.exceptions.RayError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise LostError(lines[-1 if getattr(error, "_actor_init_failed", False) else 0].strip()) from error

    def ready(self, answers: Iterable[Any], seconds: float | None = None) -> Sequence[Any]:
        """Those of some answers that have come; waits for one, at most so long."""
        import ray

        listed = list(answers)
        if not listed:
            return []
        found, _ = ray.wait(listed, num_returns=1 if seconds != 0 else len(listed), timeout=seconds, fetch_local=True)
        return list(found)
