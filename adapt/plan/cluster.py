"""What a cluster is taken to be in a simulation, as the command line gives it."""

from __future__ import annotations

from ...config import Count, Positive, from_mapping, settings_class
from ...errors import SettingsError

#: Of a GPU where none is measured: NVIDIA's published float32 rate of an A100, which talik's encoders compute in.
PEAK_TFLOPS, UTILISATION = 19.5, 0.6


@settings_class
class SimulateSettings:
    """What a cluster is taken to be: `gpus=64,tflops=40,hours=24` on the command line.

    Args:
        gpus: numbers of GPUs; one number n stands for 1, 8 and n.
        tflops: what a GPU sustains on float32 operations; by default what was measured, on a GPU, or else
            `PEAK_TFLOPS` times `UTILISATION`.
        cores: processor cores beside each GPU, which decode.
        decode: seconds of one core for a clip's frames and sound.
        disk: GB/s of the shared disk, all GPUs together.
        hours: also say how many GPUs end within as many hours.
    """

    gpus: tuple[Count, ...]
    tflops: Positive | None = None
    cores: Count = 8
    decode: Positive = 1.0
    disk: Positive = 2.0
    hours: Positive | None = None

    def __post_init__(self) -> None:
        if not self.gpus:
            raise SettingsError("gpus: found none, expected numbers of at least 1")

    @property
    def shown(self) -> tuple[int, ...]:
        """The numbers of GPUs that are simulated, ascending."""
        return tuple(sorted({1, min(8, *self.gpus), *self.gpus} if len(self.gpus) == 1 else set(self.gpus)))


def parse_simulate(text: str) -> SimulateSettings:
    """Read `gpus=1,8,64,tflops=40`: what has no name belongs to the name before it.

    Raises:
        SettingsError: an unknown name, or what is no number.
    """
    found: dict[str, list[float]] = {}
    name = ""
    for part in text.split(","):
        before, equals, after = part.partition("=")
        name = before.strip() if equals else name
        value = (after if equals else before).strip()
        try:
            found.setdefault(name, []).append(int(value) if value.isdigit() else float(value))
        except ValueError:
            raise SettingsError(f"--simulate: found {part!r}, expected for instance gpus=64,hours=24") from None
    values = {n: v if n == "gpus" or len(v) > 1 else v[0] for n, v in found.items()}
    return from_mapping(SimulateSettings, values, where="--simulate")
