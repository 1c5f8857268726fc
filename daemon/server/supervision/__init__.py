"""The engine process as its parent sees it: started, watched, restarted, and its calls."""
