"""Adapters: one file each, registered by one line."""
