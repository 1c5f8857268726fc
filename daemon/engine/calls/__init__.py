"""Calls, from a command to a request that runs: names become models, prompts become tokens, weights are loaded."""
