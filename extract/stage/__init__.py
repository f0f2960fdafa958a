"""Stage 1: from the manifest to the states in the store."""
