"""Reading a boundary: shards by memory map or direct reads, buffers that are used again, prefetching."""
