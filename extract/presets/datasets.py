"""The `[data]` table of each data set's experiment file, and how many clips the set has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """What a preset's file says of a data set.

    Args:
        table: the lines of `[data]`, up to `segments`.
        num_clips: of the set as published; 1000 where nobody can know.
        seconds: of one clip.
        kind: the task.
        asks: whether there are questions, and so a text encoder.
        segments: T.
        instants: the lines that say where in a clip its segments lie; a preset may add to them.
        splits: questions of each split, where the set's paper gives them; {} otherwise.
        num_answers, num_texts, num_words: answers to choose from; distinct questions, and words of one (punctuation
            counts), as its annotation files have them.
    """

    table: str
    num_clips: int
    seconds: float
    kind: Literal["answers", "classes", "events"]
    asks: bool
    segments: int = 10
    instants: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    num_answers: int = 0
    num_texts: int = 0
    num_words: int = 0


MUSIC_AVQA = """\
[data]
dataset = "music-avqa"
root = "MUSIC-AVQA"               # a clone of github.com/GeWu-Lab/MUSIC-AVQA with the clips, <id>.mp4, in data/video or
# in the folders that the two archives unpack to there; or a folder with the clips in it, or in folders in it, and with
# avqa-train.json, avqa-val.json and avqa-test.json in it or in its `annotations` folder.
release = "updated"               # of the annotations, data/json_update of the clone; or "original", "real",
# "synthetic", "v2.0-balanced", "v2.0-biased", "r" (MUSIC-AVQA-R: rephrased questions; frequent and rare answers apart)
# allow_missing = true            # go on without the clips that you could not get
# frames_fps = 8                  # for extracted frames (<id>/*.jpg) and sound (<id>.wav) in place of mp4
split = "official"                # shares clips between splits; "by-video" deals the same questions without a leak
"""

AVE = """\
[data]
dataset = "ave"
root = "AVE_Dataset"              # holds trainSet.txt, valSet.txt and testSet.txt, and the clips in AVE/<id>.mp4
"""

AVE_INSTANTS = """\
stride_seconds = 1.0              # labels count seconds of the clip, also of one that lasts less than 10 s
"""

AVQA = """\
[data]
dataset = "avqa"
root = "AVQA"                     # holds train_qa.json and val_qa.json, and the clips: <video_name>.mp4 in any folder
"""

MANIFEST = """\
[data]
dataset = "manifest"
root = "."                        # holds manifest.jsonl or manifest.csv and the clips
# One record a line: clip, question, answer, type, split, as in
#   {"clip": "videos/a.mp4", "question": "Is there a drum?", "answer": "yes", "type": "audio", "split": "train"}
# Several right answers are a list: "answers": ["red", "dark red"]; with task.kind = "multi-label" all are to be given.
# Without questions it is classification (task.kind = "classes", and no [encoders.text]); with `labels`, a list of one
# class for each segment, in place of `answer` it is localisation (task.kind = "events").
"""

DEMO = """\
[data]
dataset = "demo"
root = "set"                      # made by: talik demo make set
"""

EVALUATION = """\
[data]
dataset = "manifest"
root = "set"                      # made by: talik demo make set --set evaluation
columns = ["family", "type_and_family", "deciding_segments"]
type_column = "type_and_family"   # tables by type and family; "type" for the nine types alone, "family" for three rows
"""

DATA: Mapping[str, DataPart] = {
    "music-avqa": DataPart(
        table=MUSIC_AVQA,
        num_clips=9_288,
        seconds=60.0,
        kind="answers",
        asks=True,
        splits={"train": 32_087, "val": 4_595, "test": 9_185},
        num_answers=42,
        num_texts=2_138,
        num_words=10,
    ),
    "ave": DataPart(table=AVE, instants=AVE_INSTANTS, num_clips=4_143, seconds=10.0, kind="events", asks=False),
    "avqa": DataPart(table=AVQA, num_clips=57_015, seconds=10.0, kind="answers", asks=True),
    "manifest": DataPart(table=MANIFEST, num_clips=1_000, seconds=10.0, kind="answers", asks=True),
    "demo": DataPart(table=DEMO, num_clips=240, seconds=8.0, kind="answers", asks=True),
    "evaluation": DataPart(table=EVALUATION, num_clips=2_000, seconds=24.0, kind="answers", asks=True, segments=16),
}
