"""An exported run stands alone, and goes to a model hub and back; a server of this machine speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tomli_w

import talik
from talik.adapt.evaluation.export_run import export_run
from talik.adapt.evaluation.hub import pull, push
from talik.errors import BackendError, RunError, SettingsError

MADE_EARLIER = Path(__file__).parents[1] / "data" / "made_by_3bc9310"
QUESTION = "is the square blue ?"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "experiment"
    shutil.copytree(MADE_EARLIER, folder)
    return folder


@pytest.fixture(scope="module")
def exported(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's export, where its experiment is no more."""
    found = export_run(experiment / "runs/exp/trimodal/seed0", tmp_path_factory.mktemp("exported") / "trimodal")
    experiment.rename(experiment.with_name("away"))
    return found


def test_it_answers_as_the_run_does(exported: Path, experiment: Path) -> None:
    away = experiment.with_name("away")
    asked = {"video": away / "data/clips/video.mp4", "question": QUESTION, "device": "cpu"}
    found = talik.predict(exported, **asked)
    assert found.answers == talik.predict(away / "runs/exp/trimodal/seed0", **asked).answers


def test_its_card_says_what_it_is(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    described = json.loads((exported / "adapter.json").read_text())
    assert card.startswith("---\nlibrary_name: talik\n")
    assert "base_model" not in card  # all three encoders are folders that went along
    assert all(encoder["digest"] in card for encoder in described["encoders"].values())
    result = json.loads((exported / "result.json").read_text())
    assert f"{100 * result['accuracy']:.2f} %" in card
    assert "talik adapt exp.toml --variant" in card


def test_what_is_no_finished_run_is_refused(experiment: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a finished one"):
        export_run(experiment.with_name("away") / "runs/exp/trimodal/seed1", tmp_path / "out")
    with pytest.raises(SettingsError, match="is there already"):
        export_run(experiment.with_name("away") / "runs/exp/trimodal/seed0", exported)
    assert not list(tmp_path.iterdir())


class Hub(BaseHTTPRequestHandler):
    """Enough of a hub: repositories are made, files committed, listed and downloaded."""

    files: dict[str, bytes]
    sha = "0" * 40

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/lab/trimodal"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            named = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self._answer({"files": named})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/lab/trimodal/commit/0",
                    "commitOid": self.sha,
                    "success": True,
                }
            )
        else:
            self._answer({"error": "no such place"}, 404)

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/lab/trimodal/tree/{self.sha}"):
            files = self.files.items()
            self._answer([{"type": "file", "path": n, "size": len(c), "oid": self.sha} for n, c in files])
            return
        if self.path.startswith("/api/models/lab/trimodal"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            self._answer({"id": "lab/trimodal", "modelId": "lab/trimodal", "sha": self.sha, "siblings": siblings})
            return
        name = self.path.partition(f"/resolve/{self.sha}/")[2]
        if name not in self.files:
            self._answer({"error": "no such repository"}, 404)
            return
        content = self.files[name]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(content, "application/octet-stream", ETag=etag, X_Repo_Commit=self.sha)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Hub, "files", {}, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_it_goes_to_a_hub_and_back(exported: Path, hub: str, tmp_path: Path) -> None:
    push(exported, "lab/trimodal", endpoint=hub)
    found = pull("lab/trimodal", tmp_path / "back", endpoint=hub)
    there, here = (
        {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (exported, found)
    )
    assert there == {name: content for name, content in here.items() if name != ".gitattributes"}


def test_code_is_not_taken_without_a_word(exported: Path, hub: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    settings = (other / "config.toml").read_text()
    (other / "config.toml").write_text(tomli_w.dumps({"import": ["mine.py"]}) + settings)
    push(other, "lab/trimodal", endpoint=hub)
    with pytest.raises(SettingsError, match=r"lab/trimodal: brings code of its own \(mine\.py\)"):
        pull("lab/trimodal", tmp_path / "back", endpoint=hub)
    assert not (tmp_path / "back").exists()
    assert pull("lab/trimodal", tmp_path / "back", trust_code=True, endpoint=hub).is_dir()


def test_what_a_hub_refuses_is_one_line(exported: Path, hub: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"^lab/absent: the hub says: ") as caught:
        pull("lab/absent", tmp_path / "back", endpoint=hub)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"no export\.json; expected a folder that talik export wrote"):
        push(tmp_path, "lab/trimodal", endpoint=hub)
    with pytest.raises(RunError, match=r"lab/trimodal: no export\.json in it"):
        pull("lab/trimodal", tmp_path / "back", endpoint=hub)
