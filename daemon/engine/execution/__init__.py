"""Forward passes: prefill, decode, batches, sampling."""
