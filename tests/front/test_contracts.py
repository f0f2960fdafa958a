"""The contract tests that users derive from hold for what is right, and fail for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from talik.testing import DatasetTests, HeadTests, LossTests, ModelSourceTests
from talik.user_code import import_user_code


@pytest.fixture(autouse=True)
def _beside() -> None:
    import_user_code([], Path(__file__).parent)


class TestMean(HeadTests):
    head: ClassVar[dict[str, Any]] = {"kind": "contract_parts:Mean"}


class TestMeanWithoutQuestions(TestMean):
    reads_text = False


class TestFocal(LossTests):
    loss: ClassVar[dict[str, Any]] = {"kind": "contract_parts:Focal", "gamma": 1.0}


class TestFilms(DatasetTests):
    data: ClassVar[dict[str, Any]] = {"dataset": "contract_parts:load_films", "root": "films"}

    def base(self, tmp_path: Path) -> Path:
        folder = tmp_path / "films"
        folder.mkdir(exist_ok=True)
        (folder / "labels.csv").write_text("film,class,split\nx,a,train\ny,b,test\n", encoding="utf-8")
        for name in ("x", "y"):
            (folder / f"{name}.mp4").write_bytes(b"")
        return tmp_path


class TestTimm(ModelSourceTests):
    model = "timm:test_vit"
    options: ClassVar[dict[str, Any]] = {"weights": "random"}


def test_a_head_that_padding_changes_does_not_hold() -> None:
    contract = TestMean()
    contract.head = {"kind": "contract_parts:PaddingCounts"}  # type: ignore[misc]
    contract.test_it_gives_finite_logits_of_every_class()
    with pytest.raises(AssertionError):
        contract.test_an_item_alone_has_the_logits_that_it_has_in_a_batch()


def test_a_loss_that_rewards_mistakes_does_not_hold() -> None:
    contract = TestFocal()
    contract.loss = {"kind": "contract_parts:Upside"}  # type: ignore[misc]
    contract.test_it_is_a_finite_number_with_a_finite_gradient()
    with pytest.raises(AssertionError):
        contract.test_it_is_lower_where_the_answers_are_right()


def test_a_source_whose_weights_differ_each_time_does_not_hold() -> None:
    contract, torch_seed = TestTimm(), iter(range(2))
    load = contract.load

    def other() -> Any:
        encoder = load()
        with torch.no_grad():
            next(encoder.units[0].parameters()).add_(next(torch_seed))
        return encoder

    contract.load = other  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        contract.test_opening_it_again_gives_the_same_identity()
