"""Batches of states: from the store or from the media files, on the device."""
