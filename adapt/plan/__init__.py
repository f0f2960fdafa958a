"""Predict the cost of an experiment on this machine, and choose the boundaries to cache."""
