"""
The door's process: `python -m daemon.http --fd N --config JSON`. Started by the daemon's parent, never by hand.

`mlx-sidecar launch` adds `--tool PID --folder PATH`: the door then serves one tool, see `daemon/launch/door.py`.
"""

import gc
import sys

if __name__ == "__main__":
    # structlog would load rich for tracebacks on a console, which this process has none of: 4 MB, 50 ms.
    sys.modules["rich"] = None  # type: ignore[assignment]
    # What imports make stays. A look for garbage in between takes as long as a fifth of them.
    gc.disable()
    from daemon.http.process import main

    gc.freeze()
    gc.enable()
    main()
