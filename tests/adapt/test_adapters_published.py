"""The published adapters against their equations written out, their published start, and their published size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from talik.adapt.adapters.base import Deltas, Triple
from talik.adapt.adapters.dgsct import Dgsct, DgsctSettings
from talik.adapt.adapters.lavish import Lavish, LavishSettings
from talik.adapt.adapters.registry import adapter_kind, adapter_settings
from talik.adapt.adapters.trimodal import Trimodal, TrimodalSettings
from talik.errors import SettingsError

DIMS = {"visual": 24, "audio": 32, "text": 16}
B, T, L = 2, 4, 5


@pytest.fixture
def triple() -> Triple:
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    return Triple(torch.randn(B, T, 6, 24), torch.randn(B, T, 7, 32), torch.randn(B, L, 16), mask)


def made(kind: str, dims: dict[str, int] = DIMS, *, shake: bool = True, **settings: Any) -> Any:
    torch.manual_seed(2)
    module = adapter_kind(kind).module
    assert module is not None
    adapter: Any = module(adapter_settings({"kind": kind, **settings}), [dims])  # type: ignore[call-arg]
    if shake:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return adapter


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """A grouped 1x1 convolution by torch's own operator, (S, N, D)."""
    groups, width_in, width_out = weight.shape
    kernel = weight.transpose(1, 2).reshape(groups * width_out, width_in, 1)
    return F.conv1d(x.transpose(1, 2), kernel, groups=groups).transpose(1, 2)


def bottleneck(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], p["norm_before.weight"], p["norm_before.bias"])
    x = grouped(grouped(x, p["down.weight"]).relu(), p["up.weight"])
    return p["gate"] * F.layer_norm(x, x.shape[-1:], p["norm_after.weight"], p["norm_after.bias"])


def read(x: Tensor, y: Tensor, p: dict[str, Tensor]) -> Tensor:
    latents = p["latents"] + torch.softmax(p["latents"] @ y.mT, -1) @ y
    return x + p["gate"] * (torch.softmax(x @ latents.mT, -1) @ latents)


def under(module: Any, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix + "."): v for k, v in module.state_dict().items() if k.startswith(prefix + ".")}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("latents", ["zero", "random"])
def test_lavish_is_its_equations(triple: Triple, latents: str, text: bool) -> None:
    adapter = made("lavish", reduction=4, groups=2, num_latents=3, latents=latents, text=text)
    found = adapter.at(0)(triple)
    direction = adapter.at(0).directions["visual"]
    match = under(direction, "other.match")
    for item in range(B):
        x, y = triple.visual[item], triple.audio[item] @ match["audio.weight"].T + match["audio.bias"]
        if text:
            real = triple.text[item][triple.text_mask[item]] @ match["text.weight"].T + match["text.bias"]
            y = torch.cat([y, real.expand(T, -1, -1)], 1)
        expected = bottleneck(read(x, y, under(direction, "read")), under(direction, "bottleneck"))
        torch.testing.assert_close(found.visual[item], expected, rtol=1e-4, atol=1e-5)
    assert found.audio.shape == triple.audio.shape
    assert found.text is None


def test_dgsct_is_its_equations(triple: Triple) -> None:
    adapter = made("dgsct", reduction=4, groups=2)
    direction = adapter.at(0).directions["audio"]
    g, match = under(direction, "gates"), under(direction, "other.match")

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ g[f"{name}.weight"].T + g[f"{name}.bias"]

    for item in range(B):
        y = triple.visual[item] @ match["visual.weight"].T + match["visual.bias"]
        x = read(triple.audio[item], y, under(direction, "read"))
        a = y.mean(1, keepdim=True)
        joint = (linear("guide_channels", a).relu() * linear("own_channels", x).relu()).mean(1, keepdim=True)
        m_c = linear("channels", linear("squeeze", joint).relu()).sigmoid()
        m_s = linear("tokens", linear("own_tokens", x * (1 + m_c)).relu() * linear("guide_tokens", a).relu()).sigmoid()
        expected = bottleneck(x * (0.3 * m_c + 0.05 * m_s + 0.7), under(direction, "bottleneck"))
        torch.testing.assert_close(adapter.at(0)(triple).audio[item], expected, rtol=1e-4, atol=1e-5)


def step(adapter: Any, triple: Triple, optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    optimizer.zero_grad()
    torch.manual_seed(3)
    deltas = adapter.at(0)(triple)
    sum((d * torch.randn_like(d)).sum() for d in (deltas.visual, deltas.audio)).backward()
    learns = {n: bool(p.grad.abs().any()) for n, p in adapter.named_parameters()}
    optimizer.step()
    return learns


@pytest.mark.parametrize("kind", ["lavish", "dgsct"])
def test_two_zero_gates_in_a_row_cost_the_latents_a_step(triple: Triple, kind: str) -> None:
    for start, first in ((0.0, 3), (0.1, 2)):
        adapter = made(kind, shake=False, reduction=4, groups=2, cross_gate=start)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        seen = [step(adapter, triple, optimizer) for _ in range(3)]
        latents = [all(v for n, v in learns.items() if n.endswith("latents")) for learns in seen]
        assert latents.index(True) + 1 == first


@pytest.mark.parametrize("kind", ["lavish", "dgsct"])
def test_latents_that_start_at_zero_stay_equal(triple: Triple, kind: str) -> None:
    for start, equal in (("zero", True), ("random", False)):
        adapter = made(kind, shake=False, reduction=4, groups=2, num_latents=5, latents=start)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        for _ in range(4):
            step(adapter, triple, optimizer)
        latents = adapter.at(0).directions["visual"].read.latents
        assert latents.abs().max() > 0
        assert torch.allclose(latents, latents[:1].expand_as(latents), atol=1e-5) == equal


def test_lavish_has_its_published_size_on_swin_v2_l() -> None:
    widths = [192] * 2 + [384] * 2 + [768] * 18 + [1536] * 2
    dims = [{"visual": width, "audio": width} for width in widths]
    with torch.device("meta"):
        published = Lavish(LavishSettings(after_attention=True, cross_gate=0.0), dims)
    assert sum(p.numel() for p in published.parameters()) == 8_835_264  # "8.84 M", LAVISH, table of MUSIC-AVQA


def test_bottleneck_as_published_is_near_the_identity_but_not_it(triple: Triple) -> None:
    small = made("bottleneck", shake=False, start="small").at(0)(triple)
    for name in ("visual", "audio", "text"):
        assert 0 < small.get(name).abs().max() < 0.1
    assert made("bottleneck", shake=False).at(0)(triple).visual.abs().max() == 0


def test_parallel_is_scaled(triple: Triple) -> None:
    one, four = (made("parallel", scale=s).at(0)(triple) for s in (1.0, 4.0))
    torch.testing.assert_close(four.audio, 4 * one.audio)


@pytest.mark.parametrize("importance", ["sigmoid", "softmax"])
def test_lstta_rates_segments(triple: Triple, importance: str) -> None:
    adapter = made("lstta", interaction=False, importance=importance).at(0)
    deltas = adapter(triple)
    assert deltas.text is None
    for name in ("visual", "audio"):
        x = triple.get(name)
        gates = deltas.get(name) / x  # one number a segment
        torch.testing.assert_close(gates, gates[:, :, :1, :1].expand_as(gates), rtol=1e-3, atol=1e-4)
        assert gates[:, :, 0, 0].std() > 1e-3
        if importance == "softmax":
            torch.testing.assert_close(gates[:, :, 0, 0].mean(1), torch.zeros(B), rtol=0, atol=1e-4)


def far_apart(kind: str, triple: Triple, window: int) -> tuple[Deltas, Deltas]:
    """What an adapter gives before and after the last segment's sound is changed; the question would see all of it."""
    adapter = made(kind, {"visual": 24, "audio": 32}, window=window, **WINDOWED[kind]).at(0)
    audio = triple.audio.clone()
    audio[:, -1] += 1.0
    return adapter(Triple(triple.visual, triple.audio)), adapter(Triple(triple.visual, audio))


WINDOWED = {"lstta": {"filtering": False}, "trimodal": {"selection": "none", "d_model": 8, "num_heads": 2}}


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_is_a_window_and_one_that_holds_all_is_none(triple: Triple, kind: str) -> None:
    for window in (0, 1, 2):
        before, after = far_apart(kind, triple, window)
        moved = [not torch.equal(before.visual[:, t], after.visual[:, t]) for t in range(T)]
        assert moved == [t >= T - 1 - window for t in range(T)]
    unlimited = made(kind, window=10**6, **WINDOWED[kind]).at(0)(triple)
    for window in (T - 1, T, T + 3):
        found = made(kind, window=window, **WINDOWED[kind]).at(0)(triple)
        for name in DIMS:
            assert torch.equal(found.get(name), unlimited.get(name)), (window, name)


def test_a_window_over_all_segments_is_the_global_interaction(triple: Triple) -> None:
    sizes = {"d_model": 8, "num_heads": 2, "d_state": 4}
    unlimited = made("trimodal", interaction="global", **sizes).at(0)(triple)
    for window in (T - 1, T, T + 3):
        found = made("trimodal", window=window, **sizes).at(0)(triple)
        assert all(torch.equal(found.get(m), unlimited.get(m)) for m in DIMS)
    narrow = made("trimodal", window=T - 2, **sizes).at(0)(triple)
    assert not torch.allclose(narrow.visual, unlimited.visual)


def test_center_swaps_the_roles_exactly(triple: Triple) -> None:
    sizes: dict[str, Any] = {"selection": "none", "d_model": 8, "num_heads": 2, "window": 1}
    one = made("trimodal", center="visual", **sizes)
    dims = {"visual": DIMS["audio"], "audio": DIMS["visual"], "text": DIMS["text"]}
    other = Trimodal(TrimodalSettings(center="audio", **sizes), [dims])
    turn = {"visual": "audio", "audio": "visual"}
    renamed = {".".join(turn.get(p, p) for p in k.split(".")): v for k, v in one.state_dict().items()}
    other.load_state_dict(renamed)
    here = one.at(0)(triple)
    there = other.at(0)(Triple(triple.audio, triple.visual, triple.text, triple.text_mask))
    assert torch.equal(here.visual, there.audio)
    assert torch.equal(here.audio, there.visual)
    assert torch.equal(here.text, there.text)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("lavish", {"groups": 5}, "groups: found 5 for 24 channels"),
        ("lavish", {"reduction": 100}, "and 0 in the middle"),
        ("lavish", {"num_latents": 0}, "num_latents: found 0, expected at least 1"),
        ("dgsct", {"channel": 1.5}, "channel: found 1.5"),
        ("lstta", {"filtering": False, "interaction": False}, "both false"),
        ("lstta", {"window": -1}, "window: found -1"),
        ("lstta", {"d_model": 10}, "expected a multiple of num_heads = 4"),
        ("parallel", {"scale": 0.0}, "scale: found 0.0"),
        ("bottleneck", {"start": "tiny"}, "one of 'zero', 'small'"),
        ("bottleneck", {"bottleneck": 3}, "bottleneck"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        made(kind, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_modalities_must_meet() -> None:
    for settings, module in ((LavishSettings(), Lavish), (DgsctSettings(), Dgsct)):
        with pytest.raises(SettingsError, match="the insertion has no audio; expected visual and audio to meet"):
            module(settings, [{"visual": 192, "text": 16}])  # type: ignore[arg-type]
