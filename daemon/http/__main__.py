"""
The door's process: `python -m daemon.http --fd N --config JSON`. Started by the daemon's parent, never by hand.

`mlx-sidecar launch` adds `--tool PID --folder PATH`: the door then serves one tool, see `daemon/launch/door.py`.
"""

import gc

if __name__ == "__main__":
    from daemon.shared.group_signals import ignore_group_signals

    ignore_group_signals()  # they are for the parent, which drains first, or for the tool: the door ends with either
    # What imports make stays. A look for garbage in between takes as long as a fifth of them.
    gc.disable()
    from daemon.http.kept_out import keep_out

    keep_out()
    from daemon.http.process import main

    gc.freeze()
    gc.enable()
    main()
