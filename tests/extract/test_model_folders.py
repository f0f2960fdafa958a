"""Folders of models and weights count from the experiment's file; what is not there is said without asking a hub."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

import talik
from talik.errors import EncoderError
from talik.extract.executors.settings import EngineSettings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts whose address was asked for; none is given."""
    hosts: list[str] = []

    def getaddrinfo(host: str, *args: object, **kwargs: object) -> None:
        hosts.append(host)
        raise socket.gaierror(-2, "no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return hosts


@pytest.fixture
def project(tmp_path: Path, tiny_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models in it, and another working directory that has a decoy and a folder of its own."""
    shutil.copytree(tiny_encoders["text"], tmp_path / "project" / "models" / "words")
    shutil.copytree(tiny_encoders["text"], tmp_path / "project" / "words-v1.5")
    shutil.copytree(tiny_encoders["visual"], tmp_path / "elsewhere" / "words-v1.5")
    shutil.copytree(tiny_encoders["text"], tmp_path / "elsewhere" / "only-here")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


@pytest.mark.parametrize("name", ["models/words", "./models/words", "words-v1.5", "../project/models/words/"])
def test_a_models_folder_is_found_beside_the_experiment(name: str, project: Path, asked: list[str]) -> None:
    encoder = talik.load_encoder(f"hf:{name}", modality="text", base=project)
    assert (encoder.spec, encoder.num_units, asked) == (f"hf:{name}", 3, [])


def test_a_folder_in_the_home_folder(project: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert talik.load_encoder("hf:~/models/words", modality="text").num_units == 3
    assert not asked


@pytest.mark.parametrize(
    "name",
    ["./words", "../words", "~/no-such", "/no/such/words", "models/word", "a/b/c", "models/", "two words", "words\\x"],
)
def test_a_folder_that_is_not_there_is_said_at_once(name: str, project: Path, asked: list[str]) -> None:
    with pytest.raises(EncoderError) as caught:
        talik.load_encoder(f"hf:{name}", modality="text", base=project)
    place = os.path.normpath(project / Path(name).expanduser())
    expected = "holds no config.json" if name == "models/" else "there is no folder"
    assert str(caught.value).startswith(f"hf:{name}: cannot be opened: ")
    assert expected in str(caught.value)
    assert place in str(caught.value)
    assert not asked


def test_a_folder_of_the_working_directory_is_not_taken_for_one_beside_the_experiment(
    project: Path, asked: list[str]
) -> None:
    assert talik.load_encoder("hf:only-here", modality="text").num_units == 3
    with pytest.raises(
        EncoderError, match=r"there is no folder .*/project/only-here; .*working directory is not meant"
    ):
        talik.load_encoder("hf:only-here", modality="text", base=project)
    assert not asked


def test_a_name_of_the_hub_ends_in_one_line_without_a_network(project: Path, asked: list[str], capfd) -> None:
    with pytest.raises(EncoderError) as caught:
        talik.load_encoder("hf:some-org/some-model", modality="text", base=project)
    assert str(caught.value) == (
        f"hf:some-org/some-model: cannot be opened: there is no folder {project}/some-org/some-model, and the hub "
        "cannot be reached, and its cache on this machine has no model of that name"
    )
    assert capfd.readouterr() == ("", "")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client waits between its tries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.parametrize("spec", ["timm:./vit", "timm:local-dir:vit", "timm:~/vit", "timm:some/where/vit"])
def test_a_folder_of_timm_that_is_not_there(spec: str, project: Path, asked: list[str]) -> None:
    with pytest.raises(EncoderError, match="there is no folder"):
        talik.load_encoder(spec, modality="visual", base=project)
    assert not asked


@pytest.mark.parametrize("weights", ["none", "none.safetensors", "./none", "google/none", "~/none.pt"])
@pytest.mark.parametrize(("spec", "modality"), [("hf:models/words", "text"), ("timm:test_vit", "visual")])
def test_weights_that_are_not_there(weights: str, spec: str, modality: str, project: Path, asked: list[str]) -> None:
    with pytest.raises(EncoderError, match=rf"^{spec}: weights: /.*{weights.strip('./~')}.*: no such file or folder"):
        talik.load_encoder(spec, modality=modality, weights=weights, base=project)
    assert not asked


def test_weights_beside_the_experiment(project: Path, asked: list[str]) -> None:
    from timm import create_model
    from timm.models import save_for_hf

    torch.manual_seed(1)
    model = create_model("test_vit").eval()
    torch.save(model.state_dict(), project / "vit.pt")
    save_for_hf(model, project / "saved")
    by_file = talik.load_encoder("timm:test_vit", modality="visual", weights="vit.pt", base=project)
    by_folder = talik.load_encoder("timm:saved", modality="visual", base=project)
    assert by_file.identity(6) == by_folder.identity(6)
    other = talik.load_encoder("hf:models/words", modality="text", weights="words-v1.5", base=project)
    assert other.num_units == 3
    assert not asked


def test_an_experiment_extracts_and_trains_from_any_directory(
    project: Path, asked: list[str], write_experiment
) -> None:
    text = write_experiment().read_text(encoding="utf-8")
    lines = ['model = "hf:models/words"' if "text" in line and "hf:" in line else line for line in text.splitlines()]
    path = project / "exp.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert talik.extract(path, progress=False).items
    assert talik.extract(path, progress=False).up_to_date
    run = talik.adapt(path, variant="probe", progress=False).folder
    os.chdir("/")
    assert talik.evaluate(run)
    assert not asked


@pytest.mark.slow
def test_other_processes_find_it_too(project: Path, write_experiment) -> None:
    text = write_experiment().read_text(encoding="utf-8")
    lines = ['model = "hf:words-v1.5"' if "text" in line and "hf:" in line else line for line in text.splitlines()]
    (project / "exp.toml").write_text("\n".join(lines), encoding="utf-8")
    assert talik.extract(project / "exp.toml", progress=False, engine=EngineSettings(jobs=2)).items


def test_a_folder_without_a_model_says_what_is_in_it(project: Path, asked: list[str]) -> None:
    (project / "empty").mkdir()
    (project / "lora").mkdir()
    (project / "lora" / "adapter_config.json").write_text("{}")
    (project / "file").write_text("")
    for name, said in (("empty", "holds no config.json"), ("lora", "an adapter of PEFT's"), ("file", "is a file")):
        with pytest.raises(EncoderError, match=said):
            talik.load_encoder(f"hf:{name}", modality="text", base=project)
    assert not asked
