"""The prefix KV cache: a trie of 16-token blocks, and the immutable extents that hold their keys and values."""
