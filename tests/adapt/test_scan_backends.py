"""Which backend a call gets, what its kernel is handed, and what a call that cannot be served says."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import Tensor

from talik.adapt.scan import fused_mamba as mamba_backend
from talik.adapt.scan import selective_scan as dispatch
from talik.adapt.scan.selective_scan import selective_scan
from talik.errors import BackendError, SettingsError


def make_call(**changes: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    call = {
        "u": torch.randn(2, 8, 6),
        "delta": torch.rand(2, 8, 6),
        "A": -torch.rand(8, 4),
        "B": torch.randn(2, 4, 6),
        "C": torch.randn(2, 4, 6),
    }
    return call | changes


def fake_kernel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Stands where mamba-ssm's kernel would: checks its demands, then computes with the plain loop."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert z is None or z.dtype == u.dtype
    assert all(x.stride(-1) == 1 for x in (u, delta, B, C))
    assert all(x is None or (x.dtype == torch.float32 and x.is_contiguous()) for x in (A, D, delta_bias))
    assert B.dim() == C.dim() == 4
    assert B.shape[1] == C.shape[1]
    return selective_scan(
        u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus,
        return_last_state=return_last_state, backend="reference",
    )  # fmt: skip


@pytest.fixture
def kernel_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_backend, "find_kernel", lambda: (fake_kernel, ""))
    monkeypatch.setattr(dispatch, "obstacle", lambda *args, **kwargs: "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("kernel_here")
def test_kernel_is_handed_what_it_demands(dtype: torch.dtype) -> None:
    call = make_call(
        u=torch.randn(2, 6, 8, dtype=dtype).mT,  # last stride 8
        B=torch.randn(2, 6, 4, dtype=dtype).mT,
        C=torch.randn(2, 2, 4, 6),
        z=torch.randn(2, 6, 8, dtype=dtype).mT,
        D=torch.randn(8, dtype=dtype),
        delta_bias=torch.randn(16)[::2],
    )
    out, last = selective_scan(**call, delta_softplus=True, return_last_state=True, backend="mamba_ssm")
    expected, expected_last = selective_scan(**call, delta_softplus=True, return_last_state=True, backend="torch")
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(last, expected_last)


def test_complying_tensors_are_not_copied() -> None:
    call = make_call()
    B = C = call["B"].unsqueeze(1)
    handed = mamba_backend.kernel_arguments(call["u"], call["delta"], call["A"], B, C, None, None, None)
    for given, passed in zip((call["u"], call["delta"], call["A"], B, C), handed, strict=False):
        assert passed is not None
        assert passed.data_ptr() == given.data_ptr()


def test_forced_and_absent_is_an_error_that_says_why() -> None:
    with pytest.raises(BackendError, match="on cpu, the kernel runs on cuda"):
        selective_scan(**make_call(), backend="mamba_ssm")


def test_auto_falls_back_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch.log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="talik.adapt.scan.selective_scan"):
        for _ in range(3):
            automatic = selective_scan(**make_call())
    assert torch.equal(automatic, selective_scan(**make_call(), backend="torch"))
    assert [record.getMessage() for record in caplog.records] == [
        "selective_scan runs torch on cpu: the tensors are on cpu, the kernel runs on cuda"
    ]


def test_installed_but_broken_is_found_by_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    mamba_backend.find_kernel.cache_clear()
    kernel, reason = mamba_backend.find_kernel()
    mamba_backend.find_kernel.cache_clear()
    assert kernel is None
    assert "mamba_ssm cannot be imported" in reason


class _OnCuda:
    """As much of a CUDA tensor as the choice of a backend looks at."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False) -> None:
        self.device, self.dtype, self.requires_grad = torch.device("cuda"), dtype, requires_grad


def test_obstacles_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_backend, "find_kernel", lambda: (fake_kernel, ""))

    def ask(*tensors: _OnCuda, state_size: int = 16, return_last_state: bool = False) -> str:
        return mamba_backend.obstacle(list(tensors), state_size, return_last_state=return_last_state)

    assert ask(_OnCuda(requires_grad=True)) == ""
    assert ask(_OnCuda(), return_last_state=True) == ""
    assert "float64" in ask(_OnCuda(torch.float64))
    assert "512" in ask(_OnCuda(), state_size=512)
    assert "last state" in ask(_OnCuda(requires_grad=True), return_last_state=True)
    torch.use_deterministic_algorithms(True)
    try:
        assert "bit-reproducible" in ask(_OnCuda(requires_grad=True))
        assert ask(_OnCuda()) == ""
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": torch.rand(2, 8, 5)}, r"delta is \(2, 8, 5\), expected the shape of u"),
        ({"z": torch.rand(2, 4, 6)}, r"z is"),
        ({"A": -torch.rand(7, 4)}, r"u is .* A \(7, 4\)"),
        ({"B": torch.rand(2, 5, 6)}, r"B is \(2, 5, 6\), expected \(2, 4, 6\)"),
        ({"C": torch.rand(2, 3, 4, 6)}, r"C is .* divisible by G"),
        ({"D": torch.rand(4)}, r"D is \(4,\), expected \(8,\)"),
        ({"delta_bias": torch.rand(8, 1)}, r"delta_bias is"),
        ({"A": torch.rand(8, 4) * 1j}, r"complex"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        selective_scan(**make_call(**changes))


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(SettingsError, match=r"did you mean 'torch'.*mamba_ssm"):
        selective_scan(**make_call(), backend="trch")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
@pytest.mark.parametrize("backend", ["torch", "mamba_ssm"])
def test_on_cuda_equals_the_cpu(backend: str) -> None:
    if backend == "mamba_ssm" and mamba_backend.find_kernel()[0] is None:
        pytest.skip(mamba_backend.find_kernel()[1])
    call = make_call()
    leaves = {name: x.cuda().requires_grad_() for name, x in call.items()}
    out = selective_scan(**leaves, delta_softplus=True, backend=backend)
    grads = torch.autograd.grad(out.sum(), list(leaves.values()))
    exact = {name: x.double().requires_grad_() for name, x in call.items()}
    exact_out = selective_scan(**exact, delta_softplus=True, backend="reference")
    torch.testing.assert_close(out.cpu().double(), exact_out, rtol=1e-5, atol=1e-5)
    for found, expected in zip(grads, torch.autograd.grad(exact_out.sum(), list(exact.values())), strict=True):
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=1e-4)
