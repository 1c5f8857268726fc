"""The prefix KV cache: an index of 16-token blocks over immutable extents of keys and values."""
