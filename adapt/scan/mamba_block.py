"""`MambaBlock`: Mamba-1's block around the selective scan, optionally in both directions, with padding left out.

Letters: B batch, L time steps, M d_model, d d_inner = expand·d_model, N d_state, R dt_rank, W d_conv,
G directions (1, or 2 when bidirectional).

Names, shapes and initialisations are those of https://github.com/state-spaces/mamba
(`mamba_ssm/modules/mamba_simple.py`), so the weights of its `Mamba` and of transformers' `MambaMixer` load as they
are. The second direction has its own convolution, projections, A and D under the names that Vision Mamba gives them
(Zhu et al. 2024, https://arxiv.org/abs/2401.09417, algorithm 1: `conv1d_b`, `x_proj_b`, `dt_proj_b`, `A_b_log`,
`D_b`) and shares `in_proj`, the gate and `out_proj`; the two directions' outputs are added.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SettingsError
from .causal_conv import causal_conv
from .selective_scan import selective_scan
from .token_order import ScanOrder


class MambaBlock(nn.Module):
    """Maps (B, L, d_model) to (B, L, d_model) by a gated, causal (or bidirectional) selective state space.

    Args:
        d_model: width of the input and output.
        d_state: N, the size of each channel's state.
        d_conv: W, taps of the causal depthwise convolution.
        expand: d_inner / d_model.
        dt_rank: R, the rank of the step sizes' projection; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init_floor: range, log-uniform, of the initial step sizes, and their least value.
        dt_scale: the initial weights of `dt_proj` are uniform in ±dt_scale / sqrt(dt_rank).
        conv_bias, bias: biases of the convolution, and of `in_proj` and `out_proj`.
        bidirectional: add a second scan over the reversed line, with parameters of its own.
        backend: the scan's backend, see `selective_scan`.

    Raises:
        SettingsError: a size below 1, or dt_min above dt_max.
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    conv1d_b: nn.Conv1d
    x_proj_b: nn.Linear
    dt_proj_b: nn.Linear

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        bidirectional: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = _resolve_rank(dt_rank, d_model)
        self.bidirectional = bidirectional
        self.backend = backend
        for name in ("d_model", "d_state", "d_conv", "d_inner", "dt_rank"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 < dt_min <= dt_max:
            raise SettingsError(f"dt_min is {dt_min} and dt_max {dt_max}, expected 0 < dt_min <= dt_max")

        # The order of construction is Mamba's, so that one seed draws the same weights.
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        step_range = (dt_min, dt_max, dt_init_floor)
        self._add_direction("", conv_bias, dt_scale, step_range)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        if bidirectional:
            self._add_direction("_b", conv_bias, dt_scale, step_range)

    def _add_direction(
        self, suffix: str, conv_bias: bool, dt_scale: float, step_range: tuple[float, float, float]
    ) -> None:
        """Register one direction's convolution, projections, A and D, initialised as `mamba_simple.py` does."""
        width, state_size, rank = self.d_inner, self.d_state, self.dt_rank
        conv1d = nn.Conv1d(width, width, self.d_conv, groups=width, padding=self.d_conv - 1, bias=conv_bias)
        x_proj = nn.Linear(width, rank + 2 * state_size, bias=False)
        dt_proj = nn.Linear(rank, width, bias=True)
        with torch.no_grad():
            dt_proj.weight.uniform_(-(rank**-0.5) * dt_scale, rank**-0.5 * dt_scale)
            dt_proj.bias.copy_(_initial_step_bias(width, *step_range))
        self.add_module("conv1d" + suffix, conv1d)
        self.add_module("x_proj" + suffix, x_proj)
        self.add_module("dt_proj" + suffix, dt_proj)
        name = "A_b_log" if suffix else "A_log"
        # S4D-real (Gu et al. 2022, https://arxiv.org/abs/2206.11893, section 4): A = -1 … -N in every channel.
        a = torch.arange(1, state_size + 1, dtype=torch.float32).repeat(width, 1)
        self.register_parameter(name, nn.Parameter(torch.log(a)))
        self.register_parameter("D" + suffix, nn.Parameter(torch.ones(width)))

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that Mamba trains without weight decay (timm's convention)."""
        return {name for name, _ in self.named_parameters() if name.partition("_")[0] in ("A", "D")}

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the block's output, without residual or norm.

        Args:
            hidden: (B, L, d_model), floating point.
            mask: (B, L) bool, true where a token is valid, anywhere on the line; None means all are. What stands at
                the other places has no influence, in either direction: a line with padding equals the line without.

        Returns:
            (B, L, d_model), zero where the mask is false.

        Raises:
            SettingsError: a shape or a mask that does not fit.
        """
        self._check_input(hidden, mask)
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0.0)
        x, z = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, d) each
        if mask is None and not self.bidirectional:
            y = self._scan(x.unsqueeze(2), z)
        else:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            order = ScanOrder(valid, bidirectional=self.bidirectional)
            y = order.merge(self._scan(order.spread(x), None).unflatten(2, (order.shape[2], -1))) * F.silu(z)
        out = self.out_proj(y)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0.0)

    def _scan(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Convolve and scan the lines x (B, L, G, d), each in its direction's order; return (B, L, G·d), gated by z."""
        directions = self._directions()
        taps = torch.cat([conv1d.weight for conv1d, _, _ in directions])
        biases = [conv1d.bias for conv1d, _, _ in directions if conv1d.bias is not None]
        lines = F.silu(causal_conv(x.flatten(2), taps, torch.cat(biases) if biases else None))  # (B, L, G·d)
        projections = []
        for line, (_, x_proj, dt_proj) in zip(lines.chunk(len(directions), dim=-1), directions, strict=True):
            delta, B, C = x_proj(line).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
            projections.append((F.linear(delta, dt_proj.weight), B, C))
        delta, B, C = (torch.stack(parts, dim=2) for parts in zip(*projections, strict=True))
        y = selective_scan(
            lines.transpose(1, 2),
            delta.flatten(2).transpose(1, 2),
            -torch.exp(self._weights("A_log", "A_b_log")),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            D=self._weights("D", "D_b"),
            z=None if z is None else z.transpose(1, 2),
            delta_bias=torch.cat([dt_proj.bias for _, _, dt_proj in directions]),
            delta_softplus=True,
            backend=self.backend,
        )
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    def _directions(self) -> list[tuple[nn.Conv1d, nn.Linear, nn.Linear]]:
        """Return (conv1d, x_proj, dt_proj) of each direction."""
        directions = [(self.conv1d, self.x_proj, self.dt_proj)]
        if self.bidirectional:
            directions.append((self.conv1d_b, self.x_proj_b, self.dt_proj_b))
        return directions

    def _weights(self, *names: str) -> Tensor:
        """Return the named parameters of the directions there are, one after another, at least in float32."""
        weights = [getattr(self, name) for name in names[: 1 + self.bidirectional]]
        return torch.cat([x.to(torch.promote_types(x.dtype, torch.float32)) for x in weights])

    def _check_input(self, hidden: Tensor, mask: Tensor | None) -> None:
        if hidden.dim() != 3 or hidden.shape[-1] != self.d_model:
            raise SettingsError(f"the input is {tuple(hidden.shape)}, expected (B, L, {self.d_model})")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != hidden.shape[:2]):
            expected = f"torch.bool {tuple(hidden.shape[:2])}, true where a token is valid"
            raise SettingsError(f"the mask is {mask.dtype} {tuple(mask.shape)}, expected {expected}")


def _initial_step_bias(width: int, dt_min: float, dt_max: float, dt_init_floor: float) -> Tensor:
    """Draw dt (width,) log-uniform in [dt_min, dt_max] and return the bias whose softplus it is."""
    log_range = math.log(dt_max) - math.log(dt_min)
    dt = torch.exp(torch.rand(width) * log_range + math.log(dt_min)).clamp(min=dt_init_floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def _resolve_rank(dt_rank: int | str, d_model: int) -> int:
    if isinstance(dt_rank, int):
        return dt_rank
    if dt_rank != "auto":
        raise SettingsError(f"dt_rank is {dt_rank!r}, expected a whole number or 'auto'")
    return math.ceil(d_model / 16)
