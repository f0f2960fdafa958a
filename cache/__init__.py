"""The store: identity, layout, writer, reader. It knows numpy and zarr, and no network library."""
