"""What computes a state identifies it: a model's own code, configurations that JSON cannot hold, float32 as float32."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

import talik
from talik.extract.encoders.own_code import library_versions, own_code
from talik.extract.encoders.plain_json import plain_json
from talik.extract.trunk.exact_float32 import exact_float32

pytestmark = pytest.mark.usefixtures("one_thread")

MODELING = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from .configuration_own import OwnConfig
from .layers_own import Layer


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config.hidden_size) for _ in range(config.depth))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=x)
"""
CONFIGURATION = """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own-kind"

    def __init__(self, hidden_size=8, depth=2, vocab_size=64, **more):
        super().__init__(**more)
        self.hidden_size, self.depth, self.vocab_size = hidden_size, depth, vocab_size
"""
LAYERS = """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        from .scale_own import SCALE

        return x + SCALE * torch.tanh(self.fc(x))
"""
SCALE = "SCALE = 1.0\n"


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A folder of a model with code of its own in four files, the last imported inside a function."""
    folder = tmp_path / "own"
    folder.mkdir()
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own-kind", "auto_map": auto}))
    texts = {"modeling_own": MODELING, "configuration_own": CONFIGURATION, "layers_own": LAYERS, "scale_own": SCALE}
    for name, text in {**texts, "train": "LR = 1\n"}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def marks(folder: Path) -> list[str]:
    encoder = talik.load_encoder(f"hf:{folder}", modality="text", weights="random", trust_remote_code=True)
    assert set(encoder.identity(0)["code"]) == {f"{n}_own.py" for n in ("modeling", "configuration", "layers", "scale")}
    return [encoder.fingerprint(k) for k in range(encoder.num_units + 1)]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("modeling_own", "x = self.embed(input_ids)", "x = 2 * self.embed(input_ids)"),
        ("layers_own", "torch.tanh(", "torch.sin("),
        ("scale_own", "1.0", "0.5"),
    ],
)
def test_an_edit_of_any_file_of_a_models_code_is_another_identity(
    file: str, old: str, new: str, own_model: Path, tmp_path: Path
) -> None:
    before = marks(own_model)
    (own_model / "train.py").write_text("LR = 2\n")  # no part of the model
    assert marks(own_model) == before
    moved = own_model.rename(tmp_path / "another-name")
    assert marks(moved) == before
    path = moved / f"{file}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert not set(before) & set(marks(moved))


def test_a_proof_of_edited_code_is_made_anew(
    own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_encoders: dict[str, Path]
) -> None:
    monkeypatch.setenv("TALIK_CACHE", str(tmp_path / "cache"))

    def proofs() -> int:
        encoder = talik.load_encoder(f"hf:{own_model}", modality="text", trust_remote_code=True)
        assert encoder.num_units == 2
        return len(list((tmp_path / "cache" / "proofs").iterdir()))

    model = talik.load_encoder(f"hf:{own_model}", modality="text", weights="random", trust_remote_code=True).model
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoders["text"] / file, own_model)
    save_file(model.state_dict(), own_model / "model.safetensors", metadata={"format": "pt"})
    assert [proofs(), proofs()] == [1, 1]
    (own_model / "scale_own.py").write_text("SCALE = 0.25\n")
    assert proofs() == 2


def test_installed_models_have_no_code_in_their_identity(tiny_encoders: dict[str, Path]) -> None:
    for modality, folder in tiny_encoders.items():
        part = "#encoder" if modality == "audio" else ""
        assert "code" not in talik.load_encoder(f"hf:{folder}{part}", modality=modality).identity(1)
    assert "code" not in talik.load_encoder("timm:test_vit", modality="visual", weights="random").identity(1)


def test_code_of_ones_own_outside_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_blocks.py").write_text(
        "from my_helpers import half\nfrom torch import nn\nclass Block(nn.Linear): ...\n"
    )
    (tmp_path / "my_helpers.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_blocks  # type: ignore[import-not-found]

    before = own_code([my_blocks.Block])
    assert set(before) == {"my_blocks.py", "my_helpers.py"}
    assert own_code([my_blocks.Block(2, 2)]) == before
    (tmp_path / "my_helpers.py").write_text("def half(x):\n    return x / 3\n")
    after = own_code([my_blocks.Block])
    assert {name for name in before if before[name] != after[name]} == {"my_helpers.py"}
    for name in ("my_blocks", "my_helpers"):
        sys.modules.pop(name)


def test_installed_packages_are_known_by_their_versions() -> None:
    import pandas

    assert own_code([pandas.DataFrame, nn.Linear, hf.BertModel, json.dumps]) == {}
    assert library_versions([pandas.DataFrame, nn.Linear, hf.BertModel, json.dumps]) == {"pandas": pandas.__version__}


class Kind(Enum):
    FAST = "fast"


VALUES: list[tuple[Any, Any]] = [
    ({"limits": (0.0, float("inf"))}, {"limits": [0.0, "Infinity"]}),
    ([-float("inf"), float("nan"), 1.5], ["-Infinity", "NaN", 1.5]),
    ({"kinds": {"c", "a", "b"}, "ids": frozenset({3, 1})}, {"kinds": ["a", "b", "c"], "ids": [1, 3]}),
    ({"dtype": torch.bfloat16, "device": torch.device("cpu")}, {"dtype": "torch.bfloat16", "device": "cpu"}),
    ({1: 2, None: 3, False: 4, (1, 2): 5}, {"1": 2, "null": 3, "false": 4, "(1, 2)": 5}),
    ({"kind": Kind.FAST, "path": Path("a/b")}, {"kind": "Kind.FAST", "path": "a/b"}),
    (
        {"deep": [{"limit": np.float64("inf")}, np.float64(0.5), np.int64(3)]},
        {"deep": [{"limit": "Infinity"}, 0.5, "3"]},
    ),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_values_that_json_has_no_form_for(value: Any, expected: Any) -> None:
    found = plain_json(value)
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_plain_values_are_those_that_json_gave_them() -> None:
    config = hf.BertConfig(hidden_size=32, pruned_heads={1: [0, 1]}, sizes=(1.5, 2)).to_dict()
    assert plain_json(config) == json.loads(json.dumps(config, default=str))


def test_functions_and_objects_have_no_addresses() -> None:
    assert "0x" not in json.dumps(plain_json({"activation": len, "make": lambda: 0, "thing": object()}))


def test_sets_are_the_same_in_every_process() -> None:
    code = "from talik.extract.encoders.plain_json import plain_json; print(plain_json({'s': set('talik cache')}))"
    found = {
        subprocess.run([sys.executable, "-c", code], env=_environment(seed), capture_output=True, text=True).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert found != {""}


def _environment(seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": seed}


def test_a_configuration_with_infinities_and_sets_has_one_identity(tmp_path: Path) -> None:
    config = hf.Mamba2Config(
        vocab_size=70, hidden_size=16, num_hidden_layers=2, num_heads=4, head_dim=8, state_size=8, n_groups=1,
        own_limit=float("nan"),
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    first, second = (talik.load_encoder(f"hf:{tmp_path}", modality="text", weights="random") for _ in range(2))
    assert first.identity(1) == second.identity(1)
    assert first.identity(1)["config"]["time_step_limit"] == [0.0, "Infinity"]
    assert first.fingerprint(2) != first.fingerprint(1)
    json.dumps(first.identity(2), allow_nan=False)


# float32


@pytest.fixture
def reduced() -> Iterator[None]:
    """TensorFloat-32 everywhere, as far as this process may compute in it; torch's defaults afterwards."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def seen() -> tuple[bool, str, str, str]:
    backends: Any = torch.backends
    return (
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        backends.cudnn.conv.fp32_precision,
        backends.cuda.matmul.fp32_precision,
    )


def during(module: nn.Module, call: Callable[[], object]) -> list[Any]:
    found: list[Any] = []
    handle = module.register_forward_hook(lambda *_: found.append(seen()))
    with torch.no_grad():
        call()
    handle.remove()
    return found


def test_units_and_embedding_compute_float32_as_float32(reduced: None) -> None:
    encoder = talik.load_encoder("timm:test_convnext", modality="visual", weights="random", image_size=64)
    before = seen()
    assert before[:2] == (True, "medium")
    inputs = encoder.preprocess(np.zeros((1, 64, 64, 3), np.uint8))
    with torch.no_grad():
        state = encoder.embed(inputs)
        end = encoder.run(state, 0, encoder.num_units)
    stem, unit, norm = encoder.model.get_submodule("stem"), encoder.units[0], encoder.model.get_submodule("head.norm")
    calls: list[tuple[nn.Module, Callable[[], object]]] = [
        (stem, lambda: encoder.embed(inputs)),
        (unit, lambda: encoder.run(state, 0, 1)),
        (norm, lambda: encoder.finish(end)),
        (unit, lambda: encoder(inputs)),
    ]
    for module, call in calls:
        (found,) = set(during(module, call))
        assert found[:2] == (False, "highest")
        assert not {"tf32", "bf16"} & set(found[2:])
        assert seen() == before


def test_what_was_set_comes_back_after_an_error_and_from_inside(reduced: None) -> None:
    before = seen()
    inside = []
    with exact_float32():
        with exact_float32():
            inside.append(seen()[0])
        inside.append(seen()[0])
    assert inside == [False, False]
    assert seen() == before
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert seen() == before


def test_blocks_of_several_threads_end_when_the_last_does(reduced: None) -> None:
    before = seen()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exact_float32():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with exact_float32():
        thread.start()
        entered.wait(10)
    assert not seen()[0]
    leave.set()
    thread.join()
    assert seen() == before


def test_runs_train_and_answer_in_float32(write_experiment: Callable[..., Path], reduced: None) -> None:
    experiment = write_experiment(("epochs = 2", "epochs = 1"))
    talik.extract(experiment, progress=False)
    found: list[Any] = []
    original = torch.Tensor.backward

    def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        found.append(seen())
        original(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "backward", backward)
        talik.adapt(experiment, variant="trimodal", progress=False)
    assert found
    assert {f[:2] for f in found} == {(False, "highest")}
    assert seen()[:2] == (True, "medium")


# classifiers


def test_a_model_whose_classifier_takes_part_of_its_head_with_it(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(2)
    model = timm.create_model("shvit_s1").eval()
    torch.save(model.state_dict(), tmp_path / "shvit.pt")
    save_for_hf(model, tmp_path / "saved")
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    for spec, weights in (("timm:shvit_s1", "shvit.pt"), ("timm:saved", None)):
        encoder = talik.load_encoder(spec, modality="visual", weights=weights, image_size=64, base=tmp_path)
        inputs = encoder.preprocess(frames)
        with torch.no_grad():
            expected = model.forward_features(inputs["pixel_values"]).mean((2, 3))
            torch.testing.assert_close(encoder(inputs), expected)
