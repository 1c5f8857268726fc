"""The engine process: one MLX thread that loads models, computes prompts and generates tokens."""
