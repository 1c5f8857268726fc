"""The commands, one module each; `daemon.cli.COMMANDS` lists them."""
