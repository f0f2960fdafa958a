"""Training many variants and seeds."""
