"""Stage 2 of `gpu.py`: training steps from memory and from the store, beside the bare compiled suffixes, in one run."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_extract import Facts, bare_units, seconds_of, synchronised
from gpu_sample import Sizes
from torch import Tensor, nn

from talik.adapt.adapters.base import Triple
from talik.adapt.config.experiment import load_experiment
from talik.adapt.data.batch import Batch
from talik.adapt.model.flops import at_starts
from talik.adapt.scan.mamba_block import MambaBlock
from talik.adapt.scan.selective_scan import selective_scan
from talik.adapt.training.experiment_context import ExperimentContext
from talik.adapt.training.lockstep_group import SharedBatches
from talik.adapt.training.run_folder import RunFolder
from talik.adapt.training.stack_size import Member, Stacking
from talik.adapt.training.trainer import Trainer

INSERTION = '"last 2"'


def variants_text(sizes: Sizes) -> str:
    """Return the variants' tables: one of each kind, the group's members, and the same reading clip by clip."""
    small = "" if sizes.d_bottleneck is None else f", d_bottleneck = {sizes.d_bottleneck}"
    tables = [_table("probe", '{ kind = "probe" }', insertion=False), _table("trimodal", _trimodal(sizes))]
    tables += [_table("lora", '{ kind = "peft:lora", r = 8 }')]
    compiled = "compile = true"
    tables += [_table("compiled-bottleneck", f'{{ kind = "bottleneck"{small} }}', compiled)]
    tables += [_table("compiled-trimodal", _trimodal(sizes), compiled)]
    for index in range(max(sizes.members, sizes.grid)):
        rate = f"lr = {1e-4 * (index + 1):.1e}"
        adapter = f'{{ kind = "bottleneck"{small} }}'
        tables.append(_table(f"b{index}", adapter, rate))
        tables.append(_table(f"c{index}", adapter, f"{rate}, group_by_clip = true"))
    return "\n".join(tables)


def _trimodal(sizes: Sizes) -> str:
    small = "" if sizes.d_bottleneck is None else ", d_model = 8, d_state = 4, num_latents = 2, num_heads = 2"
    return f'{{ kind = "trimodal"{small} }}'


def _table(name: str, adapter: str, train: str = "", *, insertion: bool = True) -> str:
    where = f"insertion = {INSERTION}\n" if insertion else ""
    return f'[[variants]]\nname = "{name}"\n{where}adapter = {adapter}\ntrain = {{ {train} }}\n'


def scan_backends(device: str) -> list[str]:
    """Return the scan's backends that run on a device, tried on a small input."""
    found = []
    for name in ("torch", "triton", "mamba_ssm"):
        u = torch.randn(1, 8, 5, device=device, requires_grad=True)
        state = torch.randn(1, 4, 5, device=device)
        try:
            out = selective_scan(u, torch.rand_like(u), -torch.rand(8, 4, device=device), state, state, backend=name)
            assert isinstance(out, Tensor)
            out.sum().backward()
            found.append(name)
        except Exception as error:  # a kernel that does not compile says so in its own ways
            print(f"scan backend {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    return found


class StageTwo:
    """Trainers on a filled store, and the clocks around their steps.

    Args:
        experiment: with the variants of `variants_text`, its store filled.
        work: a folder for the runs.
        sizes: of everything.
        device: where training runs.
    """

    def __init__(self, experiment: Path, work: Path, sizes: Sizes, *, device: str) -> None:
        self.context = ExperimentContext(load_experiment(experiment), device=device)
        self.sizes, self.device = sizes, device
        self._folder, self._number = work, itertools.count()

    def open(self, *names: str, live: bool = False) -> list[Trainer]:
        """New trainers of these variants."""
        return [self._open(name, live=live) for name in names]

    def _open(self, name: str, *, live: bool) -> Trainer:
        variant = self.context.experiment.variant(name)
        folder = RunFolder(self._folder / str(next(self._number)))
        folder.path.mkdir(parents=True)
        settings = self.context.experiment.train_settings(variant)
        return Trainer(self.context, variant, settings, 0, folder, live=live)

    # bounds

    def bare_suffix(self, name: str) -> Facts:
        """Measure the two units at the end of each encoder, forward and backward to their input, in milliseconds.

        Weights and states are of bfloat16, under torch.compile; on a CPU not compiled.

        Args:
            name: of a variant; the states have the shapes of its first batch.
        """
        facts: Facts = {}
        (trainer,) = self.open(name)
        shapes = {m: tuple(s.hidden.shape) for m, s in next(iter(self._raw(trainer))).states.items()}
        for modality, encoder in self.context.encoders.items():
            shape = shapes[modality]
            units = [copy.deepcopy(u) for u in bare_units(encoder)[-2:]]
            for unit in units:
                module = unit if isinstance(unit, nn.Module) else unit.func  # type: ignore[attr-defined]
                module.to(torch.bfloat16)
            hidden = torch.randn(shape, device=self.device, dtype=torch.bfloat16, requires_grad=True)
            given = torch.randn_like(hidden)

            def forward(x: Tensor, units: Sequence[Callable[[Tensor], Tensor]] = units) -> Tensor:
                for unit in units:
                    x = unit(x)
                return x

            if not self._gpu:
                facts[modality] = {"shape": shape, "eager_ms": self._backward_ms(forward, hidden, given)}
                continue
            started = time.perf_counter()
            torch.compiler.reset()
            compiled = torch.compile(forward, dynamic=False)
            compiled(hidden).backward(given)
            facts[modality] = {"shape": shape, "compile_seconds": synchronised(self.device) - started}
            facts[modality]["eager_ms"] = self._backward_ms(forward, hidden, given)
            facts[modality]["compiled_ms"] = self._backward_ms(compiled, hidden, given)
        best = [min(v for k, v in f.items() if k in ("eager_ms", "compiled_ms")) for f in facts.values()]
        return {**facts, "sum_ms": sum(best)}

    @property
    def _gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def _backward_ms(self, forward: Callable[[Tensor], Tensor], hidden: Tensor, given: Tensor) -> float:
        def run() -> None:
            hidden.grad = None
            forward(hidden).backward(given)

        return self.median_ms(run)

    def median_ms(self, call: Callable[[], object], repeats: int = 10) -> float:
        """Median milliseconds of a call, by events on a GPU; two calls before the clock starts."""
        for _ in range(2):
            call()
        if not self._gpu:
            return 1e3 * statistics.median(seconds_of(call, self.device) for _ in range(min(3, repeats)))
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for begin, end in pairs:
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs)

    def adapter_ms(self, name: str, backend: str | None = None) -> float:
        """Milliseconds of a variant's adapter alone, forward and backward, on the tokens that it meets in a step."""
        (trainer,) = self.open(name)
        _choose_scan(trainer, backend)
        batch = at_starts(trainer.model, next(iter(self._raw(trainer))))
        seen: list[tuple[nn.Module, Triple]] = []
        with _recorded(trainer.model.adapter, seen):
            self._step(trainer, batch)
        if not seen:
            return 0.0

        def run() -> None:
            outputs = []
            with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self._gpu):
                for module, tokens in seen:
                    deltas = module(tokens)
                    outputs += [d for m in ("visual", "audio", "text") if (d := deltas.get(m)) is not None]
            torch.autograd.backward(outputs, [torch.ones_like(d) for d in outputs])

        return self.median_ms(run)

    # steps

    @staticmethod
    def _step(trainer: Trainer, batch: Batch) -> None:
        with trainer.own_random_stream():
            trainer.step(batch)

    def _raw(self, trainer: Trainer) -> Iterator[Batch]:
        """The states of an epoch's first batches as the source gives them."""
        order = itertools.islice(trainer.data.train_batches(0), self.sizes.batches)
        return trainer.source.batches(order, by_clip=trainer.settings.group_by_clip)  # type: ignore[no-any-return]

    def solo(self, name: str, backend: str | None = None) -> Facts:
        """One variant: milliseconds a step from states in memory, from the store, and of reading alone."""
        (trainer,) = self.open(name)
        _choose_scan(trainer, backend)
        ready = list(self._raw(trainer))
        trainer.begin_epoch()

        def memory() -> None:
            for batch in ready:
                self._step(trainer, at_starts(trainer.model, batch))

        def store() -> None:
            for batch in self._raw(trainer):
                self._step(trainer, at_starts(trainer.model, batch))

        def read() -> None:
            for _ in self._raw(trainer):
                pass

        return self._ways({"memory": memory, "store": store, "read": read}, len(ready))

    def copied(self) -> Facts:
        """Copy a batch's stored bytes, in milliseconds: in the host's memory, and from pinned memory to the device."""
        (trainer,) = self.open("b0")
        states = next(iter(self._raw(trainer))).states
        size = sum(2 * s.hidden.numel() for s in states.values())  # as float16
        source, target = (torch.ones(size, dtype=torch.uint8, pin_memory=self._gpu) for _ in range(2))
        facts = {"batch_bytes": size}
        facts["host_ms"] = 1e3 * statistics.median(seconds_of(lambda: target.copy_(source), "cpu") for _ in range(5))
        if self._gpu:
            there = torch.empty(size, dtype=torch.uint8, device=self.device)
            facts["to_device_ms"] = self.median_ms(lambda: there.copy_(source, non_blocking=True))
        return facts

    def group(self, names: Sequence[str], *, alone: bool, rounds: int | None = None) -> Facts:
        """Variants in lockstep: milliseconds a step of all, and with `alone` of the same ones after each other.

        "memory" and "store" batch adapters, heads and optimisers of the members; "unbatched" runs each one's its own.
        """
        trainers = self.open(*names)
        by_clip = trainers[0].settings.group_by_clip
        shared, sweep = SharedBatches(self.context, trainers), self.context.experiment.sweep
        stacking, apart = (
            Stacking(self.context, len(trainers), replace(sweep, stack=True, batch_members=batched))
            for batched in (True, False)
        )
        order = list(itertools.islice(trainers[0].data.train_batches(0), max(2, self.sizes.batches // 2)))
        ready = list(shared.batches(order, by_clip=by_clip))
        for trainer in trainers:
            trainer.begin_epoch()

        def step(members: Sequence[Member], by: Stacking = stacking) -> None:
            for some in by.measured_parts(members):
                for error in by.step(some).values():
                    raise error

        def memory() -> None:
            for batches in ready:
                step(list(zip(trainers, batches, strict=True)))

        def store() -> None:
            for batches in shared.batches(order, by_clip=by_clip):
                step(list(zip(trainers, batches, strict=True)))

        def unbatched() -> None:
            for batches in ready:
                step(list(zip(trainers, batches, strict=True)), apart)

        def one_by_one() -> None:
            for batches in ready:
                for trainer, batch in zip(trainers, batches, strict=True):
                    self._step(trainer, batch)

        ways = {"memory": memory, "store": store}
        ways |= {"unbatched": unbatched, "alone": one_by_one} if alone else {}
        return {"members": len(trainers), **self._ways(ways, len(order), rounds), "stacked": stacking.size}

    def live(self, name: str, batches: int) -> Facts:
        """One variant from the media files: milliseconds a step of an epoch's first batches, decoding included."""
        (trainer,) = self.open(name, live=True)
        trainer.begin_epoch()
        taken = []
        started = synchronised(self.device)
        for batch in itertools.islice(trainer.train_batches(), batches + 1):
            self._step(trainer, batch)
            taken.append(synchronised(self.device) - started)
            started = synchronised(self.device)
        return {"first_ms": 1e3 * taken[0], "step_ms": 1e3 * statistics.mean(taken[1:] or taken)}

    def _ways(self, ways: dict[str, Callable[[], None]], steps: int, rounds: int | None = None) -> Facts:
        """Medians of interleaved rounds, a step; the first call, with all that is done once, apart; peak memory."""
        facts: Facts = {}
        if self._gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        facts["first_seconds"] = seconds_of(ways["memory"], self.device)
        for name, call in ways.items():
            if name != "memory":
                call()
        found: dict[str, list[float]] = {name: [] for name in ways}
        for index in range(rounds or self.sizes.rounds):
            for name in sorted(ways, reverse=bool(index % 2)):
                found[name].append(1e3 * seconds_of(ways[name], self.device) / steps)
        facts |= {f"{name}_ms": statistics.median(taken) for name, taken in found.items()}
        facts["all_ms"] = found
        facts["steps"] = steps
        facts["peak_device_bytes"] = torch.cuda.max_memory_allocated() if self._gpu else None
        return facts

    def profiled(self, name: str) -> Callable[[], None]:
        """Return a call that takes three steps of a variant on states in memory, kernels chosen and compiled."""
        (trainer,) = self.open(name)
        ready = [at_starts(trainer.model, b) for b in itertools.islice(self._raw(trainer), 3)]
        trainer.begin_epoch()

        def run() -> None:
            for batch in ready:
                self._step(trainer, batch)

        run()
        return run


def _choose_scan(trainer: Trainer, backend: str | None) -> None:
    for module in trainer.model.modules() if backend else ():
        if isinstance(module, MambaBlock):
            module.backend = backend


@contextmanager
def _recorded(adapter: Any, seen: list[tuple[nn.Module, Triple]]) -> Iterator[None]:
    """While open, the tokens that an adapter's modules are called with are kept, as leaves that get gradients."""

    def keep(module: nn.Module, called: tuple[Any, ...]) -> None:
        seen.append((module, _leaves(called[0])))

    hooks = [module.register_forward_pre_hook(keep) for module in getattr(adapter, "insertions", ())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _leaves(tokens: Triple) -> Triple:
    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().clone().requires_grad_()

    return Triple(
        visual=leaf(tokens.visual), audio=leaf(tokens.audio), text=leaf(tokens.text), text_mask=tokens.text_mask
    )
