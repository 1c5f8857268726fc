"""
The door's process: `python -m daemon.http --fd N --config JSON`. Started by the daemon's parent, never by hand.

`mlx-sidecar launch` adds `--tool PID --folder PATH`: the door then serves one tool, see `daemon/launch/door.py`.
"""

import gc
import signal

if __name__ == "__main__":
    # Before the slow imports: Ctrl-C, a closed terminal and the stop of a systemd unit reach all processes at once.
    # They are for the parent, which drains first, or for the tool: the door ends with either.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))  # held back until here
    # What imports make stays. A look for garbage in between takes as long as a fifth of them.
    gc.disable()
    from daemon.http.kept_out import keep_out

    keep_out()
    from daemon.http.process import main

    gc.freeze()
    gc.enable()
    main()
