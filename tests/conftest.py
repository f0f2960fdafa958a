"""Shared by all rooms: tiny encoders with fixed weights, and a small made data set with its experiment."""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from talik.extract.encoders.pretrained_encoder import PretrainedEncoder
    from talik.extract.stage.settings import EncoderSettings

WORDS = "[PAD] [UNK] [CLS] [SEP] is the in video how many instruments are sounding left right violin piano ? first a"

#: The files that take longest, begun first, so that no worker waits at the end for another's (`--dist loadfile`).
LONGEST = (
    "test_adapters_hold.py",
    "test_one_bad_variant.py",
    "test_distributed.py",
    "test_filling.py",
    "test_object_storage.py",
    "test_fused.py",
    "test_engine_ray.py",
    "test_engine_local.py",
    "test_docstrings.py",
    "test_precision.py",
    "test_stop_signals.py",
    "test_adapt_train.py",
    "test_terminals.py",
    "test_plan.py",
    "test_engine_slurm.py",
    "test_stacked.py",
    "test_store_contract.py",
    "test_adapt_demo.py",
    "test_experiment_file.py",
    "test_report_write.py",
    "test_scan_triton.py",
    "test_training_options.py",
    "test_sweep_engines.py",
    "test_sweep_kills.py",
    "test_halving.py",
    "test_batched_members.py",
    "test_run_data.py",
    "test_run_list.py",
    "test_decode_pool.py",
    "test_site.py",
    "test_presets.py",
    "test_extending.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


def pytest_configure(config: pytest.Config) -> None:
    """Have `device="auto"` be the CPU on every machine, but where the tests that need a GPU are asked for."""
    if "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks


def pytest_collection_finish() -> None:
    """Have the garbage collector leave out all that was imported: looking through it takes a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free at its end what it would without us; libraries complain of leaks otherwise."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def no_flush() -> Iterator[None]:
    """Leave fsync out: it protects from a power cut, which no test makes, and takes long on most disks.

    Where the calls stand is what tests/cache/test_store_kill.py looks at. Processes that a test starts do flush.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def opened_encoders() -> Iterator[None]:
    """Let experiments that train or evaluate share the encoders opened before, which takes a third of a short training.

    An encoder is frozen. It is shared where a folder of the same content decides all of it. Extraction, other processes
    and `talik.load_encoder` open anew.
    """
    context = sys.modules.get("talik.adapt.training.experiment_context")
    prefix = sys.modules.get("talik.extract.stage.prefix")
    if context is None or prefix is None:  # imported by no test's module
        yield
        return
    real, load, known = context.open_encoder, prefix.load_encoder, dict[Any, "PretrainedEncoder"]()

    def opened(settings: EncoderSettings, *, base: Path = Path(), **options: Any) -> PretrainedEncoder:
        folder = base / settings.model.removeprefix("hf:").partition("#")[0]
        in_own_way = prefix.load_encoder is not load  # a test's
        if in_own_way or settings.weights or settings.trust_remote_code or not folder.is_dir():
            return real(settings, base=base, **options)
        files = [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]
        key = settings, *sorted(options.items()), *((name, hashlib.sha256(held).digest()) for name, held in files)
        found = known.get(key) or real(settings, base=base, **options)
        if found.read_from is not None:  # nothing but these files decides
            known[key] = found
        return copy.copy(found)  # with its own preprocessing, which `follow_store` may change

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "open_encoder", opened)
        yield


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of three tiny transformers models with fixed random weights: DINOv2, Whisper, BERT."""
    import torch
    import transformers as hf

    root = tmp_path_factory.mktemp("encoders")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        picture = hf.Dinov2Config(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
        )
        hf.Dinov2Model(picture).save_pretrained(root / "visual")
        sound = hf.WhisperConfig(
            d_model=32,
            encoder_layers=3,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_mel_bins=16,
            max_source_positions=50,
            vocab_size=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        hf.WhisperModel(sound).save_pretrained(root / "audio")
        text = hf.BertConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=len(WORDS.split()),
        )
        hf.BertModel(text).save_pretrained(root / "text")
    hf.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(root / "visual")
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(root / "audio")
    (root / "vocab.txt").write_text("\n".join(WORDS.split()), encoding="utf-8")
    hf.BertTokenizerFast(vocab_file=str(root / "vocab.txt")).save_pretrained(root / "text")
    return {modality: root / modality for modality in ("visual", "audio", "text")}


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made set of eight clips; tests that change it copy it first."""
    from talik.demo.make import make_demo

    folder = tmp_path_factory.mktemp("demo") / "set"
    make_demo(folder, num_clips=8, seed=0, workers=1, progress=False)
    return folder


EXPERIMENT = """
[data]
dataset = "demo"
root = "{root}"
segments = 3

[encoders.visual]
model = "hf:{visual}"
image_size = 28
fit = "stretch"
cut = [1, 3]

[encoders.audio]
model = "hf:{audio}#encoder"
window_seconds = 0.4
cut = [1, 3]

[encoders.text]
model = "hf:{text}"
cut = [1, 3]

[store]
dtype = "float32"

[task]
d_head = 16
num_heads = 2

[train]
epochs = 2
batch_size = 8
eval_batch_size = 8
num_threads = 1

[[variants]]
name = "probe"
adapter = {{ kind = "probe" }}

[[variants]]
name = "trimodal"
insertion = "last 1"
adapter = {{ kind = "trimodal", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2 }}
"""


def experiment_text(root: Path, encoders: dict[str, Path]) -> str:
    """The experiment on a made set and the tiny encoders."""
    return EXPERIMENT.format(root=root, **encoders)


@pytest.fixture
def write_experiment(tmp_path: Path, demo_set: Path, tiny_encoders: dict[str, Path]) -> Callable[..., Path]:
    """Write an experiment on the made set and the tiny encoders; pairs of old and new text change it."""

    def write(*changes: tuple[str, str], root: Path | None = None) -> Path:
        text = experiment_text(root or demo_set, tiny_encoders)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "exp.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory, demo_set: Path, tiny_encoders: dict[str, Path]) -> Path:
    """The experiment with its store filled; for tests that only read, or that train variants of their own name."""
    from talik.extract.stage.extract import extract

    path = tmp_path_factory.mktemp("extracted") / "exp.toml"
    path.write_text(experiment_text(demo_set, tiny_encoders), encoding="utf-8")
    extract(path, progress=False)
    return path


@pytest.fixture(scope="session")
def on_store(extracted: Path) -> Callable[..., Path]:
    """Write the experiment to another file, on the store that is there.

    Pairs of old and new text change it, and `more` is added at its end. Its runs stand beside the file.
    """
    store = f'dtype = "float32"\npath = "{extracted.with_name("features.zarr")}"'
    whole = extracted.read_text(encoding="utf-8").replace('dtype = "float32"', store)

    def write(path: Path, *changes: tuple[str, str], more: str = "") -> Path:
        text = whole
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + more, encoding="utf-8")
        return path

    return write


_S3 = """
import json, sys, threading
from base64 import b64decode
from pathlib import Path
from moto.moto_api import recorder as moto_recorder
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import Client

port, journal = int(sys.argv[1]), Path(sys.argv[2])
app = DomainDispatcherApplication(create_backend_app)
moto_recorder.stop_recording()
client = Client(app)
for line in journal.read_text().splitlines() if journal.exists() else ():
    entry = json.loads(line)
    body = b64decode(entry["body"]) if entry["body_encoded"] else entry["body"]
    client.open(entry["url"], method=entry["method"], headers=entry["headers"], data=body)
record, guard = type(moto_recorder)._record_request, threading.Lock()
def alone(recorder, request, body=None):
    with guard:
        if request.method not in ("GET", "HEAD"):
            record(recorder, request, body)
type(moto_recorder)._record_request = alone
moto_recorder.start_recording()
run_simple("127.0.0.1", port, app, threaded=True)
"""


class S3Server:
    """moto's S3 server in a process of its own, with a journal on the disk: killed, it comes back with what it had.

    The journal is moto's own recording of requests, replayed into it before its port opens. Uploads in parts get other
    numbers on replay, so a test that kills keeps its objects below the size of a part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.num_buckets = 0
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "MOTO_RECORDER_FILEPATH": str(self._folder / "journal")}
        command = [sys.executable, "-c", _S3, str(self.port), str(self._folder / "journal")]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < until, (self._folder / "log").read_text()
                assert self._process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.05)

    def clear(self) -> None:
        """Run, with nothing in it and nothing in the journal."""
        if self._process is None:
            (self._folder / "journal").unlink(missing_ok=True)
            self.start()
        else:
            for path in ("reset", "recorder/reset-recording"):
                self._ask("POST", f"moto-api/{path}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def bucket(self) -> str:
        """Make a new bucket and return its URL."""
        self.num_buckets += 1
        self._ask("PUT", f"talik{self.num_buckets}")
        return f"s3://talik{self.num_buckets}"

    def _ask(self, method: str, path: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{path}", method=method)).close()


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests that want one."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'talik[object-storage]'")
    pytest.importorskip("moto", reason="moto is not installed: pip install 'talik[test]'")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server, running, with its credentials in the environment; caches go to the test's own folder."""
    s3_process.clear()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": s3_process.endpoint,
        "AWS_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "user-cache"),
    }.items():
        monkeypatch.setenv(name, value)
    return s3_process
