"""All questions that a scene can answer, each with its true answer."""

from __future__ import annotations

from . import (
    audio_visual_templates,  # noqa: F401 (they fill the table of templates)
    single_modality_templates,  # noqa: F401 (they fill the table of templates)
)
from .evaluation_templates import family_candidates_of
from .question_templates import TEMPLATES, Candidate
from .scene import Scene

__all__ = ["TWO_ANSWERS", "Candidate", "candidates_of"]

TWO_ANSWERS = frozenset(
    template
    for template in TEMPLATES
    if template.startswith(("Is ", "Are ")) or template == "Where is the performance?"
)
"""The templates that only two answers fit."""


def candidates_of(scene: Scene) -> list[Candidate]:
    """Return every question that is decidable in the scene, in a fixed order; those of the two families last."""
    basic = [
        Candidate(type=short, template=template, values=values, answer=answer, weight=weight[0] if weight else 1.0)
        for template, (short, finder) in TEMPLATES.items()
        for values, answer, *weight in finder(scene)
    ]
    return basic + family_candidates_of(scene)
