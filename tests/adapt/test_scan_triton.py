"""The `triton` backend: under the interpreter in a process of its own, on a GPU where there is one, and the choice."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from talik.adapt.scan import triton_scan as backend
from talik.adapt.scan.fused_mamba import find_kernel
from talik.adapt.scan.selective_scan import choose_backend, log_choice, selective_scan
from talik.errors import BackendError


@pytest.mark.timeout(900)  # half a minute, on a machine that has the time
def test_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("triton_interpreted.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize("optional", [True, False])
def test_kernels_compile_for_a_gpu_with_and_without_what_may_be_absent(
    name: str, optional: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes Python that the compiler refuses."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from talik.adapt.scan import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_kernels, name)
    absent = () if optional else ("D", "z", "bias", "dz", "dlast", *(["states"] if name == "forward_kernel" else []))
    constants = {"N": 16, "BLOCK_N": 16, "BLOCK_E": 8, "STEPS": 4, "SOFTPLUS": True} | dict.fromkeys(absent)
    sizes = dict.fromkeys(("z_l", "length", "groups", "width"), "i32")
    floats = dict.fromkeys(("A", "D", "bias", "last", "states", "dlast", "dweights", "dvectors"), "*fp32")
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else {**sizes, **floats}.get(n, "*bf16") for n in names}
    places = {(i,): constants[n] for i, n in enumerate(names) if n in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1, "enable_fp_fusion": True})
    assert "cubin" in made.asm


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
def test_forced_on_a_cpu_is_an_error_that_says_why() -> None:
    pytest.importorskip("triton")
    operands = {name: torch.ones(1, 2, 3) for name in ("u", "delta", "B", "C")} | {"A": -torch.ones(2, 2)}
    with pytest.raises(BackendError, match=r"on cpu, triton's kernels run on cuda .*TRITON_INTERPRET=1.*use 'auto'"):
        selective_scan(**operands, backend="triton")


def test_absent_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "talik.adapt.scan.triton_kernels", None)
    monkeypatch.delattr("talik.adapt.scan.triton_kernels", raising=False)
    backend.find_kernels.cache_clear()
    kernels, reason = backend.find_kernels()
    backend.find_kernels.cache_clear()
    assert kernels is None
    assert "triton cannot be imported" in reason
    assert "\n" not in reason


def test_automatic_choice_on_cuda(caplog: pytest.LogCaptureFixture) -> None:
    log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="talik.adapt.scan.selective_scan"):
        for mamba, triton, expected in (
            ("", "", "mamba_ssm"),
            ("no mamba", "", "triton"),
            ("no mamba", "no triton", "torch"),
        ):
            obstacles = {"mamba_ssm": lambda mamba=mamba: mamba, "triton": lambda triton=triton: triton}
            assert choose_backend("auto", "cuda", obstacles) == expected
    log_choice.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "selective_scan runs mamba_ssm on cuda",
        "selective_scan runs triton on cuda: no mamba",
        "selective_scan runs torch on cuda: no mamba; no triton",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a torch built for it")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(32, 2000, 1024, 16, 1), (32, 90, 128, 16, 2), (3, 301, 24, 5, 1)], ids=str)
def test_on_cuda_equals_the_other_backends(size: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    batch, length, channels, states, groups = size
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    lines = [draw(batch, channels, length).to(dtype) for _ in range(3)]
    vectors = [draw(batch, groups, states, length).to(dtype) for _ in range(2)]
    inputs = dict(zip(("u", "delta", "z", "B", "C"), [*lines, *vectors], strict=True))
    inputs |= {"A": -torch.exp(draw(channels, states)), "D": draw(channels), "delta_bias": draw(channels) - 1.0}
    weight = draw(batch, channels, length).to(dtype)

    def run(name: str) -> list[torch.Tensor]:
        leaves = {key: x.clone().requires_grad_() for key, x in inputs.items()}
        out = selective_scan(**leaves, delta_softplus=True, backend=name)
        assert isinstance(out, torch.Tensor)
        return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weight)]

    found = run("triton")
    for again, x in zip(run("triton"), found, strict=True):
        assert torch.equal(again, x)  # no atomics
    bound = 2e-5 if dtype == torch.float32 else 2e-2
    for name in ("torch", "mamba_ssm"):
        if name == "mamba_ssm" and find_kernel()[0] is None:
            continue
        for x, expected in zip(found, run(name), strict=True):
            assert x.dtype == expected.dtype
            assert ((x.float() - expected.float()).abs().max() / expected.float().abs().max()).item() < bound
