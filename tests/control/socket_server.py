"""A control socket with a service behind it, in a thread: what a served pool looks like to a client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.control.api import Service
from holdfast.control.http import ControlConnection


@contextmanager
def serve_control(path: Path, service: Service) -> Iterator[None]:
    """Accept connections on `path`, one after the other, until the end of the block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_accept, args=(listener, service))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    path.unlink()


def _accept(listener: socket.socket, service: Service) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return  # shut down: the end of the block
        with peer:
            connection = ControlConnection(service)
            while not connection.closed:
                connection.receive_data(peer.recv(65536))
                while data := connection.data_to_send():
                    peer.sendall(data)
