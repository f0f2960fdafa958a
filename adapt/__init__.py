"""Stage 2: scan, adapters, joint model, training, evaluation, sweeps, reports. Called, it trains one variant."""

from .._callable_room import make_callable

make_callable(__name__, ".training.adapt", "adapt")
