"""The public contract of a store, by each backend: a folder, object storage, another URL that zarr-python reads."""

from __future__ import annotations

import pytest

from talik.testing import StoreReadTests, StoreTests


class TestFolderStore(StoreTests):
    @pytest.fixture
    def location(self, tmp_path):
        return tmp_path / "features.zarr"


class TestObjectStore(StoreTests):
    @pytest.fixture
    def location(self, s3):
        return f"{s3.bucket()}/features.zarr"


class TestZarrStore(StoreReadTests):
    @pytest.fixture
    def location(self, tmp_path):
        return tmp_path / "features.zarr"

    def published(self, location):
        return f"file://{location}"
