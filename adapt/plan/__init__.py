"""What an experiment will cost on this machine, which boundaries to cache for it, and which variants train together."""
