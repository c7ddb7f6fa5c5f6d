"""The progress bar of commands that take long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, size_bytes: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; gives the function that is told the bytes done so far."""
    if not show:
        yield lambda done_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # The bar is drawn when we say so: a thread of its own would only contend with those that copy.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task(what, total=size_bytes)

        def show_done(done_bytes: int) -> None:
            bar.update(task, completed=done_bytes, refresh=True)

        yield show_done
