"""Fuzz: damaged media files and mutated annotation files; counts what is reported, what decodes, and what goes wrong.

    python benchmarks/fuzz_media.py --videos 500 --annotations 500 --seed 0

Every file is opened by a worker process, which is given `--timeout` seconds. A file that takes longer is a hang, one
that ends the process is a crash, and any error but talik's own of one line is a traceback; all three are to be none. A
damaged file that decodes is compared with the whole one's result: a bit that the decoder itself does not notice is
noticed by the file's digest, once the whole file has been extracted, so that is counted too. Writes fuzz_media.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from talik.cache.format.digests import digest_file, digest_json
from talik.errors import TalikError
from talik.extract.datasets.describe import describe
from talik.extract.datasets.load import load_manifest
from talik.extract.datasets.settings import DataSettings
from talik.extract.media.decode import decode_clip

SECONDS, FPS, RATE = 2.0, 12, 16_000
#: Name and ending, picture's codec, sound's codec.
BASES = {
    "h264.mp4": ("libx264", "aac"),
    "h264.mkv": ("libx264", "flac"),
    "mpeg4.avi": ("mpeg4", "pcm_s16le"),
    "vp8.webm": ("libvpx", "libopus"),
    "mjpeg.mov": ("mjpeg", "pcm_s16le"),
    "h264.ts": ("libx264", "mp2"),
    "sound.wav": (None, "pcm_s16le"),
    "sound.mp3": (None, "libmp3lame"),
}
BAD = ("hang", "crash", "traceback")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--annotations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one file may take")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    found = fuzz(videos=options.videos, annotations=options.annotations, seed=options.seed, timeout=options.timeout)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    sys.exit(1 if any(found[kind]["counts"].get(bad) for kind in ("videos", "annotations") for bad in BAD) else 0)


def fuzz(*, videos: int, annotations: int, seed: int, timeout: float) -> dict[str, Any]:
    """Return the counts of both kinds, with the messages of whatever went wrong."""
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, Worker(timeout) as worker:
        folder = Path(name)
        return {
            "command": f"python benchmarks/fuzz_media.py --videos {videos} --annotations {annotations} --seed {seed}",
            "versions": {"python": platform.python_version(), "av": av.__version__},
            "videos": _fuzz_videos(folder, videos, rng, worker),
            "annotations": _fuzz_annotations(folder, annotations, rng, worker),
            "seconds": round(time.perf_counter() - started, 1),
        }


def _fuzz_videos(folder: Path, count: int, rng: np.random.Generator, worker: Worker) -> dict[str, Any]:
    bases = {name: make_clip(folder / name, *codecs) for name, codecs in BASES.items()}
    whole = {name: worker.ask({"media": str(path)}) for name, path in bases.items()}
    assert all(answer["outcome"] == "decoded" for answer in whole.values()), whole
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    for turn in range(count):
        name = list(bases)[turn % len(bases)]
        data = damage(bases[name].read_bytes(), rng, cut=turn // len(bases) % 2 == 0)
        path = folder / f"damaged-{name}"
        path.write_bytes(data)
        answer = worker.ask({"media": str(path)})
        outcome = answer["outcome"]
        if outcome == "decoded":
            same = answer["digest"] == whole[name]["digest"]
            outcome = "decoded, the same result" if same else "decoded, another result"
            tally["of those decoded: noticed by the file's digest"] += digest_file(path) != digest_file(bases[name])
        elif outcome in BAD:
            wrong.append(f"{name}: {answer.get('message', outcome)}")
        tally[outcome] += 1
    return {"count": count, "counts": dict(sorted(tally.items())), "wrong": wrong[:20]}


def _fuzz_annotations(folder: Path, count: int, rng: np.random.Generator, worker: Worker) -> dict[str, Any]:
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    sets = list(_write_sets(folder))
    for turn in range(count):
        dataset, root, path = sets[turn % len(sets)]
        original = path.read_bytes()
        path.write_bytes(mutate(original, rng, cut=turn // len(sets) % 4 == 0))
        answer = worker.ask({"dataset": dataset, "root": str(root)})
        path.write_bytes(original)
        outcome = "loaded" if answer["outcome"] == "decoded" else answer["outcome"]
        if outcome in BAD:
            wrong.append(f"{dataset}: {answer.get('message', outcome)}")
        tally[outcome] += 1
    return {"count": count, "counts": dict(sorted(tally.items())), "wrong": wrong[:20]}


def damage(data: bytes, rng: np.random.Generator, *, cut: bool) -> bytes:
    """Return a file cut off at a random place, or with one to forty bits flipped."""
    if cut:
        return data[: int(rng.integers(0, len(data)))]
    flipped = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(flipped), size=int(rng.choice([1, 2, 8, 40])))
    flipped[places] ^= (1 << rng.integers(0, 8, size=len(places))).astype(np.uint8)
    return flipped.tobytes()


def mutate(data: bytes, rng: np.random.Generator, *, cut: bool) -> bytes:
    """Return an annotation file with some bytes replaced, by any or by what means something, and perhaps cut off."""
    changed = bytearray(data)
    if cut:
        del changed[int(rng.integers(0, len(changed))) :]
    meaning = np.frombuffer(b'"[]{},:\\0-&|\n', np.uint8)
    for place in rng.integers(0, max(len(changed), 1), size=int(rng.integers(1, 6))) if changed else ():
        changed[place] = int(rng.integers(0, 256)) if rng.random() < 0.5 else int(rng.choice(meaning))
    return bytes(changed)


def make_clip(path: Path, video: str | None, audio: str) -> Path:
    """Write a clip of moving stripes and noise."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as out:
        if video is not None:
            stream = out.add_stream(video, rate=FPS)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
        track = out.add_stream(audio, rate=48_000, layout="stereo")
        for number in range(round(SECONDS * FPS) if video is not None else 0):
            picture = np.full((48, 64, 3), 40, np.uint8)
            picture[:, 2 * number : 2 * number + 12] = 210
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        if video is not None:
            out.mux(stream.encode(None))
        samples = rng.uniform(-0.5, 0.5, (2, round(SECONDS * 48_000))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, 0
        context = track.codec_context
        resampler = av.AudioResampler(context.format, "stereo", 48_000, frame_size=context.frame_size or 1024)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(track.encode(part))
        out.mux(track.encode(None))
    return path


def _write_sets(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Write a small data set of each kind; yield its name, its root, and the file that is mutated."""
    kinds = [("Audio", "Counting"), ("Visual", "Location"), ("Audio-Visual", "Temporal")]
    music = [
        {"video_id": f"{i:08d}", "question_id": i, "type": json.dumps(kinds[i % 3]), "templ_values": '["violin"]',
         "question_content": "Is there a <Object> sound？", "question_deleted": 0, "anser": "yes"}
        for i in range(6)
    ]  # fmt: skip
    choice = [
        {"id": i, "video_name": f"v{i}", "question_text": "what ?", "multi_choice": ["a", "b", "c"], "answer": i % 3}
        for i in range(6)
    ]
    lines = [{"clip": f"c{i}", "question": "what?", "answer": "yes", "split": "train"} for i in range(6)]
    listing = "".join(f"Bark&clip{i}&good&{i}&10\n" for i in range(6))
    table = "clip,labels,split\n" + "".join(f"c{i},dog|background,train\n" for i in range(6))
    written: dict[str, tuple[str, dict[str, str], str]] = {
        "music": (
            "music-avqa",
            {f"avqa-{s}.json": json.dumps(music) for s in ("train", "val", "test")},
            "avqa-test.json",
        ),
        "ave": ("ave", {f"{s}Set.txt": listing for s in ("train", "val", "test")}, "trainSet.txt"),
        "avqa": ("avqa", {f"{s}_qa.json": json.dumps(choice) for s in ("train", "val")}, "val_qa.json"),
        "lines": ("manifest", {"manifest.jsonl": "\n".join(map(json.dumps, lines))}, "manifest.jsonl"),
        "table": ("manifest", {"manifest.csv": table}, "manifest.csv"),
    }
    for name, (dataset, files, mutated) in written.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text, encoding="utf-8")
        yield dataset, folder / name, folder / name / mutated


class Worker:
    """A process that opens one file after another; it is started anew when it hangs or dies.

    Args:
        timeout: seconds that one file may take.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, question: dict[str, str]) -> dict[str, Any]:
        """Return what came of one file: its outcome, and a digest or a message."""
        if self.process is None:
            command = [sys.executable, __file__, "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
            )
            self._line(120.0)  # it has started
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        line = self._line(self.timeout)
        if line is None:
            self._stop()
            return {"outcome": "hang", "message": f"no answer within {self.timeout:g} s"}
        if not line:
            code = self.process.wait()
            self._stop()
            return {"outcome": "crash", "message": f"the process ended with {code}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _line(self, timeout: float) -> str | None:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        return self.process.stdout.readline() if ready else None

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
        self.process = None


def work() -> None:
    """Answer questions, one JSON line each, until there are no more."""
    print("{}", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        task: Callable[[], str] = (
            (lambda q=question: _decode(q["media"])) if "media" in question else (lambda q=question: _load(q))
        )
        try:
            answer = {"outcome": "decoded", "digest": task()}
        except TalikError as error:
            message = str(error)
            named = Path(question["media"]).name in message if "media" in question else True
            fine = "\n" not in message and named and len(message) < 2000
            answer = {"outcome": "reported" if fine else "traceback", "message": message}
        except BaseException:
            answer = {"outcome": "traceback", "message": traceback.format_exc()[-1500:]}
        print(json.dumps(answer), flush=True)


def _decode(path: str) -> str:
    media = decode_clip(
        path, num_segments=4, window_seconds=0.5, sample_rate_hz=RATE, missing_sound="silence", missing_picture="black"
    )
    assert media.frames is not None
    assert media.waveforms is not None
    assert np.isfinite(media.waveforms).all()
    return digest_json([media.frames.tobytes().hex(), media.waveforms.tobytes().hex()])


def _load(question: dict[str, str]) -> str:
    settings = DataSettings(dataset=question["dataset"], root=question["root"], segments=2, allow_missing=True)
    manifest = load_manifest(settings, base=Path("/"))
    known = set(manifest.answers)
    assert all({q.answer, *q.labels, *q.choices} <= {*known, ""} for q in manifest.questions)
    return digest_json(describe(manifest))


if __name__ == "__main__":
    main()
