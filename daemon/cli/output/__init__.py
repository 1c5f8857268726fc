"""Output of commands: answers, progress, tables, the `top` rows, the `stats` page and Prometheus metrics."""
