"""mamba-ssm's own reference and block, where that package can be imported, give the same values."""

from __future__ import annotations

import importlib
import sys
import types
import warnings

import pytest
import torch

from talik.adapt.scan.mamba_block import MambaBlock
from talik.adapt.scan.selective_scan import selective_scan


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import mamba-ssm's Python; without its compiled kernel, an empty module stands in for the kernel."""
    try:
        importlib.import_module("selective_scan_cuda")
    except (ImportError, OSError):
        monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("mamba_ssm")
        except (ImportError, OSError) as error:
            pytest.skip(f"mamba_ssm cannot be imported ({error}): pip install 'talik[mamba]' beside CUDA")


@pytest.mark.parametrize("groups", [None, 1, 2])
def test_equals_selective_scan_ref(mamba_ssm: types.ModuleType, groups: int | None) -> None:
    ref = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    torch.manual_seed(0)
    group = () if groups is None else (groups,)
    operands = [
        torch.randn(3, 8, 77), 0.5 * torch.rand(3, 8, 77), -0.5 * torch.rand(8, 4),
        torch.randn(3, *group, 4, 77), torch.randn(3, *group, 4, 77),
        torch.randn(8), torch.randn(3, 8, 77), 0.5 * torch.rand(8),
    ]  # fmt: skip
    u, delta, A, B, C, D, z, bias = (x.requires_grad_() for x in operands)
    out, last = selective_scan(
        u, delta, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True, return_last_state=True, backend="torch"
    )
    expected, expected_last = ref(u, delta, A, B, C, D, z, bias, True, True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, expected_last, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(y, operands, weights) for y in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_equals_constant_input_and_output_vectors(mamba_ssm: types.ModuleType) -> None:
    ref = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    torch.manual_seed(0)
    u, delta, A = torch.randn(2, 6, 20), torch.rand(2, 6, 20), -torch.rand(6, 4)
    B, C = torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(selective_scan(u, delta, A, B, C), ref(u, delta, A, B, C), rtol=1e-5, atol=1e-5)


def test_one_seed_draws_the_weights_of_its_mamba(mamba_ssm: types.ModuleType) -> None:
    torch.manual_seed(0)
    theirs = mamba_ssm.Mamba(24, d_state=4)
    torch.manual_seed(0)
    ours = MambaBlock(24, d_state=4)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_equals_its_mamba_with_its_weights(mamba_ssm: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    simple = importlib.import_module("mamba_ssm.modules.mamba_simple")
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    monkeypatch.setattr(simple, "selective_scan_fn", interface.selective_scan_ref)  # its kernel needs CUDA
    monkeypatch.setattr(simple, "causal_conv1d_fn", None)
    torch.manual_seed(0)
    theirs = simple.Mamba(24, d_state=4, use_fast_path=False)
    ours = MambaBlock(24, d_state=4)
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(2, 31, 24)
    expected = theirs(hidden)
    torch.testing.assert_close(ours(hidden), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
