"""Grammars that an answer keeps to, as masks of tokens."""
