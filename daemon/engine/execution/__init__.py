"""Runs requests on their models: prefill, decode, batches, sampling; every forward pass of a request is made here."""
