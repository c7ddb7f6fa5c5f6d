"""The socket of one client of the control API, or of one scraper; what it says is `control.http`'s business.

Bounded: nothing is received while answers are not taken, and a client that takes nothing of them for `SEND_NS_MAX` is
cut off.  So a connection holds at most one receive, one request and some `control.http.OUTPUT_BYTES_MAX` of answers,
and the server lets only so many of them be (`server.CONTROL_CONNECTIONS_MAX`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from holdfast.control.api import Service
from holdfast.control.http import ControlConnection
from holdfast.runtime.loop import EventLoop, Timer

# How long a client may take nothing of its answer: our commands read it at once, and a place is not lost for good.
SEND_NS_MAX = 10_000_000_000

_RECEIVE_BYTES = 16384


class ControlSocket:
    """Reads, answers, closes. A client that does not take its answers is not read from, and at last cut off."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        service: Service,
        *,
        on_close: Callable[[ControlSocket], None],
        send_ns_max: int = SEND_NS_MAX,
        speaks: type[ControlConnection] = ControlConnection,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._http = speaks(service, on_output=self._send)
        self._unsent = b""
        self._on_close = on_close
        self._send_ns_max = send_ns_max
        self._patience: Timer | None = None  # runs while something is unsent
        self._ended = False  # the client has sent its last byte
        self._closed = False
        self._watch()

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._ended = not data
        try:
            self._http.receive_data(data)
        finally:
            self._send()  # after a bug in the service, too: the connection is closed then

    def _send(self) -> None:
        """Send as much as the client takes; requests that waited for that are answered on the way."""
        if self._closed:
            return
        progress = False
        while data := self._unsent or self._http.data_to_send():
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.close()
                return
            progress = progress or sent > 0
            self._unsent = data[sent:]
            if self._unsent:
                break
        if self._http.closed and not self._unsent:
            self.close()
            return
        self._watch_patience(progress)
        self._watch()

    def _watch(self) -> None:
        self._loop.set_writer(self._fd, self._send if self._unsent else None)
        if self._http.wants_data and not self._unsent and not self._ended:
            self._loop.add_reader(self._fd, self._on_readable)
        else:
            self._loop.remove_reader(self._fd)

    def _watch_patience(self, progress: bool) -> None:
        if self._patience is not None and (progress or not self._unsent):
            self._patience.cancel()
            self._patience = None
        if self._unsent and self._patience is None:
            self._patience = self._loop.call_later(self._send_ns_max, self.close)

    def close(self) -> None:
        """May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._patience is not None:
            self._patience.cancel()
        self._http.peer_gone()
        self._loop.close(self._fd)
        self._sock.close()
        self._on_close(self)
