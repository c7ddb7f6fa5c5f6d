"""The socket of one client of the control API; what it says is `control.http`'s business."""

from __future__ import annotations

import socket
from collections.abc import Callable

from holdfast.control.api import Service
from holdfast.control.http import ControlConnection
from holdfast.runtime.loop import EventLoop

_RECEIVE_BYTES = 16384


class ControlSocket:
    """Reads, answers, closes. Answers are small; a client that does not take them is waited for, without reading on."""

    def __init__(
        self, loop: EventLoop, sock: socket.socket, service: Service, *, on_close: Callable[[ControlSocket], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._http = ControlConnection(service, on_output=self._send)
        self._unsent = b""
        self._on_close = on_close
        self._closed = False
        loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._http.receive_data(data)
        if not data:
            self._loop.remove_reader(self._fd)
        self._send()

    def _send(self) -> None:
        if self._closed:
            return
        self._unsent += self._http.data_to_send()
        if self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.close()
                return
            self._unsent = self._unsent[sent:]
        self._loop.set_writer(self._fd, self._send if self._unsent else None)
        if self._http.closed and not self._unsent:
            self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._http.peer_gone()
        self._loop.close(self._fd)
        self._sock.close()
        self._on_close(self)
