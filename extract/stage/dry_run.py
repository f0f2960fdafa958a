"""`talik extract --dry-run`: what stage 1 would compute and store, in items, bytes and time; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...cache.atomic_io import free_bytes
from ...cache.feature_store import FeatureStore
from ...cache.folder_store import FolderStore, is_vacant
from ...cache.object_storage.address import is_object_url
from ...cache.write.outline import BoundaryOutline, outline_boundary
from ...errors import NoStoreError, counted
from ...formats import readable_bytes, readable_seconds
from ..datasets.load import load_manifest
from ..executors.device import chosen_device, machine_name, say_device
from ..executors.settings import EngineSettings
from ..executors.threads import torch_threads
from ..trunk.exact_float32 import exact_float32
from .expected_time import ExpectedTime, Work, expected_time
from .experiment_file import ExperimentSource
from .items import ClipDigests, failed_clip_record
from .plan import StateRequest, request_states, without_stateless
from .settings import ExtractSettings, RunOptions, plan_path, wanted_settings


@dataclass(frozen=True, kw_only=True)
class ExtractOutline:
    """What an extraction would do.

    Attributes:
        boundaries: each that the experiment names, with what of it is missing.
        num_clips, num_texts: that would be decoded, or tokenized, and run through the encoders: each once.
        free_bytes: on the disk of the store now; None of a store in object storage.
        expected: how long it would take; None where nothing on this machine tells.
        unread: files that the store does not remember and that were not read: each counts as missing.
        skipped: (source, reason) of what has no states and would be left out.
    """

    boundaries: tuple[BoundaryOutline, ...]
    num_clips: int
    num_texts: int
    free_bytes: int | None
    expected: ExpectedTime | None
    unread: int = 0
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that would be written."""
        return sum(one.size_bytes for one in self.boundaries)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for them, as far as that is known."""
        return self.free_bytes is None or self.size_bytes <= self.free_bytes

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "boundaries": [
                {
                    "path": one.spec.path,
                    "dtype": one.spec.dtype,
                    "shape": list(one.spec.shape),
                    "items": one.num_items,
                    "stored": one.num_stored,
                    "missing": len(one.missing),
                    "rows": one.num_rows,
                    "shards": one.num_shards,
                    "hidden_bytes": one.hidden_bytes,
                    "size_bytes": one.size_bytes,
                }
                for one in self.boundaries
            ],
            "clips": self.num_clips,
            "texts": self.num_texts,
            "size_bytes": self.size_bytes,
            "free_bytes": self.free_bytes,
            "fits": self.fits,
            "expected": None if self.expected is None else asdict(self.expected),
            "unread": self.unread,
            "skipped": [list(one) for one in self.skipped],
        }

    def lines(self) -> list[str]:
        """Say all of it in lines of text."""
        lines = [f"left out {source}: {reason}" for source, reason in self.skipped]
        lines += [_line(one) for one in self.boundaries]
        if not self.size_bytes:
            return [*lines, "nothing to do: every state is in the store"]
        if self.unread:
            lines.append(
                f"{counted(self.unread, 'file')} not read: each counts as missing, a copy of another too (--deep reads "
                "them)"
            )
        free = "" if self.free_bytes is None else f", {readable_bytes(self.free_bytes)} free on its disk"
        work = f"{counted(self.num_clips, 'clip')} and {counted(self.num_texts, 'text')} to compute"
        lines.append(f"in all: {work}, {readable_bytes(self.size_bytes)} to write{free}")
        if not self.fits:
            lines.append("it does not fit: make room, choose another [store] path, or a smaller dtype")
        if self.expected is None:
            return [*lines, "no time is known: talik plan EXPERIMENT.toml measures this machine"]
        return [*lines, f"about {readable_seconds(self.expected.seconds)}, by {self.expected.basis}"]


def outline(
    experiment: ExperimentSource | ExtractSettings | Sequence[ExtractSettings],
    *,
    device: str = "auto",
    progress: bool = True,
    deep: bool = False,
    engine: EngineSettings | None = None,
    plan: Path | None = None,
) -> ExtractOutline:
    """Return what `extract` would compute with the same arguments; nothing is computed or written.

    The encoders are opened, each runs once on a blank item for the shapes of its states. A media file that the store
    does not remember is not read: its states count as missing.

    Args:
        experiment: an experiment's TOML, its tables as a dict, or its settings for stage 1.
        device: where the encoders would run; "auto" is a GPU where there is one.
        progress: show tqdm bars.
        deep: digest every media file, as `extract` would.
        engine: who would compute, in place of the experiment's [engine].
        plan: a file of `talik plan`, whose measurements tell the time where no earlier extraction does; by default the
            one beside the experiment's file.

    Raises:
        SettingsError, ManifestError, MissingMediaError, EncoderError, StoreError: as `extract` does.

    Example:
        >>> from talik.extract.stage.dry_run import outline
        >>> outlined = outline("exp.toml", deep=True, progress=False)
        >>> outlined.num_clips, outlined.size_bytes
        (0, 0)
    """
    wanted = wanted_settings(experiment)
    if plan is None and isinstance(experiment, Path | str):
        plan = plan_path(Path(experiment).parent, Path(experiment).stem)
    first = wanted[0].engine if engine is None else engine
    options = RunOptions(device=chosen_device(device, engine=first), progress=progress, deep=deep, unread=not deep)
    if progress:
        say_device(options.device)
    planned = _read(plan)
    taken: dict[tuple[str, str], set[str]] = {}  # by store and boundary: items that earlier settings would store
    return _joined([_outline(settings, options, engine=engine, plan=planned, taken=taken) for settings in wanted])


def _outline(
    settings: ExtractSettings,
    options: RunOptions,
    *,
    engine: EngineSettings | None,
    plan: Mapping[str, Any],
    taken: dict[tuple[str, str], set[str]],
) -> ExtractOutline:
    store = _opened(settings)
    manifest = load_manifest(settings.lenient_manifest_settings, base=settings.base)
    engine = settings.engine if engine is None else engine
    with torch_threads(engine.threads), exact_float32():
        requests = request_states(settings, manifest, store, options)
        machine = machine_name(options.device) if engine.is_local else ""
    record = failed_clip_record(store, manifest)
    skipped = list[tuple[str, str]]()
    found: dict[str, list[BoundaryOutline]] = {}
    content: dict[str, set[str]] = {}
    for request in requests:
        request, failed, _ = without_stateless(
            request, store, record.entries, allowed=settings.data.allow_missing, deep=options.deep
        )
        skipped += [(clip.source, clip.reason) for clip in (*request.missing, *request.unreadable, *failed)]
        outlines = [_of_boundary(request, number, store, taken) for number in range(len(request.boundaries))]
        missing = {request.contents.get(key, key) for one in outlines for key in one.missing}
        found[request.kind], content[request.kind] = outlines, missing
    boundaries = [one for several in found.values() for one in several]
    work = [Work.of(one) for one in boundaries if one.missing]
    return ExtractOutline(
        boundaries=tuple(boundaries),
        num_clips=len(content.get("clips", ())),
        num_texts=len(content.get("texts", ())),
        free_bytes=None if is_object_url(settings.store.path) else free_bytes(settings.store_path),
        expected=expected_time(
            work, num_clips=len(content.get("clips", ())), store=store.path, machine=machine, plan=plan
        ),
        unread=_num_unread(ClipDigests(store, manifest), [*manifest.clips])
        if content.get("clips") and not options.deep
        else 0,
        skipped=tuple(skipped),
    )


def _of_boundary(
    request: StateRequest, number: int, store: FeatureStore, taken: dict[tuple[str, str], set[str]]
) -> BoundaryOutline:
    """Outline one boundary; what settings before these would store counts as stored."""
    boundary = request.boundaries[number]
    known = taken.setdefault((store.where, boundary.spec.path), set())
    if known:
        others = request.without({request.content(item) for item in boundary.items if item.key in known})
        boundary = others.boundaries[number]
    found = outline_boundary(store.path, store.catalog(boundary.spec), boundary)
    known |= found.missing
    return found


def _opened(settings: ExtractSettings) -> FeatureStore:
    """Open the store for reading; where there is none yet, one without boundaries, and none is made."""
    if not is_object_url(settings.store.path):
        return FolderStore(settings.store_path, check=not is_vacant(settings.store_path))
    try:
        return settings.open_store()
    except NoStoreError:
        place = settings.store_path
        return FolderStore(place.with_name(f"{place.name}.none"), check=False)


def _num_unread(digests: ClipDigests, clip_ids: Sequence[str]) -> int:
    def is_unread(clip_id: str) -> bool:
        try:
            return digests.sources[clip_id] is not None and digests.remembered(clip_id) is None
        except OSError:
            return False

    return sum(map(is_unread, clip_ids))


def _read(plan: Path | None) -> Mapping[str, Any]:
    try:
        found = {} if plan is None else json.loads(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _joined(outlines: Sequence[ExtractOutline]) -> ExtractOutline:
    """Return one outline of several extractions, one after another."""
    if len(outlines) == 1:
        return outlines[0]
    work = [one for one in outlines if one.size_bytes]
    times = [one.expected for one in work if one.expected is not None]
    free = [one.free_bytes for one in outlines if one.free_bytes is not None]
    basis = "; ".join(dict.fromkeys(time.basis for time in times))
    return ExtractOutline(
        boundaries=tuple(one for several in outlines for one in several.boundaries),
        num_clips=sum(one.num_clips for one in outlines),
        num_texts=sum(one.num_texts for one in outlines),
        free_bytes=min(free, default=None),
        expected=ExpectedTime(seconds=sum(time.seconds for time in times), basis=basis)
        if times and len(times) == len(work)
        else None,
        unread=max(one.unread for one in outlines),
        skipped=tuple(dict.fromkeys(one for several in outlines for one in several.skipped)),
    )


def _line(one: BoundaryOutline) -> str:
    items = counted(one.num_items, "text" if one.spec.modality == "text" else "clip")
    head = f"{one.spec.path}: {items} asked for, {one.num_stored} stored, {len(one.missing)} missing"
    if not one.missing:
        return head
    shape = " x ".join([*(["tokens"] if one.spec.ragged else []), *map(str, one.spec.shape)])
    return (
        f"{head}; {counted(one.num_rows, 'row')} of {shape} in {one.spec.dtype}: {readable_bytes(one.hidden_bytes)} of "
        f"states, {readable_bytes(one.size_bytes)} to write"
    )
