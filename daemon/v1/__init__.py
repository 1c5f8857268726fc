"""Private messages between the parent and the engine; generated, see `tools/generate_stubs.py`."""
