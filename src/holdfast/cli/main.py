"""The command `holdfast`."""

from __future__ import annotations

import click

from holdfast.cli.command import LazyGroup

_COMMANDS = {
    "serve": ("holdfast.cli.serve", "Serve the volumes of a pool over NBD."),
    "volume": ("holdfast.cli.volume", "Create, list, show, resize and remove volumes."),
    "pool": ("holdfast.cli.pool", "Change the capacity of a pool."),
    "group": ("holdfast.cli.group", "Create, list, show and change groups of volumes and their limits."),
    "copy": ("holdfast.cli.copy", "Copy a file or block device to a volume, or back."),
    "top": ("holdfast.cli.top", "Watch a served pool, or who waits for what in it."),
    "check": ("holdfast.cli.check", "Verify every structure and checksum of a pool, offline."),
    "doctor": ("holdfast.cli.doctor", "Say what this host allows and what to change."),
    "lab": ("holdfast.cli.lab", "Play situations in which storage fails, today's kernel beside holdfast."),
    "completion": ("holdfast.cli.completion", "Print the completion script for a shell."),
}


@click.group(name="holdfast", cls=LazyGroup, lazy=_COMMANDS)
@click.version_option(package_name="holdfast", message="holdfast %(version)s")
def holdfast() -> None:
    """Thin virtual disks over NBD from a log-structured pool.

    Make a pool with a disk of 10 GiB in it, and serve it:

    \b
        holdfast serve ./pool --volume disk0=10G

    Every command has examples at the end of its --help.  Sizes are written as 512M, 10G or 1T and are binary.
    """


def main() -> None:
    holdfast.main(prog_name="holdfast")


if __name__ == "__main__":
    main()
