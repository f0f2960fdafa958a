"""Exported runs on a model hub: `push` uploads what `talik export` wrote, `pull` downloads it and looks what it is.

The extra `hub` installs huggingface_hub; its environment variables (HF_ENDPOINT, HF_TOKEN) say where and as whom.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.atomic_io import new_folder
from ...errors import BackendError, RunError, SettingsError
from ..training.run_folder import EXPORTED

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push(export: Path | str, repo: str, *, private: bool = False, endpoint: str | None = None) -> str:
    """Upload a folder that `talik export` wrote to a repository, which is made if it is not there.

    Args:
        export: the folder.
        repo: "NAME/REPOSITORY".
        private: make a new repository private.
        endpoint: the hub's address; by default huggingface_hub's own, or the environment variable HF_ENDPOINT.

    Returns:
        The address of the commit.

    Raises:
        RunError: not a folder that `talik export` wrote.
        BackendError: huggingface_hub is not installed, or the hub refuses or does not answer.
    """
    export = Path(export)
    if not (export / EXPORTED).is_file():
        raise RunError(f"{export}: no {EXPORTED}; expected a folder that talik export wrote")
    with _said(repo):
        api = _api(endpoint)
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=export, commit_message="An adapter trained with talik"))


def pull(
    repo: str, out: Path | str, *, revision: str | None = None, trust_code: bool = False, endpoint: str | None = None
) -> Path:
    """Download an exported run.

    Args:
        repo: "NAME/REPOSITORY".
        out: a folder that is not there yet.
        revision: a branch, tag or commit; the newest by default.
        trust_code: take a run that brings code of its own, which `talik predict` would execute.
        endpoint: the hub's address; by default huggingface_hub's own, or the environment variable HF_ENDPOINT.

    Returns:
        `out`.

    Raises:
        SettingsError: `out` is there already, or the run brings code of its own without `trust_code`.
        RunError: the repository holds no exported run.
        BackendError: huggingface_hub is not installed, or the hub refuses or does not answer.
    """
    out = Path(out)
    with new_folder(out) as folder:
        with _said(repo):
            _api(endpoint).snapshot_download(repo, revision=revision, local_dir=folder)
        _check(repo, folder, trust_code=trust_code)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's own notes
    return out


def _check(repo: str, folder: Path, *, trust_code: bool) -> None:
    config = folder / "config.toml"
    if not (folder / EXPORTED).is_file() or not config.is_file():
        raise RunError(f"{repo}: no {EXPORTED} in it; expected a run that talik export wrote")
    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{repo}: config.toml: not valid TOML: {error}") from None
    code = [str(name) for name in settings.get("import", ())]
    encoders: dict[str, Any] = settings.get("encoders", {})
    code += [f"the {m} encoder's own" for m, one in encoders.items() if one.get("trust_remote_code")]
    if code and not trust_code:
        raise SettingsError(
            f"{repo}: brings code of its own ({', '.join(code)}), which would be executed; read it on the hub, then "
            "pull it with --trust-code"
        )


def _api(endpoint: str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint)


@contextmanager
def _said(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that names the repository."""
    try:
        yield
    except ImportError:
        raise BackendError("huggingface_hub is not installed; pip install 'talik[hub]'") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BackendError(f"{repo}: the hub says: {reason[:300]}") from None
