"""Contract tests of a head and of a loss of one's own, run with pytest on random features.

    import mine  # registers "mean" and "focal"
    from talik.testing import HeadTests, LossTests

    class TestMean(HeadTests):
        head = {"kind": "mean"}

    class TestFocal(LossTests):
        loss = {"kind": "focal", "gamma": 1.0}

Letters: B items, T segments, N tokens, L text tokens, D channels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ..adapt.model.registry import HEADS, LOSSES, make_part

NUM_CLASSES, NUM_ITEMS, NUM_SEGMENTS, NUM_TOKENS, NUM_WORDS = 4, 3, 2, 5, 6


class HeadTests:
    """Contract of a head; derive from it and set `head`.

    Attributes:
        head: the table `[task] head`: the kind and its settings.
        dims: channels D of each modality that the head is built for.
        by_segment: whether it gives logits of each segment, (B, T, C), as tasks by segment want.
        reads_text: whether the text is among the features; not in tasks without questions.
    """

    head: ClassVar[Mapping[str, Any]]
    dims: ClassVar[Mapping[str, int]] = {"visual": 24, "audio": 32, "text": 16}
    by_segment: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True

    def build(self, seed: int = 0) -> nn.Module:
        """Return the head, its weights drawn by a seed."""
        torch.manual_seed(seed)
        dims = {m: d for m, d in self.dims.items() if m != "text" or self.reads_text}
        return make_part(HEADS, self.head, dims, NUM_CLASSES, where="head").eval()

    def features(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return random features, visual and audio (B, T, N, D), text (B, L, D), and the text's mask (B, L)."""
        noise = torch.Generator().manual_seed(1)
        made = {
            m: torch.randn(NUM_ITEMS, NUM_SEGMENTS, NUM_TOKENS, d, generator=noise)
            for m, d in self.dims.items()
            if m != "text"
        }
        if not self.reads_text or "text" not in self.dims:
            return made, None
        made["text"] = torch.randn(NUM_ITEMS, NUM_WORDS, self.dims["text"], generator=noise)
        lengths = torch.tensor([NUM_WORDS, NUM_WORDS - 2, 1])
        return made, torch.arange(NUM_WORDS) < lengths[:, None]

    def test_it_gives_finite_logits_of_every_class(self) -> None:
        """Logits (B, C), or (B, T, C) by segment."""
        logits = self.build()(*self.features())
        segments = (NUM_SEGMENTS,) if self.by_segment else ()
        assert tuple(logits.shape) == (NUM_ITEMS, *segments, NUM_CLASSES)
        assert torch.isfinite(logits).all()

    def test_every_parameter_is_trained(self) -> None:
        """Each parameter gets a gradient from the sum of squares of the logits."""
        head = self.build()
        head(*self.features()).square().sum().backward()
        without = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []

    def test_an_item_alone_has_the_logits_that_it_has_in_a_batch(self) -> None:
        """Neither the rest of the batch nor the padding of its text matters."""
        head, (features, mask) = self.build(), self.features()
        together = head(features, mask)
        for i in range(NUM_ITEMS):
            own = {m: x[i : i + 1] for m, x in features.items()}
            alone = None if mask is None else mask[i : i + 1]
            if alone is not None:
                length = int(alone.sum())
                own["text"], alone = own["text"][:, :length], alone[:, :length]
            torch.testing.assert_close(head(own, alone)[0], together[i], rtol=1e-4, atol=1e-5)

    def test_equal_seeds_give_equal_weights_and_what_is_saved_loads(self) -> None:
        """Weights depend on torch's random state alone, and all of them are in the state dict."""
        first, second, other = self.build(), self.build(), self.build(seed=1)
        weights = first.state_dict()
        for name, value in second.state_dict().items():
            assert torch.equal(weights[name], value)
        other.load_state_dict(weights)
        assert torch.equal(other(*self.features()), first(*self.features()))


class LossTests:
    """Contract of a loss; derive from it and set `loss`.

    Attributes:
        loss: the table `[train] loss`: the kind and its settings.
        by_segment: whether it is given logits (B, T, C) and classes (B, T), as in tasks by segment.
    """

    loss: ClassVar[Mapping[str, Any]]
    by_segment: ClassVar[bool] = False

    def build(self) -> nn.Module:
        """Return the loss."""
        return make_part(LOSSES, self.loss, where="loss")

    def labels(self) -> Tensor:
        """Return true classes, (B,) or (B, T) int64."""
        shape = (NUM_ITEMS, NUM_SEGMENTS) if self.by_segment else (NUM_ITEMS,)
        return torch.arange(NUM_ITEMS * (NUM_SEGMENTS if self.by_segment else 1)).reshape(shape) % NUM_CLASSES

    def logits(self, labels: Tensor, *, right: float) -> Tensor:
        """Return logits that are `right` at the true classes and 0 elsewhere, with a little noise."""
        noise = torch.randn(*labels.shape, NUM_CLASSES, generator=torch.Generator().manual_seed(2))
        return right * nn.functional.one_hot(labels, NUM_CLASSES) + 0.1 * noise

    def test_it_is_a_finite_number_with_a_finite_gradient(self) -> None:
        """A scalar, whose gradient reaches the logits."""
        labels = self.labels()
        logits = self.logits(labels, right=1.0).requires_grad_()
        loss = self.build()(logits, labels)
        assert loss.shape == ()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0

    def test_it_is_lower_where_the_answers_are_right(self) -> None:
        """Confident right answers cost less than confident wrong ones."""
        loss, labels = self.build(), self.labels()
        right = loss(self.logits(labels, right=4.0), labels)
        wrong = loss(self.logits((labels + 1) % NUM_CLASSES, right=4.0), labels)
        assert right < wrong

    def test_the_order_of_the_questions_does_not_matter(self) -> None:
        """The same questions in another order cost the same."""
        loss, labels = self.build(), self.labels()
        logits, order = self.logits(labels, right=1.0), torch.arange(NUM_ITEMS).flip(0)
        torch.testing.assert_close(loss(logits[order], labels[order]), loss(logits, labels))

    def test_it_has_nothing_to_train(self) -> None:
        """What is trained is the adapter's and the head's."""
        assert [name for name, p in self.build().named_parameters() if p.requires_grad] == []

    def test_it_is_refused_with_keys_that_it_does_not_have(self) -> None:
        """Its settings are a dataclass, whose keys are checked."""
        from ..errors import SettingsError

        with pytest.raises(SettingsError, match="unknown key"):
            make_part(LOSSES, {**self.loss, "no_such_key": 1}, where="loss")
