"""Writing a boundary: which row an item gets, shards written whole, locks against a second writer."""
