"""The `triton` backend under Triton's interpreter; `test_scan_triton.py` runs this file in a process of its own.

Triton decides at its import whether it interprets, so TRITON_INTERPRET=1 has to stand in the environment before.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scan_gpu

from talik.adapt.scan import triton_scan as backend
from talik.adapt.scan.selective_scan import selective_scan
from talik.errors import BackendError

OUTPUT_TOLERANCE = 5e-7  # of the largest value, float32 against float64
GRADIENT_TOLERANCE = 5e-6

Found = tuple[Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def plain_calls_inside_kernels() -> None:
    """Call the kernels' own functions plainly: at each call the interpreter sets itself up anew, half of all time."""
    kernels, _ = backend.find_kernels()
    assert kernels is not None
    for name, function in list(vars(kernels).items()):
        if isinstance(function, InterpretedFunction) and not name.endswith("_kernel"):
            setattr(kernels, name, function.fn)


def make_inputs(batch: int, length: int, channels: int, states: int, groups: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length),
        "A": -torch.exp(draw(channels, states)),
        "B": draw(batch, groups, states, length),
        "C": draw(batch, groups, states, length),
        "D": draw(channels),
        "z": draw(batch, channels, length),
        "delta_bias": draw(channels) - 1.0,
    }


def run(inputs: dict[str, Tensor], name: str = "triton", *, softplus: bool = True, with_last: bool = True) -> Found:
    """Return out, the last state and every gradient of a fixed random functional of both (or of out alone)."""
    leaves = {key: x.detach().requires_grad_() for key, x in inputs.items()}
    out, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True, backend=name)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (out, last)]
    results = (out, last) if with_last else (out,)
    grads = torch.autograd.grad(results, list(leaves.values()), weights[: len(results)])
    return out.detach(), last.detach(), dict(zip(leaves, grads, strict=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


def assert_close(found: Found, exact: Found, scale: float = 1.0) -> None:
    for x, expected in zip(found[:2], exact[:2], strict=True):
        assert x.shape == expected.shape
        assert relative_error(x, expected) < OUTPUT_TOLERANCE * scale
    for name, grad in found[2].items():
        assert grad.shape == exact[2][name].shape
        assert relative_error(grad, exact[2][name]) < GRADIENT_TOLERANCE * scale, name


def assert_equal(found: Found, expected: Found) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    for name, grad in found[2].items():
        assert torch.equal(grad, expected[2][name]), name


# (B, L, d, N, G): lengths of one chunk and many, whole and not; sizes that fill their blocks and that do not
@pytest.mark.parametrize(
    "size", [(2, 1, 3, 2, 1), (1, 7, 18, 16, 2), (1, 63, 8, 16, 1), (1, 65, 3, 5, 1), (1, 200, 2, 4, 1)], ids=str
)
def test_equals_float64_recurrence(size: tuple[int, int, int, int, int]) -> None:
    inputs = make_inputs(*size)
    exact = run({name: x.double() for name, x in inputs.items()}, "reference")
    assert_close(run(inputs), exact)


def test_without_options() -> None:
    inputs = make_inputs(1, 11, 4, 3, 1)
    inputs = {name: inputs[name] for name in ("u", "delta", "A", "B", "C")} | {"delta": inputs["delta"].abs()}
    inputs |= {"B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    exact = run({name: x.double() for name, x in inputs.items()}, "reference", softplus=False, with_last=False)
    assert_close(run(inputs, softplus=False, with_last=False), exact)
    with torch.no_grad():
        out = selective_scan(**inputs, backend="triton")
    assert isinstance(out, Tensor)
    assert relative_error(out, exact[0]) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float16",), ("bfloat16", "float32", "float16")], ids=str)
def test_narrow_inputs_err_by_their_rounding_only(dtypes: tuple[str, ...]) -> None:
    narrow = {
        name: x.to(getattr(torch, dtypes[index % len(dtypes)]))
        for index, (name, x) in enumerate(make_inputs(1, 7, 4, 3, 1).items())
    }
    found = run(narrow)
    exact = run({name: x.double() for name, x in narrow.items()}, "reference")
    expected = run(narrow, "torch")
    assert [x.dtype for x in found[:2]] == [x.dtype for x in expected[:2]] == [narrow["u"].dtype, torch.float32]
    assert relative_error(found[1], exact[1]) < OUTPUT_TOLERANCE
    assert relative_error(found[0], exact[0]) < torch.finfo(narrow["u"].dtype).eps
    for name, grad in found[2].items():
        assert grad.dtype == expected[2][name].dtype == narrow[name].dtype
        torch.testing.assert_close(grad, expected[2][name])


@pytest.mark.parametrize("groups", [("constant", "constant"), (1, "constant"), ("line", 2)], ids=str)
def test_forms_of_input_and_output_vectors(groups: tuple[str | int, str | int]) -> None:
    batch, length, channels, states = 1, 5, 4, 3
    inputs = make_inputs(batch, length, channels, states, 2)
    for name, form in zip("BC", groups, strict=True):
        if form == "constant":
            inputs[name] = torch.randn(channels, states)
        elif form == "line":
            inputs[name] = torch.randn(batch, states, length)
        else:
            inputs[name] = torch.randn(batch, int(form), states, length)
    exact = run({name: x.double() for name, x in inputs.items()}, "reference")
    assert_close(run(inputs), exact)


def test_memory_order_changes_no_bit() -> None:
    inputs = make_inputs(2, 7, 4, 3, 1)
    expected = run(inputs)
    last = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in inputs.items()}
    last["z"] = torch.cat([inputs["u"], inputs["z"]], dim=1).mT.contiguous().mT[:, 4:]  # half of a projection
    assert last["u"].stride() == (28, 1, 4)
    assert last["z"].stride() == (56, 1, 8)
    assert_equal(run(last), expected)


def test_transposing_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(2, 5, 3, 2, 1)
    expected = run(inputs)
    monkeypatch.setattr(backend, "_MANY_VALUES", 1)
    monkeypatch.setattr(backend, "_TILE", 4)  # two tiles of time, the second in part
    assert_equal(run(inputs), expected)


def test_slices_of_the_batch_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(3, 2, 4, 3, 1)
    expected = run(inputs)
    monkeypatch.setattr(backend, "_PARTIAL_SUMS_BYTES", 1)
    assert_equal(run(inputs), expected)


def test_extreme_decays_stay_finite() -> None:
    inputs = make_inputs(1, 20, 4, 3, 1)
    inputs["A"] *= 1e4
    inputs["delta"] *= 100.0
    inputs["z"] *= 100.0
    exact = run({name: x.double() for name, x in inputs.items()}, "reference")
    assert_close(run(inputs), exact, scale=10.0)


def test_nan_stays_in_its_channel() -> None:
    inputs = make_inputs(1, 10, 4, 3, 1)
    clean, _, _ = run(inputs)
    inputs["delta"][0, 3, 6] = torch.nan
    out, last, grads = run(inputs)
    hit = torch.zeros_like(out, dtype=torch.bool)
    hit[0, 3, 6:] = True
    assert torch.equal(out.isnan(), hit)
    assert torch.equal(out[~hit], clean[~hit])
    assert last[0, 3].isnan().all()
    assert grads["A"][3].isnan().all()
    assert grads["A"][:3].isfinite().all()


def test_nothing_to_scan() -> None:
    inputs = make_inputs(2, 3, 4, 2, 1)
    none = {name: x[:0] if x.dim() > 2 else x for name, x in inputs.items()}
    out, last, grads = run(none)
    assert out.shape == (0, 4, 3)
    assert last.shape == (0, 4, 2)
    assert torch.equal(grads["A"], torch.zeros(4, 2))
    no_time = {name: x[..., :0] if x.dim() > 2 else x for name, x in inputs.items()}
    out, last, grads = run(no_time)
    assert out.shape == (2, 4, 0)
    assert torch.equal(last, torch.zeros(2, 4, 2))
    assert grads["B"].shape == (2, 1, 2, 0)


def test_second_derivative_is_refused_not_wrong() -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(1, 2, 2, 2, 1).items()}
    out = selective_scan(**inputs, backend="triton")
    with pytest.raises(BackendError, match="use 'reference'"):
        torch.autograd.grad(out.sum(), inputs["u"], create_graph=True)


def test_automatic_choice_does_not_interpret() -> None:
    inputs = make_inputs(1, 4, 4, 2, 1)
    assert torch.equal(selective_scan(**inputs), selective_scan(**inputs, backend="torch"))


def test_what_the_kernels_do_not_take() -> None:
    inputs = make_inputs(1, 2, 2, 2, 1)
    with pytest.raises(BackendError, match=r"an input is torch\.float64"):
        selective_scan(**inputs | {"D": inputs["D"].double()}, backend="triton")
    wide = make_inputs(1, 2, 2, 257, 1)
    with pytest.raises(BackendError, match="the state size is 257"):
        selective_scan(**wide, backend="triton")


def test_benchmark_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan_gpu.main(["--quick", "--out", str(tmp_path / "scan.json")]) == 0
    found = json.loads((tmp_path / "scan.json").read_text(encoding="utf-8"))
    (size,) = scan_gpu.QUICK
    assert max(found["errors"][f"{size} float32"].values()) < scan_gpu.BOUNDS["float32"]
    assert found["timings"][f"{size} float32 L"]["triton"]["both"] > 0
    assert found["blocks"][str(size)]
    assert "right" in capsys.readouterr().out


def test_failed_compilation_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernels, _ = backend.find_kernels()

    class Broken:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            raise RuntimeError("ptxas\n  failed")

    monkeypatch.setattr(kernels, "backward_kernel", Broken())
    inputs = {name: x.half().requires_grad_() for name, x in make_inputs(1, 2, 2, 7, 1).items()}
    with caplog.at_level(logging.WARNING, logger="talik.adapt.scan.triton_scan"):
        for _ in range(2):
            with pytest.raises(BackendError, match=r"do not run on cpu \(RuntimeError: ptxas failed\); use 'auto'"):
                selective_scan(**inputs, backend="triton")
    assert [record.getMessage() for record in caplog.records] == [
        "selective_scan leaves triton out: triton's kernels do not run on cpu (RuntimeError: ptxas failed)"
    ]
    with torch.no_grad():  # the forward alone is another program, and compiles
        assert selective_scan(**inputs, delta_softplus=True, backend="triton").isfinite().all()
