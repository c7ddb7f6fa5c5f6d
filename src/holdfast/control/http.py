"""The HTTP/1.1 side of the control socket, without the socket.

One `ControlConnection` stands between one accepted connection and the `Service`.  Its owner passes it what was
received, sends what `data_to_send` gives, and closes the socket when `closed` is true and nothing is left to send:

    connection.receive_data(received)      # b"" when the peer sent its last byte
    while data := connection.data_to_send():   # after every receive_data, and whenever `on_output` was called
        send(data)                         # all of it, before more is taken
    if connection.closed: close the socket

What the paths mean: `control/routes.py`.

1. One request at a time: while an answer is due nothing further is parsed, and `wants_data` is false so that the owner
   leaves the rest in the socket.
2. Bounded: the header by `HEADER_BYTES_MAX`, the body by `BODY_BYTES_MAX`, what arrives out of turn by both together.
   Whoever exceeds them is answered where the protocol still allows an answer, and disconnected.  Requests behind
   `OUTPUT_BYTES_MAX` of answers wait, as if an answer were due, until the owner takes these: a few bytes of request may
   ask for a long list, and a client need not read any of them.
3. A reply that comes after the connection ended is dropped; what it answers has happened all the same.
4. A malformed request never raises out of `receive_data`.  An exception that is no HoldfastError is a bug of ours and
   does pass through, to the loop's error handler.

`MetricsConnection` is the same for a scraper on `serve --metrics`: it knows GET /metrics, and the rest is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

import h11
import msgspec

from holdfast.control.api import Answer, Service, describe_error
from holdfast.control.routes import Reply, Request, error_answer, route, route_metrics
from holdfast.errors import HoldfastError, RequestError

HEADER_BYTES_MAX: Final = 16 * 1024
BODY_BYTES_MAX: Final = 64 * 1024
OUTPUT_BYTES_MAX: Final = 64 * 1024  # and the one answer that goes beyond it
METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class ControlConnection:
    """One connection of the control socket. Used from the loop's thread only."""

    _route = staticmethod(route)

    def __init__(self, service: Service, *, on_output: Callable[[], None] | None = None) -> None:
        self._service = service
        self._on_output = on_output
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._held = False  # parsing has stopped until the output is taken
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._answer_due = False
        self._in_receive = False
        self._out_of_turn_bytes = 0
        self.closed = False

    @property
    def wants_data(self) -> bool:
        """False while an answer is due or not taken: the owner is to stop watching the socket for input."""
        return not self.closed and not self._answer_due and not self._held

    def data_to_send(self) -> bytes:
        """Take what is to be sent now; empty if there is nothing. What is taken is not given again.

        Requests that waited for this output are handled here, and their answers given by the next call.
        """
        data = b"".join(self._output)
        self._output.clear()
        self._output_bytes = 0
        if self._held:
            self._held = False
            self._go_on()
        return data

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what the peer sent; empty means that it will send no more. The view is not kept."""
        if self.closed:
            return
        if self._answer_due or self._held:
            self._out_of_turn_bytes += len(data)
            if self._out_of_turn_bytes > HEADER_BYTES_MAX + BODY_BYTES_MAX:
                self._close()
                return
        self._go_on(bytes(data))

    def peer_gone(self) -> None:
        """The socket failed: nothing can be sent any more. An answer still due will be dropped."""
        self._close()
        self._output.clear()

    # --- Parsing ------------------------------------------------------------------------------------------------------

    def _go_on(self, data: bytes | None = None) -> None:
        self._in_receive = True
        try:
            if data is not None:
                self._http.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            self._refuse_malformed(error)
        finally:
            self._in_receive = False

    def _advance(self) -> None:
        """Handle events until more input is needed, an answer is due, or output is to be taken first."""
        while not self.closed and not self._answer_due:
            if self._output_bytes > OUTPUT_BYTES_MAX:
                if not self._held:
                    self._held = True
                    self._out_of_turn_bytes = 0
                return
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > BODY_BYTES_MAX:
                    self._refuse_body()
            elif isinstance(event, h11.EndOfMessage):
                self._dispatch()
            elif isinstance(event, h11.ConnectionClosed):
                self._close()

    def _begin(self, request: h11.Request) -> None:
        self._request = request
        self._body.clear()
        for name, value in request.headers:
            # h11 has checked that the value is one decimal number.
            if name == b"content-length" and int(value) > BODY_BYTES_MAX:
                self._refuse_body()
                return

    def _refuse_body(self) -> None:
        message = f"the request body is longer than {BODY_BYTES_MAX} bytes; nothing here needs as much"
        self.respond(413, error_answer("request", message, 22), close=True)

    def _refuse_malformed(self, error: h11.RemoteProtocolError) -> None:
        """Answer 400 (or what h11 suggests) if no answer has begun, and end the connection."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = f"not understood as HTTP/1.1: {error}"
            self.respond(error.error_status_hint, error_answer("request", message, 22), close=True)
        self._close()

    # --- Routing ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        request = self._request
        assert request is not None
        # Answered unless `route` leaves a reply outstanding.
        self._answer_due = True
        self._out_of_turn_bytes = 0
        try:
            target = urlsplit(request.target.decode("ascii"))
            method = request.method.decode("ascii")
            self._route(self._service, Request(method, unquote(target.path), target.query, self._body), self)
        except HoldfastError as error:
            self._answer_error(error)
        except ValueError:
            # urlsplit and unquote on a target that is no URL.
            self._answer_error(RequestError("the request target is not a URL path"))
        except BaseException:
            # A bug in the service. The peer sees the connection end instead of waiting for ever.
            self._close()
            raise

    # --- Answering ----------------------------------------------------------------------------------------------------

    def reply_with(self, status: int) -> Reply:
        """The callback that answers the present request, once."""
        request = self._request

        def reply(answer: Answer | HoldfastError) -> None:
            if self.closed:
                return
            assert self._answer_due, "a control request was answered twice"
            assert self._request is request, "a control request was answered in the place of a later one"
            if isinstance(answer, HoldfastError):
                self._answer_error(answer)
            else:
                self.respond(status, answer)
            if not self._in_receive:
                self._resume()

        return reply

    def _resume(self) -> None:
        """A late answer is out: go on with what arrived meanwhile, and tell the owner."""
        self._go_on()
        if self._on_output is not None:
            self._on_output()

    def _answer_error(self, error: HoldfastError) -> None:
        status, answer = describe_error(error)
        self.respond(status, answer)

    def respond_metrics(self, text: bytes) -> None:
        self._respond_bytes(200, METRICS_CONTENT_TYPE, text)

    def respond(self, status: int, answer: object, *, allow: str | None = None, close: bool = False) -> None:
        self._respond_bytes(status, "application/json", msgspec.json.encode(answer), close=close, allow=allow)

    def _respond_bytes(
        self, status: int, content_type: str, body: bytes, *, close: bool = False, allow: str | None = None
    ) -> None:
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        if allow is not None:
            headers.append(("Allow", allow))
        if close:
            headers.append(("Connection", "close"))
        self._send(h11.Response(status_code=status, headers=headers))
        # h11 leaves out the body where the request was a HEAD, but wants to be the one who does.
        if self._request is None or self._request.method != b"HEAD":
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        self._request = None
        self._answer_due = False
        if close or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._close()
        else:
            self._http.start_next_cycle()

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._output.append(data)
            self._output_bytes += len(data)

    def _close(self) -> None:
        self.closed = True
        self._answer_due = False
        self._request = None


class MetricsConnection(ControlConnection):
    """A scraper's connection."""

    _route = staticmethod(route_metrics)
