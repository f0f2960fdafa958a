"""Running a list of tasks here, in processes, on a Ray cluster or in a Slurm array."""
