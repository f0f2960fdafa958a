"""Every registered adapter passes the public contract (`talik.testing.AdapterTests`), on trunks of three layouts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from talik.adapt.adapters.peft_settings import TUNERS
from talik.adapt.adapters.registry import adapter_kind, known_adapters
from talik.adapt.config.experiment import VariantSettings, load_experiment
from talik.adapt.model.insertion import Placement
from talik.adapt.training.experiment_context import ExperimentContext
from talik.errors import SettingsError
from talik.extract.encoders.encoder import Encoder
from talik.extract.encoders.load import load_encoder
from talik.testing import AdapterTests
from talik.testing.adapters import noise_batch, tiny_encoders

sys.path.insert(0, str(Path(__file__).parent))

from adapter_sizes import SETTINGS

KINDS = [k for k in known_adapters() if k != "probe"]
MORE: dict[str, dict[str, Any]] = {  # other choices of the adapters above
    "lavish-text": {"kind": "lavish", **SETTINGS["lavish"], "text": True, "latents": "random"},
    "dgsct-text": {"kind": "dgsct", **SETTINGS["dgsct"], "text": True, "latents": "random", "pre_norm": False},
    "lstta-softmax": {"kind": "lstta", **SETTINGS["lstta"], "importance": "softmax", "window": 0},
    "lstta-filtering": {"kind": "lstta", **SETTINGS["lstta"], "interaction": False},
    "lstta-head": {"kind": "lstta", **SETTINGS["lstta"], "filtering": False, "text": False},
    "bottleneck-norm": {"kind": "bottleneck", "d_bottleneck": 4, "pre_norm": True, "activation": "relu", "text": False},
    "side-mlp": {"kind": "side", **SETTINGS["side"], "attention": False, "text": False},
}
ADAPTERS = {**{k: {"kind": k, **SETTINGS.get(k, {})} for k in KINDS}, **MORE}
# PEFT's tuners are many and enter all trunks alike: one of them is tried everywhere, the others on one layout, and how
# they learn elsewhere (test_unit_tuners).
PEFT = [n for n in ADAPTERS if n.startswith("peft:") and n != "peft:lora"]
OURS = [n for n in ADAPTERS if n not in PEFT]
MAPS = {"NHWC": "timm:test_mambaout", "NCHW": "timm:test_convnext"}
PEFTS_OWN = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "FutureWarning")]


def cases(names: list[str], *more: Any) -> list[Any]:
    return [pytest.param(n, *m, marks=PEFTS_OWN if n.startswith("peft:") else []) for n in names for m in more or ((),)]


def placed(name: str) -> bool:
    """Whether a variant of this adapter may name a placement."""
    return adapter_kind(ADAPTERS[name]["kind"]).placement_given


@cache
def on_maps(layout: str) -> dict[str, Encoder]:
    """The tiny encoders with another visual one."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        visual = load_encoder(MAPS[layout], modality="visual", weights="random", image_size=96)
    return {**tiny_encoders(), "visual": visual}


class Registered(AdapterTests):
    """The adapter that a test is parametrised with."""

    layout: ClassVar[str | None] = None

    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        self.adapter = ADAPTERS[name]  # type: ignore[misc]
        if name in PEFT:
            self.starts_as = TUNERS[name.removeprefix("peft:")].starts_as  # type: ignore[misc,assignment]


@pytest.mark.parametrize("name", cases(OURS))
class TestOurs(Registered):
    pass


@pytest.mark.parametrize("name", cases(PEFT))
class TestPeft(Registered):
    test_every_parameter_has_a_gradient = None  # type: ignore[assignment]  # test_unit_tuners


# An adapter is given tokens, whatever the layout: that its settings are other ones is seen on one of the ways as well.
ALL_WAYS = [n for n in OURS if n not in MORE]
WAYS = [("NHWC", "between"), ("NCHW", "between"), *((layout, "parallel") for layout in ("NLC", *MAPS))]


ON_WAYS = [
    *(p for p in cases(ALL_WAYS, *WAYS) if p.values[2] == "between" or placed(str(p.values[0]))),
    *(p for n in MORE for p in cases([n], ("NHWC", "parallel" if placed(n) else "between"))),
]


@pytest.mark.parametrize(("name", "layout", "placement"), ON_WAYS)
class TestOnOtherLayoutsAndBesideUnits(Registered):
    test_padding_changes_nothing = None  # type: ignore[assignment]  # of the text alone: as in TestOurs, these too
    test_saves_and_loads = None  # type: ignore[assignment]
    test_resumes = None  # type: ignore[assignment]
    test_tied_weights_stay_tied = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def _placed(self, layout: str, placement: Placement) -> None:
        self.layout, self.placement = layout, placement  # type: ignore[misc]
        visual = self.encoders()["visual"]
        state = noise_batch({"visual": visual}).states["visual"]
        states = [state := visual.run(state, k, k + 1) if k >= 0 else state for k in range(-1, visual.num_units)]
        # A unit that keeps the shape, so that an adapter may stand beside it, and that is not the last.
        shapes = [s.hidden.shape for s in states]
        unit = max(k for k in range(visual.num_units - 1) if shapes[k] == shapes[k + 1])
        assert states[unit].layout == layout
        count = 2 if placement == "between" else 1
        lists = {"visual": unit, "audio": 1, "text": 1}
        self.insertion = {m: tuple(range(k, k + count)) for m, k in lists.items()}  # type: ignore[misc]

    def encoders(self) -> Mapping[str, Encoder]:
        return tiny_encoders() if self.layout == "NLC" else on_maps(str(self.layout))


@pytest.fixture(scope="module")
def context(extracted: Path) -> ExperimentContext:
    return ExperimentContext(load_experiment(extracted))


@pytest.mark.parametrize("name", [n for n in ADAPTERS if not placed(n)])
def test_no_placement_beside_the_encoders_or_inside_units(context: ExperimentContext, name: str) -> None:
    insertion = dict.fromkeys(("visual", "audio", "text"), (1,))
    variant = VariantSettings(name="v", adapter=ADAPTERS[name], insertion=insertion, placement="parallel")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="remove placement"):
        context.build(variant, seed=0)
