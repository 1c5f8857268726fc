"""The model cache: which models are in memory, their leases, their loads and their eviction."""
