"""Experiment files to start from."""
