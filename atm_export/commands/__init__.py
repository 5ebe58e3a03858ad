"""Subcommands of the command line, one file each; `cli.py` loads them by name when asked for."""
