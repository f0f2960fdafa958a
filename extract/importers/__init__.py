"""Bringing features that other programs computed into a store."""
