"""Adapters: one for each mlx-lm cache class that the prefix cache can take apart and put together again."""
