"""One run's folder: its files, each written whole, and the rule for what a folder that already exists means.

runs/<experiment>/<variant>/seed<k>/
    config.toml         every setting, resolved; written first
    data.json           what it was trained on: digests of annotations, clips, states, encoders; the classes in order
    metrics.jsonl       a line an epoch, and a last line when training is done
    adapter.safetensors the trained weights, adapter and head, of the best epoch
    adapter.json        the encoders with their digests, insertion, answers: what loading them needs
    predictions.jsonl   one line a test question
    result.json         accuracy by question type; written last: its presence says that the run is done
    checkpoint/         the state after the last epoch, or in the middle of one, while the run is not done
    error.txt           message and traceback of the last error, until the run goes on
    search.json         the grid's or random search's values of this run's variant
    stop.json           a request to end the run after the epoch in hand
    stopped.json        who ended the run early, when and why, until it goes on
    retrain/            a run that is trained in place of this one, while it is not done
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import tomli_w
from safetensors import SafetensorError

from ...cache.atomic_io import is_temporary, make_folder, sync_folder, write_file
from ...cache.file_locks import locked
from ...cache.format.spec import FieldDifference
from ...errors import RunDiffersError, RunError, RunLockedError, StoreError
from ..config.experiment import Experiment, VariantSettings, load_experiment
from ..config.run_config import config_differences, data_tables, experiment_from_config, with_places
from .run_data import RunData, data_differences, without_scored

RunStatus = Literal["new", "unfinished", "done"]
RunOutcome = Literal["kept", "resumed", "trained", "trained anew"]
EXPORTED = "export.json"  # in a folder that `talik export` wrote; paths of its settings count from itself
_WAYS_ON = "rename the variant, or train it anew with --retrain"


class RunFolder:
    """The files of one run.

    Args:
        path: runs/<experiment>/<variant>/seed<k>; it need not exist.
        replaces: the run whose place this one takes when it is done.

    >>> RunFolder("runs/exp/trimodal/seed9").status
    'new'
    """

    def __init__(self, path: Path | str, *, replaces: RunFolder | None = None) -> None:
        self.path = Path(path)
        self._replaces = replaces

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

    def prepare(self, config: Mapping[str, Any]) -> RunStatus:
        """Take the folder for a run with this configuration: the one rule for runs that exist already.

        A new run is begun, whatever configuration its folder holds, since nothing was trained with that. An
        unfinished run goes on if its configuration is the same. A finished run with the same configuration is left
        alone. A configuration that an earlier version wrote is compared with the settings that
        have come since at their defaults.

        Args:
            config: every setting of the run, as plain values (see `run_config`).

        Returns:
            The run's status; the caller trains it unless it is "done".

        Raises:
            RunDiffersError: the folder holds an unfinished or finished run with other settings.
        """
        status = self.status
        if status != "new":
            differing = self.differences(config)
            if differing:
                found = "; ".join(map(str, differing[:3])) + ("; …" if len(differing) > 3 else "")
                raise RunDiffersError(f"{self.path}: holds {self._what} run with other settings ({found}); {_WAYS_ON}")
        if status == "new":
            with writing(self.path):
                make_folder(self.path)
                (self.path / "data.json").unlink(missing_ok=True)  # of a run that failed before its first checkpoint
        if status != "done":
            self._write("config.toml", tomli_w.dumps(dict(config)))
            self.error_file.unlink(missing_ok=True)
        return status

    @property
    def _what(self) -> str:
        return "a finished" if self.done else "an unfinished"

    def check_done(self) -> None:
        """Raise a RunError unless the run has ended."""
        if self.status != "done":
            found = "an unfinished run" if self.status == "unfinished" else "no trained run"
            raise RunError(f"{self.path}: found {found}, expected a finished one; train it with talik adapt")

    def differences(self, config: Mapping[str, Any]) -> list[FieldDifference]:
        """Return the settings in which the folder's run differs from a configuration.

        Where its data are recorded, they are compared in place of the settings that say where they lie.
        """
        data = self.data()
        places = data is None or not data.complete
        return config_differences(config, self.config(), base=self.base, places=places)

    def data(self) -> RunData | None:
        """Return what the run was trained on, as far as its folder says; None of one that nothing is known of.

        A finished run of a version that recorded no data knows its encoders and its classes.

        Raises:
            RunError: a malformed file.
        """
        if (self.path / "data.json").is_file():
            return RunData.from_json(self.read_json("data.json"), where=str(self.path / "data.json"))
        if not (self.path / "adapter.json").is_file():
            return None
        described = self.read_json("adapter.json")
        try:
            digests = {m: str(e["digest"]) for m, e in described["encoders"].items()}
            return RunData(answers=tuple(described["answers"]), encoders=digests, complete=False)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.path / 'adapter.json'}: {json.dumps(str(error))} is missing or malformed") from None

    def check_data(
        self, now: RunData, then: RunData, *, new_questions: bool = True, stored: Collection[str] = ()
    ) -> None:
        """Raise a RunDiffersError, with what differs in numbers, unless the run's data are those of today.

        Args:
            now, then, new_questions, stored: see `data_differences`.
        """
        found = data_differences(now, then, new_questions=new_questions, stored=stored)
        if not found:
            return
        differing, trained = "; ".join(found), (without_scored(now), without_scored(then))
        scored = ""
        if self.done and not data_differences(*trained, new_questions=new_questions, stored=stored):
            scored = f"; nothing that was trained on differs: talik evaluate --split {then.scored} scores the run anew"
        raise RunDiffersError(
            f"{self.path}: holds {self._what} run on other data (what differs: {differing}); {_WAYS_ON}{scored}"
        )

    # training in place of a run

    @property
    def retraining(self) -> RunFolder:
        """The folder of a run that is trained in place of this one; see `take_place`."""
        return RunFolder(self.path / "retrain", replaces=self)

    @property
    def replaces_another(self) -> bool:
        """Whether the run takes the place of another one when it is done."""
        return self._replaces is not None

    def to_retrain(self, config: Mapping[str, Any], *, resume: bool) -> RunFolder:
        """Return the folder to train in when whatever this one holds is to be trained anew: itself if that is nothing.

        Args:
            config: every setting of the new run.
            resume: leave an interrupted training of these settings where it is, to go on with it.
        """
        again = self.retraining
        if not (resume and self.status != "new" and again.status == "unfinished" and not again.differences(config)):
            again.clear()
        return self if self.status == "new" else again

    @property
    def retrained(self) -> RunFolder:
        """The folder that another process chose by `to_retrain`."""
        return self.retraining if self.retraining.path.is_dir() else self

    def clear(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def take_place(self) -> None:
        """Put a finished run in the place of the one that it was trained to replace, whose files are removed.

        A kill leaves the old run, or what the next call of `RunFolder.settle` completes. Nothing is done to a run that
        replaces none.
        """
        if self._replaces is None:
            return
        own, target = self.path, self._replaces.path
        with writing(target):
            if (own / "config.toml").is_file():  # it moves first: as long as it is here, nothing has moved
                (target / "result.json").unlink(missing_ok=True)
                for entry in target.iterdir():
                    if entry not in (own, target / ".lock"):
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for entry in sorted(own.iterdir(), key=lambda e: (e.name == "result.json", e.name != "config.toml")):
                if not is_temporary(entry.name):
                    os.replace(entry, target / entry.name)
                    sync_folder(target)
            shutil.rmtree(own)
        self.path, self._replaces = target, None

    def settle(self) -> None:
        """Complete what a killed `take_place` began; the folder's lock is held."""
        if self.retraining.done:
            self.retraining.take_place()

    @property
    def base(self) -> Path:
        """The folder that relative paths of the settings count from.

        It is the one that holds runs/<experiment>/<variant>/seed<k>. Of a folder that was moved or copied away from its
        data it is the one that was recorded, if more of what the settings name is there.
        """
        if self._replaces is not None:
            return self._replaces.base
        if (self.path / EXPORTED).is_file():
            return self.path.resolve()
        parents = self.path.resolve().parents
        around = parents[min(3, len(parents) - 1)]
        recorded = self._recorded_base()
        if recorded in (None, around):
            return around
        return max((around, recorded), key=self._num_places_at)

    def _recorded_base(self) -> Path | None:
        try:
            base = self.read_json("data.json").get("base")
        except RunError:
            return None
        return Path(base) if isinstance(base, str) and base else None

    def _num_places_at(self, base: Path) -> int:
        """Count which of data set and store lie where the settings say, counted from `base`."""
        try:
            config = self.config()
            places = [config["data"]["root"], config["store"]["path"]]
            return sum((base / Path(place).expanduser()).exists() for place in places)
        except (RunError, KeyError, TypeError, OSError):
            return 0

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

    def experiment(self, *, places: Path | str | None = None) -> tuple[Experiment, VariantSettings]:
        """Return the experiment that made the run, as far as the run needs it, and its variant.

        Args:
            places: an experiment's file that says where the data set, the encoders and the store lie now.

        Raises:
            RunError: no run's folder, or a configuration with a part missing.
            SettingsError: a setting that is no longer known.
        """
        try:
            if places is None:
                return experiment_from_config(self.config(), base=self.base)
            now, config = load_experiment(places), self.config()
            return experiment_from_config(with_places(config, data_tables(now, config["variant"])), base=now.base)
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

    def epochs(self) -> list[dict[str, Any]]:
        """Return the lines that metrics.jsonl has of the epochs so far; [] where it is not there or not readable."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            found = [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError):
            return []
        return [line for line in found if isinstance(line, dict) and line.get("event") == "epoch"]

    @property
    def num_epochs(self) -> int:
        """The number of epochs that are done, as far as `epochs` tells."""
        return max((int(line.get("epoch", 0)) for line in self.epochs()), default=0)

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
