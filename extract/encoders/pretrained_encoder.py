"""A frozen pretrained network cut into units: states in, states out, restored from storage, and their identity.

Letters: B clips, T segments (the encoder's batch is B*T, t fastest), N tokens, L tokens of a text, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ...cache.format.digests import digest_json
from ...errors import SettingsError, TrunkError
from ..trunk.clip_axis import ClipAxis
from ..trunk.exact_float32 import exact_float32, tf32
from ..trunk.state import Context, State
from ..trunk.tensor_layout import find_layouts
from ..trunk.verification import find_trunk
from .encoder import Encoder, Identity
from .file_stamps import FileStamps
from .fingerprint import PrefixWeights, weight_digests
from .known_weights import known_weight_digests
from .model_sources import OpenedModel
from .narrow_weights import hold_in_bfloat16
from .options import Compute, EncoderOptions
from .own_code import library_versions, own_code, parts_of
from .plain_json import plain_json
from .preprocess import TextPreprocess
from .probe import check_tokens, clip_axis_of, probe_inputs, same_in_all, try_forward
from .software import version
from .unit_replacement import CompiledUnits, UnitCopies
from .verification_cache import proven_trunk

#: What provenance says of states whose raw items were prepared as an earlier version did.
EARLIER = "raw items prepared as the version did that began this store"

P = ParamSpec("P")
R = TypeVar("R")

_PREPROCESSING = {"visual": ("torchvision", "pillow"), "audio": (), "text": ("tokenizers",)}


def _as_it_computes(
    method: Callable[Concatenate[PretrainedEncoder, P], R],
) -> Callable[Concatenate[PretrainedEncoder, P], R]:
    """Return the method run in exact float32, or with TensorFloat-32 where the encoder was opened so."""

    @wraps(method)
    def run(self: PretrainedEncoder, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with tf32() if self._in_tf32 else exact_float32():
            return method(self, *args, **kwargs)

    return run


class PretrainedEncoder(Encoder):
    """A frozen pretrained network cut into units along its trunk; made by `load_encoder`.

    Args:
        options: what it was opened by.
        opened: the model, its preprocessing and its forward.

    Attributes:
        trunk: the mechanism under this class: links, context, passes.
        proof: what was proven when the encoder was first loaded.
        follows_earlier: whether raw items are prepared as an earlier version did; see `follow`.
        compute: what the states that `identity` names are computed in; see `EncoderOptions`.
    """

    def __init__(self, options: EncoderOptions, opened: OpenedModel) -> None:
        spec, modality = options.spec, options.modality
        self.spec = spec
        self.modality = modality
        self.dtype = options.dtype or torch.float32
        self.device = torch.device(options.device)
        self.model = opened.model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        self.preprocess = opened.preprocess
        self.follows_earlier = False
        self.sample_rate_hz = opened.sample_rate_hz
        self.window_seconds = opened.window_seconds
        self.image_size = opened.image_size
        self.num_frames = opened.num_frames
        self._forward = opened.forward
        self._opened = opened
        self._parts = parts_of(self.model, opened.forward, opened.preprocess)
        self._code = {"code": code} if (code := own_code(self._parts)) else {}
        self.compute, self._in_tf32 = options.compute, options.compute == "tf32"
        digests: dict[str, str] = {}  # of the weights as they were loaded, whatever is computed with
        if not opened.is_random:
            digests = known_weight_digests(self.model, options, self.read_from)
        if options.compute == "bfloat16":
            digests, self.dtype = digests or weight_digests(self.model), torch.bfloat16
            hold_in_bfloat16(self.model, lambda: self._forward(self._batch(0)), spec=spec)
        probe = self._batch(0)
        try_forward(spec, self._forward, opened.wrapper, probe, modality=modality)
        backbone = opened.backbone(probe)
        if opened.is_random:
            found = find_trunk(self.model, self._forward, self._batch, opened.excluded, backbone)
        else:
            known = plain_json({**opened.config, **self._code})
            found = proven_trunk(self.model, self._forward, self._batch, opened.excluded, backbone, known, digests)
        self.trunk, self.proof = found
        self.units = self.trunk.units()
        self.num_units = self.trunk.num_units
        self._layouts = find_layouts(self.trunk, probe)
        for k, shape in enumerate(self.trunk.hidden_shapes if modality == "text" else ()):
            check_tokens(spec, k, shape, probe)
        whole = self.num_frames is not None
        self.clips = clip_axis_of(spec, self.trunk, probe, options.num_segments) if whole else None
        self._constants: dict[str, Tensor] = {}  # of equal windows of sound the masks are equal
        if modality == "audio" and self.trunk.context_names:
            self._constants = same_in_all(self.trunk.context_names, [probe, self._batch(1)])
            self.trunk.constant_names = frozenset(self._constants)
        self.prefix_weights = PrefixWeights(self.trunk, lambda: self._forward(probe), digests)

    @cached_property
    def channels(self) -> Sequence[int]:
        """D of the tokens at boundaries 0 … num_units, and last that of `features`."""
        axes = {"NLC": -1, "NHWC": -1, "NCHW": 1}
        shapes = zip(self.trunk.hidden_shapes, self._layouts, strict=True)
        at_boundaries = [shape[axes[layout]] for shape, (layout, _) in shapes]
        with torch.no_grad():
            return (*at_boundaries, self.features(self(self.probe())).shape[-1])

    @property
    def full(self) -> PretrainedEncoder:
        """The encoder with all weights as they were loaded; see `Encoder.full`."""
        return self

    def token_names(self, text: str) -> list[str]:
        """Return the tokens of `text` as strings; [] where no tokenizer names them."""
        return self.preprocess.token_names(text) if isinstance(self.preprocess, TextPreprocess) else []

    def probe(self) -> dict[str, Tensor]:
        """Return inputs of a small batch of noise, such as the trunk was found with."""
        return self._batch(0)

    def _batch(self, seed: int) -> dict[str, Tensor]:
        """Return a batch of noise: seed 0 is the probe, 1 to 3 are the proof's."""
        return self._place(probe_inputs(self._opened, self.modality, seed))

    def _place(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        placed = {}
        for name, tensor in inputs.items():
            dtype = self.dtype if tensor.is_floating_point() else None
            placed[name] = tensor.to(device=self.device, dtype=dtype, non_blocking=True)
        return placed

    # running

    @_as_it_computes
    def embed(self, inputs: Mapping[str, Tensor]) -> State:
        """Return the state at boundary 0 of a batch that `preprocess` made."""
        placed = self._place(inputs)
        hidden, context = self.trunk.embed(placed)
        if self.modality == "text":
            check_tokens(self.spec, 0, hidden.shape, placed)
        return self._state(hidden, 0, context, self._lengths(placed))

    def _lengths(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        mask = inputs.get("attention_mask") if self.modality == "text" else None
        return None if mask is None else mask.sum(dim=1)

    def _state(self, hidden: Tensor, boundary: int, context: Context, lengths: Tensor | None) -> State:
        layout, num_prefix_tokens = self._layouts[boundary]
        return State(
            hidden=hidden,
            layout=layout,
            boundary=boundary,
            context=context,
            lengths=lengths,
            num_prefix_tokens=num_prefix_tokens,
            clips=self.clips,
        )

    @_as_it_computes
    def run(self, state: State, start: int, stop: int) -> State:
        """Run units `start` to `stop` (exclusive) on a state at boundary `start`; see `Encoder.run`."""
        start, stop = self._bounds(state, start, stop)
        hidden = self.trunk.run(state.hidden, state.context, start, stop)
        return self._state(hidden, stop, state.context, state.lengths)

    def _bounds(self, state: State, start: int, stop: int) -> tuple[int, int]:
        """Return the boundaries of a run as 0 … num_units; refuse a state, or units, that it cannot have."""
        start, stop = self.boundary(start), self.boundary(stop)
        if state.boundary != start:
            raise TrunkError(f"run({start}, {stop}): found a state at boundary {state.boundary}, expected {start}")
        if stop < start:
            raise SettingsError(f"run({start}, {stop}): expected the second boundary not below the first")
        if stop > self.trunk.dropped_from:
            raise TrunkError(
                f"run({start}, {stop}): units from {self.trunk.dropped_from} up were dropped; load it again"
            )
        return start, stop

    def enter(self, state: State) -> State:
        """Return a state, its context too, in the type that the units run in; see `Encoder.enter`."""
        wanted, context = self.state_dtype, state.context
        if context.dtype not in (self.trunk.context_dtype, wanted):
            context = replace(context.in_dtype(wanted), rebuild=self.trunk.context)
        if state.hidden.dtype == wanted and context is state.context:
            return state
        return state.replace(hidden=state.hidden.to(wanted), context=context)

    @_as_it_computes
    def finish(self, state: State) -> Any:
        """Run what follows the last unit; return the model's own output; see `Encoder.finish`."""
        self._check_end(state)
        return self.trunk.finish(state.hidden, state.context)

    def _check_end(self, state: State) -> None:
        """Refuse a state, or units, that cannot be finished."""
        if self.trunk.dropped_from < self.num_units:
            raise TrunkError(f"finish: units from {self.trunk.dropped_from} up were dropped; load the encoder again")
        if state.boundary != self.num_units:
            raise TrunkError(f"finish: found a state at boundary {state.boundary}, expected {self.num_units}")

    @_as_it_computes
    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model's own forward on inputs that `preprocess` made."""
        return self._forward(self._place(inputs))

    def features(self, output: Any) -> Tensor:
        """Return the tokens of an output of `finish`, (B*T, N, D); see `Encoder.features`."""
        tensor = output if isinstance(output, Tensor) else None
        for name in ("last_hidden_state", "pooler_output", "image_embeds", "text_embeds", "logits"):
            found = getattr(output, name, None)
            tensor = found if tensor is None and isinstance(found, Tensor) else tensor
        if tensor is None and isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
            tensor = output[0]
        if tensor is None:
            raise TrunkError(f"{self.spec}: found an output of type {type(output).__name__}, expected a hidden state")
        if self.clips is not None:
            return self._clip_features(self.clips, tensor)
        if tensor.ndim == 2:
            return tensor[:, None]
        if tensor.ndim == 4:
            layout = self._layouts[self.num_units][0]
            return tensor.flatten(1, 2) if layout == "NHWC" else tensor.flatten(2).transpose(1, 2)
        return tensor

    def _clip_features(self, axis: ClipAxis, tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return axis.each_segment(tensor[:, None])
        if tensor.ndim != 3 or tensor.shape[1] != self.trunk.hidden_shapes[-1][1]:
            raise TrunkError(
                f"{self.spec}: found an output of shape {tuple(tensor.shape)}, expected the tokens of the last unit"
            )
        return axis.tokens(tensor)

    # storing and restoring

    def context_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the small inputs from which the context is rebuilt; see `Encoder.context_inputs`."""
        for name, row in self._constants.items():
            if not torch.equal(inputs[name].to(row.device), row.expand_as(inputs[name])):
                raise TrunkError(f"{self.spec}: found an input {name!r} unlike that of whole windows, which is known")
        names = [name for name in self.trunk.context_names if name not in self._constants]
        return {name: inputs[name] for name in names if name in inputs}

    @_as_it_computes
    def restore(
        self, hidden: Tensor, boundary: int, inputs: Mapping[str, Tensor], lengths: Tensor | None = None
    ) -> State:
        """Return the state of a stored hidden tensor; see `Encoder.restore`."""
        boundary = self.boundary(boundary)
        hidden = hidden.to(device=self.device, dtype=self.state_dtype)
        expected = self.trunk.hidden_shapes[boundary]
        if len(hidden.shape) != len(expected) or (not inputs and tuple(hidden.shape[1:]) != expected[1:]):
            raise TrunkError(
                f"boundary {boundary}: found hidden {tuple(hidden.shape)}, expected (B, {str(expected[1:])[1:]}"
            )
        small = {name: row.expand(hidden.shape[0], *row.shape[1:]) for name, row in self._constants.items()}
        small |= {name: tensor.to(self.device) for name, tensor in inputs.items()}
        signature = tuple(
            (name, tuple(small[name].shape[1:]) if name in small else shape, dtype)
            for name, shape, dtype in self.trunk.probe_signature
        )
        context = self.trunk.context(small, hidden.shape[0], signature, self.device)
        if lengths is None:
            lengths = self._lengths(small)
        return self._state(hidden, boundary, context, None if lengths is None else lengths.to(self.device))

    def boundary(self, k: int | Literal["end"]) -> int:
        """Return boundary `k` as 0 … num_units; see `Encoder.boundary`."""
        k = self.num_units if k == "end" else k
        found = k + self.num_units if k < 0 else k
        if not 0 <= found <= self.num_units:
            n = self.num_units
            raise SettingsError(f'{self.spec}: found boundary {k}, expected {-n} … {n}, or "end" (which is {n})')
        return found

    def drop_above(self, boundary: int) -> None:
        """Free the weights of the units from `boundary` up; `run` beyond it and `finish` are refused from now on."""
        self.trunk.drop_above(self.boundary(boundary))

    # other modules in the units' places

    def copy_units(self, units: Sequence[int]) -> UnitCopies:
        """Return copies of some units, to be trained in the places of the frozen ones; see `Encoder.copy_units`."""
        return UnitCopies(self, units)

    def compiled(self, made: CompiledUnits, **options: Any) -> PretrainedEncoder:
        """Return an encoder that runs its units through torch.compile; see `Encoder.compiled`."""
        modules = {index: link.module for index, link in enumerate(self.trunk.links)}
        for module in modules.values():
            if id(module) not in made:
                made[id(module)] = (module, torch.compile(module, **options))
        return self.with_modules({index: made[id(module)][1] for index, module in modules.items()})

    def held_in(self, dtype: torch.dtype) -> PretrainedEncoder:
        """Return an encoder that holds its units in `dtype`; see `Encoder.held_in`."""
        from .held_encoder import HeldEncoder  # derives from this class

        return self if dtype == self.state_dtype else HeldEncoder(self, dtype)

    def with_modules(self, modules: Mapping[int, nn.Module]) -> PretrainedEncoder:
        """Return an encoder with other modules at some links of its trunk, which shares everything else with this."""
        changed = copy.copy(self)
        links = enumerate(self.trunk.links)
        changed.trunk = self.trunk.with_links([replace(link, module=modules.get(i, link.module)) for i, link in links])
        changed.units = changed.trunk.units()
        return changed

    # identity

    def above(self, compute: Compute) -> PretrainedEncoder:
        """Return an encoder for states that were computed in `compute`, by which they are identified.

        Its units, which run above such states, are this one's and run as they do here.
        """
        changed = copy.copy(self)
        changed.compute = compute
        return changed

    @property
    def read_from(self) -> FileStamps | None:
        """The files that decide `identity`, together with the versions of talik and the libraries that it needs.

        None where more decides: code of one's own or of other packages, modules of the caller's, a hub, what a store
        holds.
        """
        alone = not (self._code or library_versions(self._parts) or self.follows_earlier)
        return self._opened.read_from if alone else None

    @property
    def has_earlier(self) -> bool:
        """Whether an earlier version prepared raw items for this model in another way."""
        return self._opened.earlier is not None

    def follow(self, stored: Iterable[Identity]) -> bool:
        """Prepare raw items as an earlier version did, where a store holds states of that and none of today's.

        Args:
            stored: identities of states of this modality, as `identity` gave them to whoever wrote the store.

        Returns:
            Whether the earlier preprocessing is used from now on; `provenance` says so.
        """
        if self._opened.earlier is None:
            return False
        now, then = self.preprocess.describe(), self._opened.earlier.describe()
        held = [found["preprocess"] for found in stored if found["preprocess"] in (now, then) and self._is_of(found)]
        if then == now or then not in held or now in held:
            return False
        self.follow_earlier()
        return True

    def follow_earlier(self) -> None:
        """Prepare raw items as an earlier version did; for a model whose preprocessing has changed since."""
        assert self._opened.earlier is not None
        self.preprocess, self.follows_earlier = self._opened.earlier, True

    def _is_of(self, stored: Identity) -> bool:
        """Return whether states of this identity are this encoder's, whatever their preprocessing."""
        boundary = stored["boundary"]
        mine = {**stored, "preprocess": self.preprocess.describe()}
        return boundary <= self.num_units and self.identity(boundary) == mine

    def fingerprint(self, boundary: int) -> str:
        """Return the SHA-256 of what makes up the prefix: class, own code, configuration, weights up to it."""
        return digest_json(self._prefix(self.boundary(boundary)))

    def _prefix(self, boundary: int) -> dict[str, Any]:
        return {
            "model": type(self.model).__name__,
            "config": plain_json(self._prefix_config(boundary)),
            "weights": self.prefix_weights.digest(boundary),
            **self._code,
            **({} if self.compute == "float32" else {"compute": self.compute}),
        }

    def _prefix_config(self, boundary: int) -> dict[str, Any]:
        """Return the configuration with lists of one entry a unit (layer kinds) cut at the boundary."""

        def cut(value: Any) -> Any:
            if not isinstance(value, list) or len(value) != self.num_units:
                return value
            is_range = self.num_units <= 4 and any(isinstance(one, float) for one in value)  # limits, means
            return value if is_range else value[:boundary]

        return {name: cut(value) for name, value in self._opened.config.items()}

    def identity(self, boundary: int) -> Identity:
        """Return, as JSON, all that the hidden tensor at `boundary` depends on, but for the raw item itself."""
        boundary = self.boundary(boundary)
        return {
            **self._prefix(boundary),
            "boundary": boundary,
            "preprocess": plain_json(self.preprocess.describe()),
            "compute_dtype": "bfloat16" if self.compute == "bfloat16" else str(self.dtype).removeprefix("torch."),
        }

    def end_digest(self) -> str | None:
        """Return the SHA-256 of the weights that only `finish` uses; see `Encoder.end_digest`."""
        return self.prefix_weights.end_digest(self.num_units)

    def provenance(self) -> Identity:
        """Return what moves only the last bits, or only tells: names, versions, device, attention implementation."""
        attention = getattr(getattr(self.model, "config", None), "_attn_implementation", None)
        return {
            "spec": self.spec,
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
            "timm": version("timm"),
            **{name: version(name) for name in _PREPROCESSING[self.modality]},
            **library_versions(self._parts),
            "device": str(self.device),
            "attention": attention,
            **({} if self.compute == "float32" else {"compute": self.compute}),
            "threads": torch.get_num_threads(),
            "notes": [*self._opened.notes, *([EARLIER] if self.follows_earlier else [])],
        }
