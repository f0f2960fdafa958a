"""The selection's gates: on a made task in which one segment matters the trained gate is highest there; read-outs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talik.adapt.adapters.base import Triple
from talik.adapt.adapters.registry import adapter_settings
from talik.adapt.adapters.trimodal import Trimodal

SEGMENTS, TOKENS, CHANNELS, ANSWERS = 6, 2, 16, 4


class OneSegmentMatters:
    """Clips whose answer stands in the picture of one segment, the one that a sound marks; the rest is like it.

    What a picture shows is drawn anew for each segment, so that only leaving out the other segments helps.
    """

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.mark = 2 * torch.randn(2, CHANNELS, generator=draw)  # the sound of an unmarked and of the marked segment
        self.word = 2 * torch.randn(CHANNELS, generator=draw)
        self.answers = torch.randn(CHANNELS, ANSWERS, generator=draw)

    def draw(self, num: int, generator: torch.Generator) -> tuple[Triple, Tensor, Tensor]:
        """Return clips, the segment that matters in each, and the answers."""

        def noise(*shape: int) -> Tensor:
            return 0.3 * torch.randn(*shape, generator=generator)

        target = torch.randint(SEGMENTS, (num,), generator=generator)
        shown = torch.randn(num, SEGMENTS, CHANNELS, generator=generator)
        sound = self.mark[F.one_hot(target, SEGMENTS)]  # (B, T, D)
        triple = Triple(
            visual=shown[:, :, None] + noise(num, SEGMENTS, TOKENS, CHANNELS),
            audio=sound[:, :, None] + noise(num, SEGMENTS, TOKENS, CHANNELS),
            text=self.word + noise(num, 2, CHANNELS),
        )
        return triple, target, (shown[torch.arange(num), target] @ self.answers).argmax(-1)


class Averaged(nn.Module):
    """The adapter, and a linear head on the mean over all segments, which cannot choose one itself."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"d_model": 16, "d_state": 8, "num_latents": 2, "num_heads": 2}
        settings = adapter_settings({"kind": "trimodal", "interaction": "none", **sizes})
        self.adapter = Trimodal(settings, [dict.fromkeys(("visual", "audio", "text"), CHANNELS)])
        self.head = nn.Linear(CHANNELS, ANSWERS)

    def forward(self, triple: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        deltas, gates = self.adapter.at(0)(triple, return_gates=True)
        return self.head((triple.visual + deltas.visual).mean((1, 2))), gates


@pytest.fixture
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_trained_gate_is_highest_at_the_segment_that_matters() -> None:
    torch.manual_seed(0)
    task, model, steps, rate = OneSegmentMatters(), Averaged(), 200, 1e-2
    test, target, answers = task.draw(1000, torch.Generator().manual_seed(99))
    with torch.no_grad():
        assert all(bool((gate == 1).all()) for gate in model(test)[1].values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        triple, _, labels = task.draw(64, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(triple)[0], labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        logits, gates = model(test)
    rows = torch.arange(len(target))
    highest = float((gates["visual"].argmax(1) == target).float().mean())
    assert highest >= 0.95, highest
    kept = gates["visual"][rows, target].mean()
    others = (gates["visual"].sum(1) - gates["visual"][rows, target]).mean() / (SEGMENTS - 1)
    assert kept > 1.5
    assert others < 0.5  # the rest is suppressed, not only less raised
    assert float((logits.argmax(1) == answers).float().mean()) > 0.7


def test_gates_have_the_shapes_and_range_that_are_promised() -> None:
    torch.manual_seed(0)
    settings = adapter_settings({"kind": "trimodal", "d_model": 8, "d_state": 4, "num_heads": 2, "num_latents": 2})
    adapter = Trimodal(settings, [{"visual": 6, "audio": 5, "text": 4}])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    triple = Triple(
        visual=torch.randn(2, 3, 4, 6), audio=torch.randn(2, 3, 2, 5), text=torch.randn(2, 3, 4), text_mask=mask
    )
    plain = adapter.at(0)(triple)
    deltas, gates = adapter.at(0)(triple, return_gates=True)
    assert all(torch.equal(plain.get(m), deltas.get(m)) for m in gates)
    assert {m: tuple(g.shape) for m, g in gates.items()} == {"text": (2, 3), "visual": (2, 3), "audio": (2, 3)}
    assert all(bool(((g > 0) & (g < 2)).all()) and not g.requires_grad for g in gates.values())
    full = adapter.at(0).selection(triple)["visual"]  # (B, T, 1, D)
    torch.testing.assert_close(gates["visual"], 1 + full.mean((2, 3)))


def test_settings_are_all_there_and_checked() -> None:
    choices = {
        "selection": ("ssm", "attention", "none"),
        "interaction": ("windowed", "global", "none"),
        "center": ("visual", "audio"),
        "bidirectional": (True, False),
        "share_across_insertions": (True, False),
    }
    sizes = {"d_model": 8, "d_state": 4, "d_conv": 3, "expand": 1, "num_heads": 2, "num_latents": 3, "window": 2}
    dims = [{"visual": 6, "audio": 5, "text": 4}] * 2
    counts = {}
    for name, values in choices.items():
        for value in values:
            table = {"kind": "trimodal", **sizes, name: value}
            counts[name, value] = sum(p.numel() for p in Trimodal(adapter_settings(table), dims).parameters())
    assert counts["share_across_insertions", False] == 2 * counts["share_across_insertions", True]
    assert counts["bidirectional", True] > counts["bidirectional", False]
    assert counts["selection", "none"] < counts["selection", "ssm"]
    assert counts["interaction", "none"] < counts["interaction", "global"] == counts["interaction", "windowed"]
    for size in sizes:
        grown = {**sizes, size: 2 * sizes[size]}
        more = sum(p.numel() for p in Trimodal(adapter_settings({"kind": "trimodal", **grown}), dims).parameters())
        assert (more > counts["center", "visual"]) == (size not in ("num_heads", "window")), size
