"""The table [engine]: who runs extraction and sweeps, and what each worker is given."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, Literal, get_args

from ...cache.cores import available_cores
from ...config import Amount, Count, Positive, settings_class
from ...errors import SettingsError, unknown_name

Kind = Literal["local", "ray", "submitit"]


@settings_class
class EngineSettings:
    """Executor of extraction and sweeps, and the resources of its workers.

    Args:
        kind: "local", this machine; "ray", a Ray cluster; "submitit", an array job of Slurm.
        jobs: workers. Local: 1 by default, which is this process itself, but extraction on CUDA takes one for each GPU;
            several are processes, each with its own GPU where the device is CUDA. Ray: as many as the cluster has room
            for by default, nodes that join included. submitit: elements of the array, 8 by default.
        address: of the Ray cluster ("auto", "HOST:PORT", "ray://HOST:PORT"); for submitit its executor, "slurm" by
            default, or "local", processes of this machine.
        memory_gb: local: what all workers together may use, in 10^9 bytes; what would exceed it waits. Ray and Slurm:
            what each worker asks for.
        threads: CPU threads of a worker, and the CPUs that it asks a cluster for; by default torch's own for this
            process itself, this machine's CPUs divided by the jobs for its workers, and 1 on a cluster. States and runs
            are bit-equal at the same number only.
        gpus: GPUs that each worker asks a cluster for; by default 1 where the device is CUDA. A fraction lets workers
            share one under Ray.
        attempts: how often a task is begun before it counts as failed, when workers are lost on it.
        slurm: more resources to request of Slurm, under submitit's names: partition, account, qos, time (minutes),
            constraint, additional_parameters, …
        folder: where submitit keeps its logs, relative to the experiment's file.
    """

    kind: Kind = "local"
    jobs: Count | None = None
    address: str | None = None
    memory_gb: Positive | None = None
    threads: Count | None = None
    gpus: Amount | None = None
    attempts: Count = 3
    slurm: dict[str, Any] = field(default_factory=dict)
    folder: str = "engine"

    def __post_init__(self) -> None:
        if self.address is not None and self.kind == "local":
            raise SettingsError(f"address: found {self.address!r}, but the local engine has none; remove the key")
        if self.slurm and self.kind != "submitit":
            raise SettingsError(f'slurm: is for kind = "submitit"; found kind = {self.kind!r}')

    @property
    def in_process(self) -> bool:
        """Whether the work is done by this process itself."""
        return self.kind == "local" and (self.jobs or 1) == 1 and self.memory_gb is None

    @property
    def is_local(self) -> bool:
        """Whether all workers are on this machine."""
        return self.kind == "local"

    @property
    def memory_bytes(self) -> int | None:
        """`memory_gb` in bytes."""
        return None if self.memory_gb is None else int(self.memory_gb * 10**9)

    @property
    def num_threads(self) -> int:
        """CPU threads of each worker that is another process."""
        if self.threads is not None:
            return self.threads
        return max(1, available_cores() // (self.jobs or 1)) if self.kind == "local" else 1

    def gpus_of(self, device: str) -> float:
        """GPUs of each worker on a cluster."""
        if self.gpus is not None:
            return self.gpus
        return 1.0 if device.partition(":")[0] == "cuda" else 0.0


def with_engine(settings: EngineSettings, engine: str | None, jobs: int | None) -> EngineSettings:
    """Return the settings with what a command line changes.

    Args:
        settings: of the experiment.
        engine: "KIND" or "KIND:ADDRESS"; another kind than the experiment's leaves its address and Slurm's table out.
        jobs: workers.

    Raises:
        SettingsError: an unknown kind; an address where there is none.
    """
    if engine is not None:
        kind, _, address = engine.partition(":")
        if kind not in get_args(Kind):
            raise SettingsError(f"--engine: {unknown_name('engine', kind, get_args(Kind))}")
        if kind != settings.kind:
            settings = dataclasses.replace(settings, kind=kind, address=None, slurm={}, jobs=None)  # type: ignore[arg-type]
        if address:
            settings = dataclasses.replace(settings, address=address)
    return settings if jobs is None else dataclasses.replace(settings, jobs=jobs)
