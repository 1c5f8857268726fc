"""Work off the MLX thread: tasks, the lanes that they wait in, and the threads that run them."""
