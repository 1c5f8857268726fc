"""What changes on a GPU: whether a warm answer is still the cold one, and how fast tokens come."""
