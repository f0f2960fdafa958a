"""One run's folder: its files, each written whole, and the rule for what a folder that already exists means.

runs/<experiment>/<variant>/seed<k>/
    config.toml         every setting, resolved; written first
    metrics.jsonl       a line an epoch, and a last line when training is done
    adapter.safetensors the trained weights, adapter and head, of the best epoch
    adapter.json        the encoders with their digests, insertion, answers: what loading them needs
    predictions.jsonl   one line a test question
    result.json         accuracy by question type; written last: its presence says that the run is done
    checkpoint/         the state after the last epoch, while the run is not done
    error.txt           message and traceback of the last error, until the run goes on
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import tomli_w
from safetensors import SafetensorError

from ...cache.atomic_io import make_folder, write_file
from ...cache.file_locks import locked
from ...cache.format.spec import FieldDifference, differences
from ...errors import RunError, RunLockedError, SettingsError, StoreError
from ..config.experiment import Experiment, VariantSettings
from ..config.run_config import completed, experiment_from_config

RunStatus = Literal["new", "unfinished", "done"]


class RunFolder:
    """The files of one run.

    Args:
        path: runs/<experiment>/<variant>/seed<k>; it need not exist.

    >>> RunFolder("runs/exp/trimodal/seed9").status
    'new'
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def status(self) -> RunStatus:
        """How far the run is: "done" with a result, "unfinished" with a checkpoint to resume from, else "new"."""
        if self.done:
            return "done"
        old = self.checkpoint.with_name("checkpoint.old")  # left by a kill between two renames
        return "unfinished" if self.checkpoint.exists() or old.exists() else "new"

    @property
    def done(self) -> bool:
        """Whether the run has ended and written its result."""
        return (self.path / "result.json").is_file()

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoint; it exists only while the run is unfinished."""
        return self.path / "checkpoint"

    def prepare(self, config: Mapping[str, Any], *, resume: bool) -> RunStatus:
        """Take the folder for a run with this configuration: the one rule for runs that exist already.

        A new run is begun, whatever configuration its folder holds, since nothing was trained with that. An
        unfinished run goes on if its configuration is the same and `resume` is set. A finished run with the same
        configuration is left alone. A configuration that an earlier version wrote is compared with the settings that
        have come since at their defaults.

        Args:
            config: every setting of the run, as plain values (see `run_config`).
            resume: go on with an unfinished run.

        Returns:
            The run's status; the caller trains it unless it is "done".

        Raises:
            RunError: the folder holds an unfinished or finished run with other settings, or an unfinished one without
                `resume`.
        """
        status = self.status
        if status != "new":
            differing = self._differences(config)
            if differing:
                found = "; ".join(map(str, differing[:3]))
                raise RunError(
                    f"{self.path}: holds a run with other settings ({found}); rename the variant, or remove that folder"
                )
        if status == "unfinished" and not resume:
            raise RunError(f"{self.path}: holds an unfinished run; add --resume to go on, or remove that folder")
        if status != "done":
            with writing(self.path):
                make_folder(self.path)
            self._write("config.toml", tomli_w.dumps(dict(config)))
            self.error_file.unlink(missing_ok=True)
        return status

    def check_done(self) -> None:
        """Raise a RunError unless the run has ended."""
        if self.status != "done":
            found, how = ("an unfinished run", " --resume") if self.status == "unfinished" else ("no trained run", "")
            raise RunError(f"{self.path}: found {found}, expected a finished one; train it with talik adapt{how}")

    def _differences(self, config: Mapping[str, Any]) -> list[FieldDifference]:
        stored = self.config()
        found = differences(dict(config), stored)
        if found:
            with suppress(KeyError, SettingsError):  # then it is compared as it is
                found = differences(dict(config), completed(stored, base=self.base))
        return found

    @property
    def base(self) -> Path:
        """The folder that holds runs/<experiment>/<variant>/seed<k>; relative paths of the settings count from it."""
        parents = self.path.resolve().parents
        return parents[min(3, len(parents) - 1)]

    def config(self) -> dict[str, Any]:
        """Return the settings that the run was made with.

        Raises:
            RunError: config.toml is missing or not valid TOML.
        """
        try:
            return tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path}: no config.toml; expected a run's folder") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path / 'config.toml'}: not valid TOML: {error}") from None

    def experiment(self) -> tuple[Experiment, VariantSettings]:
        """Return the experiment that made the run, as far as the run needs it, and its variant.

        Raises:
            RunError: no run's folder, or a configuration with a part missing.
            SettingsError: a setting that is no longer known.
        """
        try:
            return experiment_from_config(self.config(), base=self.base)
        except KeyError as error:
            raise RunError(f"{self.path / 'config.toml'}: {error} is missing; expected a run's configuration") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes, on all machines that share the disk, from training this run or evaluating it.

        Raises:
            RunLockedError: another process is training it or evaluating it.
            RunError: the folder cannot be made, or its file system has no locks.
        """
        path = self.path / ".lock"
        with ExitStack() as stack:
            with writing(path):
                make_folder(self.path)
                stack.enter_context(
                    locked(
                        path,
                        lambda who: RunLockedError(
                            f"{self.path}: {who} is training this run or evaluating it; wait for it to end, or stop "
                            "it, and run again"
                        ),
                    )
                )
            yield

    @property
    def error_file(self) -> Path:
        """The message and traceback of the last error that ended the run, or an evaluation of it."""
        return self.path / "error.txt"

    def write_error(self, text: str) -> None:
        """Write `error_file`."""
        self._write(self.error_file.name, text)

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

    def _write(self, name: str, text: str) -> None:
        with writing(self.path / name):
            write_file(self.path / name, text.encode(errors="backslashreplace"))  # of half a surrogate JSON's escape


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, no permission) into a RunError that names the file."""
    try:
        yield
    except StoreError as error:
        raise RunError(str(error)) from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{path}: cannot be written ({reason}); what was finished is kept: free the disk and resume"
        ) from error
