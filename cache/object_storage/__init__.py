"""Stores in S3-like object storage: addresses, client, writer, and the local cache of what was read."""
