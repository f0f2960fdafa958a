"""A head, a loss and a data set of one's own, found as `contract_parts:NAME`; and some that do not hold."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import torch
from torch import nn

from talik.extract.datasets.types import Clip, Manifest, Question


class Mean(nn.Module):
    def __init__(self, settings, dims, num_classes):
        super().__init__()
        self.linear = nn.ModuleDict({m: nn.Linear(d, num_classes) for m, d in dims.items()})

    def pooled(self, name, x, mask):
        if name != "text":
            return x.flatten(1, 2).mean(1)
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, features, text_mask):
        return sum(linear(self.pooled(m, features[m], text_mask)) for m, linear in self.linear.items())


class PaddingCounts(Mean):
    def pooled(self, name, x, mask):
        return x.flatten(1, -2).mean(1)


class Focal(nn.Module):
    @dataclass(frozen=True, kw_only=True)
    class Settings:
        gamma: float = 2.0

    def __init__(self, settings):
        super().__init__()
        self.gamma = settings.gamma

    def forward(self, logits, labels):
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")
        return ((1 - torch.exp(-loss)) ** self.gamma * loss).mean()


class Upside(Focal):
    def forward(self, logits, labels):
        return -super().forward(logits, labels)


def load_films(settings, *, root, base):
    clips, questions = {}, []
    with (root / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = row["film"]
            clips[name] = Clip(id=name, path=root / f"{name}.mp4")
            questions.append(
                Question(
                    id=name, clip_id=name, text="", answer=row["class"], type="all", template="", split=row["split"]
                )
            )
    return Manifest(name="films", root=root, clips=clips, questions=tuple(questions), answers=("a", "b"))
