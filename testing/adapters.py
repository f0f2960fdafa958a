"""Contract tests of an adapter, run with pytest on tiny encoders with random weights.

    import talik, talik.testing
    import mine  # registers "shift"

    class TestShift(talik.testing.AdapterTests):
        adapter = {"kind": "shift", "width": 8}

Letters: B items, T segments, N tokens, L text tokens, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapt.adapters.base import Site
from ..adapt.adapters.registry import adapter_kind, adapter_settings
from ..adapt.data.batch import Batch
from ..adapt.model.heads import AnswerHead, TaskSettings
from ..adapt.model.insertion import Placement, resolve_insertions
from ..adapt.model.joint_model import JointModel
from ..adapt.training.adapter_files import trained_tensors
from ..extract.datasets.types import Question
from ..extract.encoders.encoder import Encoder
from ..extract.encoders.load import load_encoder
from ..extract.trunk.state import State

TEXTS = ("first ?", "how many instruments are sounding in the video ?", "is the violin left ?")
NUM_SEGMENTS = 3
NUM_ANSWERS = 4

Start = Literal["bits", "rounding", "changed"]


class AdapterTests:
    """Contract of an adapter; derive from it and set `adapter`.

    Attributes:
        adapter: the table `[variants.adapter]`: the kind and its settings.
        insertion: the table `insertion`: by modality, the boundaries; the tiny encoders have 6, 6 and 3 units.
        placement: "between" or "parallel".
        starts_as: what the untrained adapter does: "bits", the frozen model to the bit; "rounding", the same but for
            rounding; "changed", not the frozen model.
        learns_by: after how many optimiser steps each parameter has had a gradient.
    """

    adapter: ClassVar[Mapping[str, Any]]
    insertion: ClassVar[Mapping[str, tuple[int, ...]]] = {"visual": (1, 2), "audio": (1, 2), "text": (1, 2)}
    placement: ClassVar[Placement] = "between"
    starts_as: ClassVar[Start] = "bits"
    learns_by: ClassVar[int] = 2

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        """Run on one thread, so that equal computations give equal bits."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    def encoders(self) -> Mapping[str, Encoder]:
        """Return the frozen encoders by modality; override it to test on others."""
        return tiny_encoders()

    def batch(self) -> Batch:
        """Return three questions with texts of unequal length, and their states at boundary 0."""
        return noise_batch(self.encoders())

    def model(self, *, trained: bool = False, adapted: bool = True) -> JointModel:
        """Build a joint model with the adapter, or with none; `trained`: every parameter moved, the zero ones too."""
        encoders = self.encoders()
        kind = adapter_kind(self.adapter["kind"])
        placement: Placement = "inside" if kind.module is not None and kind.module.tunes_units else self.placement
        wanted = self.insertion if adapted and kind.module is not None else None
        insertions = resolve_insertions(wanted, {m: e.num_units for m, e in encoders.items()}, placement=placement)
        site = Site(
            dims=[{m: encoders[m].channels[k] for m, k in i.boundaries.items()} for i in insertions.insertions],
            ends={m: e.channels[-1] for m, e in encoders.items()},
            encoders=encoders,
            units={m: insertions.of(m) for m in encoders if insertions.of(m)},
        )
        torch.manual_seed(2)
        head = AnswerHead(site.ends, NUM_ANSWERS, TaskSettings(d_head=16, num_heads=2, dropout=0.0))
        adapter = None
        if wanted is not None and kind.module is not None:
            adapter = kind.module.for_site(adapter_settings(self.adapter), site)
        model = JointModel(encoders, insertions, adapter, head, placement=placement)
        torch.manual_seed(11)
        with torch.no_grad():
            for parameter in model.parameters() if trained else ():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    @torch.no_grad()
    def test_starts_as_it_says(self) -> None:
        """The untrained adapter is the identity, or said not to be."""
        adapted, frozen = (self.model(adapted=has).features(self.batch()) for has in (True, False))
        touched = {m: not torch.equal(adapted[m], frozen[m]) for m in frozen}
        if self.starts_as == "changed":
            assert any(touched.values()), "it starts as the frozen model to the bit: set starts_as"
            return
        if self.starts_as == "bits":
            assert not any(touched.values()), f"it changes {touched}; expected the frozen model to the bit"
        for modality, features in frozen.items():
            torch.testing.assert_close(adapted[modality], features, rtol=1e-5, atol=1e-5)

    def test_every_parameter_has_a_gradient(self) -> None:
        """Each trained parameter has a gradient within `learns_by` steps; the frozen encoders have none, and stay."""
        before = {m: [p.clone() for p in e.model.parameters()] for m, e in self.encoders().items()}
        model, batch = self.model().train(), self.batch()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        missing = {n for n, p in model.named_parameters() if p.requires_grad}
        for _ in range(self.learns_by):
            train_step(model, batch, optimizer)
            missing -= {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().any())}
        assert not missing, f"no gradient in {self.learns_by} steps: {sorted(missing)}"
        for modality, encoder in self.encoders().items():
            after = list(encoder.model.parameters())
            assert all(torch.equal(a, b) for a, b in zip(before[modality], after, strict=True)), modality
            assert all(p.grad is None for p in after), modality

    @torch.no_grad()
    def test_padding_changes_nothing(self) -> None:
        """What stands in a text's padding changes no bit, and what stands in its tokens does."""
        model, batch = self.model(trained=True), self.batch()
        text = batch.states["text"]
        assert text.lengths is not None
        spoiled = text.hidden.clone()
        for row, length in enumerate(text.lengths.tolist()):
            spoiled[row, length:] = 1e3
        assert not torch.equal(spoiled, text.hidden), "the batch has no padding"
        clean = model(batch)
        assert torch.equal(clean, model(with_text(batch, spoiled)))
        spoiled[0, 0] = 5.0
        assert not torch.equal(clean, model(with_text(batch, spoiled)))

    @torch.no_grad()
    def test_batch_independent(self) -> None:
        """Each question's logits are those that it has in another order, and alone, within rounding."""
        model, batch, order = self.model(trained=True), self.batch(), [2, 0, 1]
        straight, permuted = model(batch), model(taken(batch, order))
        assert not torch.allclose(straight, straight[order], atol=1e-4), "the logits do not depend on the question"
        atol = 1e-5 * float(straight.abs().max())
        torch.testing.assert_close(permuted, straight[order], rtol=1e-5, atol=atol)
        for row in order:
            torch.testing.assert_close(model(taken(batch, [row]))[0], straight[row], rtol=1e-5, atol=atol)

    @torch.no_grad()
    def test_saves_and_loads(self, tmp_path: Path) -> None:
        """The weights written to a file and loaded into a fresh model give the same logits, to the bit."""
        model, batch = self.model(trained=True), self.batch()
        save_file(trained_tensors(model), tmp_path / "adapter.safetensors")
        again = self.model()
        assert not torch.equal(again(batch), model(batch))
        again.load_state_dict(load_file(tmp_path / "adapter.safetensors"))
        assert torch.equal(again(batch), model(batch))

    def test_resumes(self) -> None:
        """Steps after a resume from module, optimiser and training state are those of an uninterrupted run."""
        batch = self.batch()
        model, optimizer = started(self.model())
        for step in range(2):
            train_step(model, batch, optimizer, step)
        saved = copy.deepcopy((trained_tensors(model), optimizer.state_dict()))
        extra = {} if model.adapter is None else copy.deepcopy(model.adapter.training_state())
        again, resumed = started(self.model(), load=saved[0], extra=extra)
        resumed.load_state_dict(saved[1])
        for step in range(2, 4):
            losses = [train_step(m, batch, o, step) for m, o in ((model, optimizer), (again, resumed))]
            assert torch.equal(*losses), step
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name

    def test_tied_weights_stay_tied(self) -> None:
        """Parameters that are one tensor are saved, and are one tensor in a model that loads them."""
        model = self.model(trained=True)
        again = self.model()
        again.load_state_dict(trained_tensors(model))
        assert tied(again) == tied(model)


def started(
    model: JointModel, load: Mapping[str, Tensor] | None = None, extra: dict[str, Tensor] | None = None
) -> tuple[JointModel, torch.optim.Optimizer]:
    """Return a model in training mode with its optimiser; weights and the adapter's training state loaded first."""
    if load is not None:
        model.load_state_dict(load)
    if model.adapter is not None:
        if extra:
            model.adapter.load_training_state(extra)
        model.adapter.begin_training(NUM_STEPS)
    return model.train(), torch.optim.AdamW(model.parameters(), lr=1e-2)


NUM_STEPS = 1000  # said to `begin_training`


def train_step(model: JointModel, batch: Batch, optimizer: torch.optim.Optimizer, step: int = 0) -> Tensor:
    """Take one optimiser step on a fixed linear function of the logits; return the loss."""
    torch.manual_seed(100 + step)
    optimizer.zero_grad()
    logits: Tensor = model(batch)
    aim = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))
    loss = (logits * aim).sum()
    more = None if model.adapter is None else model.adapter.extra_loss()
    loss = loss if more is None else loss + more
    loss.backward()
    optimizer.step()
    if model.adapter is not None:
        model.adapter.after_step(step)
    return loss.detach()


def tied(model: torch.nn.Module) -> list[set[str]]:
    """Return the groups of parameters' names that are one tensor."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [group for group in names.values() if len(group) > 1]


def with_text(batch: Batch, hidden: Tensor) -> Batch:
    """Return the batch with another hidden tensor (B, L, D) of the text."""
    return replace(batch, states={**batch.states, "text": batch.states["text"].replace(hidden=hidden.clone())})


def taken(batch: Batch, order: list[int]) -> Batch:
    """Return the questions of a batch at the places `order`."""
    states = {}
    for modality, state in batch.states.items():
        parts = state.split(state.batch_size // len(batch))
        states[modality] = State.concat([parts[i] for i in order])
    return replace(batch, questions=tuple(batch.questions[i] for i in order), states=states)


@torch.no_grad()
def noise_batch(encoders: Mapping[str, Encoder]) -> Batch:
    """Return a batch of noise at boundary 0: three questions, about clips of three segments."""
    generator = np.random.default_rng(5)
    states = {}
    for modality, encoder in encoders.items():
        rows = len(TEXTS) * NUM_SEGMENTS
        raw: Any = list(TEXTS)
        if encoder.sample_rate_hz is not None:
            seconds = encoder.window_seconds or 1.0
            raw = generator.normal(0, 0.2, (rows, round(seconds * encoder.sample_rate_hz))).astype(np.float32)
        elif modality != "text":
            raw = generator.integers(0, 256, (rows, *(encoder.image_size or (32, 32)), 3), dtype=np.uint8)
        states[modality] = encoder.embed(encoder.preprocess(raw))
    questions = tuple(
        Question(id=str(i), clip_id=str(i), text=text, answer="a", type="", template=text, split="train")
        for i, text in enumerate(TEXTS)
    )
    return Batch(questions=questions, states=states, num_segments=NUM_SEGMENTS)


@cache
def tiny_encoders() -> dict[str, Encoder]:
    """Return three small encoders with fixed random weights: two ViTs, of picture and sound, and a BERT; no network."""
    from transformers import BertConfig, BertModel
    from transformers.models.bert.tokenization_bert import BertTokenizer

    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        torch.manual_seed(3)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
        config = BertConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=len(words)
        )
        BertModel(config).save_pretrained(folder)
        (Path(folder) / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizer(vocab_file=str(Path(folder) / "vocab.txt")).save_pretrained(folder)
        return {
            "visual": load_encoder("timm:test_vit", modality="visual", weights="random", image_size=32, device="cpu"),
            "audio": load_encoder(
                "timm:test_vit", modality="audio", weights="random", window_seconds=0.5, device="cpu"
            ),
            "text": load_encoder(f"hf:{folder}", modality="text", device="cpu"),
        }
