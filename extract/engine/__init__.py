"""Engines: how a list of idempotent tasks is spread over processes, a Ray cluster or a Slurm array."""
