"""Stage 1 end to end, against decoding alone and the bare prefix forward on tensors in memory, in one interleaved run.

    python benchmarks/extract.py --clips 120 --repeats 3

Where decoder and encoders share the cores (a CPU), the bound is decoding and forward one after the other; on a GPU it
is the slower of the two. Clips are the demo set's, made in the folder given by --work (kept for the next run). The
result is printed, and written to benchmarks/extract.md with --write.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from talik.cache.format.digests import digest_file
from talik.demo.make import make_demo
from talik.extract.datasets.load import load_manifest
from talik.extract.encoders.encoder import Encoder
from talik.extract.executors.device import machine_name
from talik.extract.media.clip_media import ClipMedia
from talik.extract.media.decode import iter_media
from talik.extract.stage.extract import extract
from talik.extract.stage.prefix import open_encoder
from talik.extract.stage.sampling import sampling_of
from talik.extract.stage.settings import ExtractSettings, extract_settings

EXPERIMENT = {
    "encoders": {
        "visual": {"model": "pip:dinov2-small", "image_size": 98, "cut": -1},
        "audio": {"model": "pip:whisper-tiny.en", "window_seconds": 1.0, "cut": -1},
    },
    "store": {"path": "features.zarr", "dtype": "float16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=None, help="folder for the clips, kept; a temporary one if absent")
    parser.add_argument("--write", action="store_true", help="write benchmarks/extract.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        make_demo(work / "set", num_clips=args.clips)
        text = measure(work, args.segments, args.repeats, args.device)
    print(text)
    if args.write:
        command = f"python benchmarks/extract.py --clips {args.clips} --repeats {args.repeats} --device {args.device}"
        page = f"# Stage 1 end to end\n\n`{command}`\n\n```\n{text}\n```\n"
        Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")


def measure(work: Path, segments: int, repeats: int, device: str) -> str:
    data = {"dataset": "demo", "root": "set", "segments": segments}
    settings = extract_settings({**EXPERIMENT, "data": data}, path=work / "bench.toml")
    encoders = {m: open_encoder(s, modality=m, device=device, base=settings.base) for m, s in settings.encoders.items()}
    sampling = sampling_of(settings, encoders)
    manifest = load_manifest(settings.data, base=settings.base)
    paths = [c.path for c in manifest.clips.values() if c.path is not None]
    wanted = sampling.media_settings(set(encoders), encoders)
    media = [o.media for o in iter_media(paths, wanted) if o.media is not None]
    per_forward = {m: max(1, getattr(settings.encoders, m).batch_size // segments) for m in encoders}

    def inputs(encoder: Encoder) -> list[dict[str, Tensor]]:
        count = per_forward[encoder.modality]
        groups: list[list[ClipMedia]] = [media[i : i + count] for i in range(0, len(media), count)]
        return [sampling.inputs(encoder, group) for group in groups]

    ready = {m: [{k: v.to(device) for k, v in i.items()} for i in inputs(e)] for m, e in encoders.items()}
    times: dict[str, list[float]] = {}

    def timed(name: str, started: float) -> None:
        times.setdefault(name, []).append(time.perf_counter() - started)

    for _ in range(repeats):
        started = time.perf_counter()
        for _outcome in iter_media(paths, wanted):
            pass
        timed("decoding alone", started)
        started = time.perf_counter()
        for encoder in encoders.values():
            inputs(encoder)
        timed("preprocessing alone", started)
        started = time.perf_counter()
        with torch.no_grad():
            for modality, encoder in encoders.items():
                for batch in ready[modality]:
                    encoder.run(encoder.embed(batch), 0, encoder.num_units - 1)
        if device != "cpu":
            torch.cuda.synchronize()
        timed("bare prefix forward", started)
        started = time.perf_counter()
        for path in paths:
            digest_file(path)
        timed("digests of the files", started)
        started = time.perf_counter()
        extract_once(settings, device)
        timed("stage 1 end to end", started)
    return lines(times, len(paths), device)


def extract_once(settings: ExtractSettings, device: str) -> None:
    shutil.rmtree(settings.store_path, ignore_errors=True)
    extract(settings, device=device, progress=False)
    shutil.rmtree(settings.store_path, ignore_errors=True)


def lines(times: dict[str, list[float]], num_clips: int, device: str) -> str:
    middle = {name: statistics.median(t) for name, t in times.items()}
    whole = middle["stage 1 end to end"]
    parts = (middle["decoding alone"], middle["bare prefix forward"])
    bound = sum(parts) if device == "cpu" else max(parts)
    shown = [
        f"{machine_name(device)}; {num_clips} clips, medians of {len(times['stage 1 end to end'])} interleaved runs"
    ]
    shown += [
        f"{name:22s} {1e3 * seconds / num_clips:8.1f} ms a clip   {100 * seconds / whole:5.1f} % of stage 1"
        for name, seconds in middle.items()
    ]
    kind = "decoding and forward one after the other" if device == "cpu" else "the slower of decoding and forward"
    shown.append(f"stage 1 runs at {bound / whole:.2f} of the bound ({kind})")
    return "\n".join(shown)


if __name__ == "__main__":
    main()
