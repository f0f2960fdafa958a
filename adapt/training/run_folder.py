"""One run's folder: its resolved settings, metrics, predictions, trained weights and checkpoint, each written whole.

runs/<experiment>/<variant>/seed<k>/
    config.toml         every setting, resolved; written first
    metrics.jsonl       a line an epoch, and a last line when training is done
    adapter.safetensors the trained weights, adapter and head, of the best epoch
    adapter.json        the encoders with their digests, insertion, answers: what loading them needs
    predictions.jsonl   one line a test question
    result.json         accuracy by question type; written last: its presence says that the run is done
    checkpoint/         the state after the last epoch, while the run is not done
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError

from ...cache.write.locks import take
from ...errors import RunError, RunLockedError


class RunFolder:
    """The files of one run.

    Args:
        path: runs/<experiment>/<variant>/seed<k>.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def done(self) -> bool:
        """Whether the run has ended and its result is there."""
        return (self.path / "result.json").is_file()

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoint; absent when there is none."""
        return self.path / "checkpoint"

    def config(self) -> dict[str, Any]:
        """The settings that the run was made with."""
        try:
            return tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path}: no config.toml; expected a run's folder") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path / 'config.toml'}: not valid TOML: {error}") from None

    def begin(
        self,
        config: Mapping[str, Any],
        *,
        resume: bool,
        older: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config,
    ) -> None:
        """Claim the folder for a run with this configuration.

        Args:
            config: every setting, as plain values.
            resume: go on with an unfinished run.
            older: completes a configuration that an earlier version wrote.

        Raises:
            RunError: the folder holds a run with other settings, or an unfinished one and `resume` is not asked for.
        """
        if (self.path / "config.toml").exists():
            there = self.config()
            differs = _differences(there, dict(config)) and _differences(dict(older(there)), dict(config))
            if differs:
                raise RunError(
                    f"{self.path}: holds a run with other settings ({'; '.join(differs[:3])}); rename the variant, "
                    "or remove that folder"
                )
            if not self.done and self.checkpoint.exists() and not resume:
                raise RunError(f"{self.path}: holds an unfinished run; add --resume to go on, or remove that folder")
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._write("config.toml", tomli_w.dumps(dict(config)))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process, on all machines that share the disk, that trains this run; the kernel sees to its end.

        Raises:
            RunLockedError: another is.
        """
        path = self.path / ".lock"
        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = take(
                path,
                lambda who: RunLockedError(
                    f"{self.path}: {who} is training this run; wait for it to end, or stop it, and run again"
                ),
            )
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def result(self) -> dict[str, Any]:
        """The finished run's result."""
        return self.read_json("result.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files."""
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path}: no {name}; the run is not finished, or this is not a run's folder") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path / name}: not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise RunError(f"{self.path / name}: expected a JSON object")
        return value

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one JSON file whole."""
        self._write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSON-lines file whole."""
        self._write(name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def clear_checkpoint(self) -> None:
        """Remove the checkpoint; a finished run needs none."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        with writing(self.path / name):
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / name)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, no permission) into a RunError that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{path}: cannot be written ({reason}); what was finished is kept: free the disk and resume"
        ) from error


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} asked for"]
