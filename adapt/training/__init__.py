"""Training one variant, or several in lockstep: steps, checkpoints, run folders."""
