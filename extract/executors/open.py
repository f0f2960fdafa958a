"""Choose the executor that an experiment's [engine] table names."""

from __future__ import annotations

from pathlib import Path

from .base import Executor, InProcessExecutor
from .settings import EngineSettings


def open_executor(settings: EngineSettings, *, device: str, base: Path) -> Executor:
    """Return the executor that the settings name.

    Args:
        settings: of the experiment.
        device: that the work is for; workers are given GPUs where it is CUDA.
        base: the folder that the settings' paths count from.

    Raises:
        BackendError: a package that it needs is not installed, or no cluster is there.
    """
    if settings.in_process:
        return InProcessExecutor()
    if settings.kind == "local":
        from .local import LocalExecutor

        return LocalExecutor(settings, device=device)
    if settings.kind == "ray":
        from .ray import RayExecutor

        return RayExecutor(settings, device=device)
    from .slurm import SlurmExecutor

    return SlurmExecutor(settings, device=device, folder=base / settings.folder)
