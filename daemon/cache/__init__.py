"""The model cache: which models are in memory, who uses them, and who makes room for whom."""
