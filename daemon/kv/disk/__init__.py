"""The disk tier of the prefix cache: KV that was used again lies in files, and outlives evictions and restarts."""
