"""Contract tests for adapters of your own: subclass them in a pytest file."""

from .adapters import AdapterTests

__all__ = ["AdapterTests"]
