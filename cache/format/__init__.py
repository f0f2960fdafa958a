"""What stands on disk: records, identities, layout and metadata of a store, and the data types of its numbers."""
