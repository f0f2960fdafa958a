"""Looking after a store: verify, repair, explain, compact, remove, and exchange with HDF5."""
