"""The HTTP/1.1 side of the control socket, without the socket.

One `ControlConnection` stands between one accepted connection and the `Service`.  Its owner passes it what was
received, sends what `data_to_send` gives, and closes the socket when `closed` is true and nothing is left to send:

    connection.receive_data(received)      # b"" when the peer sent its last byte
    while data := connection.data_to_send():   # after every receive_data, and whenever `on_output` was called
        send(data)                         # all of it, before more is taken
    if connection.closed: close the socket

    GET    /metrics                        Prometheus metrics, as text
    GET    /v1/pool                        PoolStatus
    PATCH  /v1/pool                        ChangePool -> PoolStatus
    GET    /v1/statistics                  {name: number}
    GET    /v1/waits                       WaitList
    GET    /v1/volumes                     VolumeList
    POST   /v1/volumes                     CreateVolume -> VolumeInfo, 201
    GET    /v1/volumes/NAME                VolumeInfo
    PATCH  /v1/volumes/NAME                ChangeVolume -> VolumeInfo
    DELETE /v1/volumes/NAME[?force=true&snapshots=true]   VolumeRemoved
    POST   /v1/volumes/NAME/resize         ResizeVolume -> VolumeResized
    POST   /v1/volumes/NAME/acknowledge-loss   AcknowledgeLoss -> VolumeInfo
    POST   /v1/volumes/NAME/clone          CloneVolume -> VolumeInfo, 201
    POST   /v1/volumes/NAME/promote        VolumeInfo
    POST   /v1/volumes/VOLUME@SNAPSHOT/roll-back   VolumeInfo
    GET    /v1/snapshots[?of=NAME&after=ID]   SnapshotList
    POST   /v1/snapshots                   TakeSnapshots -> VolumeList, 201
    GET    /v1/groups                      GroupList
    POST   /v1/groups                      CreateGroup -> GroupInfo, 201
    GET    /v1/groups/NAME                 GroupInfo
    PATCH  /v1/groups/NAME                 ChangeGroup -> GroupInfo
    DELETE /v1/groups/NAME                 GroupRemoved
    POST   /v1/shutdown                    Stopping, 202

Where a volume is named, VOLUME@SNAPSHOT names a snapshot.

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
from typing import Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import msgspec

from holdfast.control.api import (
    AcknowledgeLoss,
    Answer,
    ChangeVolume,
    CloneVolume,
    CreateVolume,
    ErrorAnswer,
    ErrorBody,
    Service,
    Stopping,
    TakeSnapshots,
    VolumeList,
    describe_error,
    validate_identity,
    validate_quota,
    validate_volume_size,
    validate_wait,
)
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupList, validate_group
from holdfast.control.names import validate_name, validate_snapshot_name, validate_volume_name
from holdfast.control.space_api import ChangePool, ResizeVolume, validate_capacity
from holdfast.errors import HoldfastError, RequestError

HEADER_BYTES_MAX: Final = 16 * 1024
BODY_BYTES_MAX: Final = 64 * 1024
OUTPUT_BYTES_MAX: Final = 64 * 1024  # and the one answer that goes beyond it
METRICS_PATH: Final = "/metrics"
METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# How old the metrics may be that scrapers from outside are given: they cannot make the server gather them more often.
SCRAPE_AGE_NS_MAX: Final = 1_000_000_000

_T = TypeVar("_T")
_G = TypeVar("_G", bound=ChangeGroup)

_VOLUMES = "/v1/volumes"
_VOLUME_PREFIX = _VOLUMES + "/"
_ACKNOWLEDGE = "/acknowledge-loss"
_CLONE = "/clone"
_PROMOTE = "/promote"
_RESIZE = "/resize"
_ROLL_BACK = "/roll-back"
_ACTIONS = (_ACKNOWLEDGE, _CLONE, _PROMOTE, _RESIZE, _ROLL_BACK)
_SNAPSHOTS = "/v1/snapshots"
_GROUPS = "/v1/groups"
_GROUP_PREFIX = _GROUPS + "/"

# Path -> the methods that it knows, for the Allow header of a 405.
_METHODS = {
    METRICS_PATH: "GET",
    "/v1/pool": "GET, PATCH",
    "/v1/statistics": "GET",
    "/v1/waits": "GET",
    _VOLUMES: "GET, POST",
    _GROUPS: "GET, POST",
    _SNAPSHOTS: "GET, POST",
    "/v1/shutdown": "POST",
}


class ControlConnection:
    """One connection of the control socket. Used from the loop's thread only."""

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
        self._respond(413, _error_answer("request", message, 22), close=True)

    def _refuse_malformed(self, error: h11.RemoteProtocolError) -> None:
        """Answer 400 (or what h11 suggests) if no answer has begun, and end the connection."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            message = f"not understood as HTTP/1.1: {error}"
            self._respond(error.error_status_hint, _error_answer("request", message, 22), close=True)
        self._close()

    # --- Routing ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        request = self._request
        assert request is not None
        # Answered unless `_route` leaves a reply outstanding.
        self._answer_due = True
        self._out_of_turn_bytes = 0
        try:
            target = urlsplit(request.target.decode("ascii"))
            self._route(request.method.decode("ascii"), unquote(target.path), target.query)
        except HoldfastError as error:
            self._answer_error(error)
        except ValueError:
            # urlsplit and unquote on a target that is no URL.
            self._answer_error(RequestError("the request target is not a URL path"))
        except BaseException:
            # A bug in the service. The peer sees the connection end instead of waiting for ever.
            self._close()
            raise

    def _route(self, method: str, path: str, query: str) -> None:
        service = self._service
        match method, path:
            case "GET", "/metrics":
                self._respond_metrics(service.metrics())
            case "GET", "/v1/pool":
                self._respond(200, service.status())
            case "PATCH", "/v1/pool":
                wanted_pool = self._decode(ChangePool, "a change of the pool")
                validate_capacity(wanted_pool.capacity_bytes)
                service.change_pool(wanted_pool, self._reply_with(200))
            case "GET", "/v1/statistics":
                self._respond(200, service.statistics())
            case "GET", "/v1/waits":
                self._respond(200, service.waits())
            case "GET", "/v1/volumes":
                self._respond(200, VolumeList(volumes=service.volumes()))
            case "POST", "/v1/volumes":
                wanted = self._decode_create()
                service.create_volume(wanted, self._reply_with(201))
            case "GET", _ if path == _GROUPS:
                self._respond(200, GroupList(groups=service.groups()))
            case "POST", _ if path == _GROUPS:
                service.create_group(self._decode_group(CreateGroup), self._reply_with(201))
            case "GET", _ if path.startswith(_GROUP_PREFIX):
                self._respond(200, service.group(path.removeprefix(_GROUP_PREFIX)))
            case "PATCH", _ if path.startswith(_GROUP_PREFIX):
                change = self._decode_group(ChangeGroup)
                service.change_group(path.removeprefix(_GROUP_PREFIX), change, self._reply_with(200))
            case "DELETE", _ if path.startswith(_GROUP_PREFIX):
                service.remove_group(path.removeprefix(_GROUP_PREFIX), self._reply_with(200))
            case "GET", _ if path == _SNAPSHOTS:
                of, after = _which_snapshots(query)
                self._respond(200, service.snapshots(of=of, after=after))
            case "POST", _ if path == _SNAPSHOTS:
                service.take_snapshots(self._decode_snapshots(), self._reply_with(201))
            case "POST", _ if (action := _action(path)) is not None:
                self._act(action, path.removesuffix(action))
            case _ if _action(path) is not None:
                self._refuse_route(method, path)
            case "POST", "/v1/shutdown":
                service.shutdown()
                self._respond(202, Stopping())
            case "GET", _ if path.startswith(_VOLUME_PREFIX):
                service.volume(_volume_name(path), self._reply_with(200))
            case "PATCH", _ if path.startswith(_VOLUME_PREFIX):
                service.change_volume(_volume_name(path), self._decode_change(), self._reply_with(200))
            case "DELETE", _ if path.startswith(_VOLUME_PREFIX):
                is_set = _flags(query, "force", "snapshots")
                name, reply = _volume_name(path), self._reply_with(200)
                service.remove_volume(name, reply, force=is_set["force"], snapshots=is_set["snapshots"])
            case _:
                self._refuse_route(method, path)

    def _act(self, action: str, path: str) -> None:
        """Do what is asked of the volume at `path` by a POST to something below it."""
        service = self._service
        match action:
            case "/acknowledge-loss":
                wanted_epoch = self._decode(AcknowledgeLoss, "a loss to acknowledge").loss_epoch
                service.acknowledge_loss(_volume_name(path), wanted_epoch, self._reply_with(200))
            case "/clone":
                service.clone_volume(_volume_name(path), self._decode_clone(), self._reply_with(201))
            case "/promote":
                self._expect_no_body()
                service.promote_volume(_volume_name(path), self._reply_with(200))
            case "/resize":
                wanted_size = self._decode(ResizeVolume, "a size for a volume")
                validate_volume_size(wanted_size.size_bytes)
                service.resize_volume(_volume_name(path), wanted_size, self._reply_with(200))
            case _:
                assert action == _ROLL_BACK, action
                self._expect_no_body()
                snapshot = validate_snapshot_name(path.removeprefix(_VOLUME_PREFIX))
                service.roll_back_volume(snapshot, self._reply_with(200))

    def _refuse_route(self, method: str, path: str) -> None:
        allowed = _METHODS.get(path)
        if _action(path) is not None:
            allowed = "POST"
        elif path.startswith((_VOLUME_PREFIX, _GROUP_PREFIX)):
            allowed = "GET, PATCH, DELETE"
        if allowed is None:
            self._respond(404, _error_answer("not_found", f"there is nothing at {path}", 2))
        else:
            message = f"{method} does not apply to {path}; it knows {allowed}"
            self._respond(405, _error_answer("request", message, 22), allow=allowed)

    def _decode_create(self) -> CreateVolume:
        wanted = self._decode(CreateVolume, "a volume to create")
        validate_volume_name(wanted.name)
        validate_volume_size(wanted.size_bytes)
        validate_quota(wanted.quota_bytes)
        validate_wait(wanted.on_full_wait_s)
        return wanted

    def _decode_clone(self) -> CloneVolume:
        wanted = self._decode(CloneVolume, "a clone to make")
        validate_volume_name(wanted.name)
        validate_quota(wanted.quota_bytes)
        validate_wait(wanted.on_full_wait_s)
        return wanted

    def _decode_snapshots(self) -> TakeSnapshots:
        wanted = self._decode(TakeSnapshots, "snapshots to take")
        if not wanted.names:
            raise RequestError("no snapshot is named; give at least one as VOLUME@SNAPSHOT")
        for name in wanted.names:
            validate_snapshot_name(name)
        validate_identity(wanted)
        return wanted

    def _expect_no_body(self) -> None:
        """What is asked takes no options: whoever sends some means something that would not be done."""
        if bytes(self._body) not in (b"", b"{}"):
            raise RequestError("this request takes no body")

    def _decode_change(self) -> ChangeVolume:
        change = self._decode(ChangeVolume, "a change of a volume")
        validate_quota(change.quota_bytes or 0)
        validate_wait(change.on_full_wait_s or 0)
        return change

    def _decode_group(self, wanted: type[_G]) -> _G:
        change = self._decode(wanted, "a group")
        validate_group(change)
        return change

    def _decode(self, wanted: type[_T], what: str) -> _T:
        try:
            return msgspec.json.decode(self._body, type=wanted)
        except msgspec.DecodeError as error:
            raise RequestError(f"the request body is not {what}: {error}") from error

    # --- Answering ----------------------------------------------------------------------------------------------------

    def _reply_with(self, status: int) -> Callable[[Answer | HoldfastError], None]:
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
                self._respond(status, answer)
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
        self._respond(status, answer)

    def _respond_metrics(self, text: bytes) -> None:
        self._respond_bytes(200, METRICS_CONTENT_TYPE, text)

    def _respond(self, status: int, answer: object, *, close: bool = False, allow: str | None = None) -> None:
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
    """A scraper's connection: nothing of the service but its metrics can be reached through it."""

    def _route(self, method: str, path: str, query: str) -> None:
        if path != METRICS_PATH:
            self._respond(404, _error_answer("not_found", f"there is nothing at {path}; only {METRICS_PATH}", 2))
        elif method != "GET":
            self._refuse_route(method, path)
        else:
            self._respond_metrics(self._service.metrics(age_ns_max=SCRAPE_AGE_NS_MAX))


def _error_answer(kind: str, message: str, errno: int) -> ErrorAnswer:
    return ErrorAnswer(error=ErrorBody(kind=kind, message=message, errno=errno))


def _action(path: str) -> str | None:
    """What is asked of a volume by a path below its own; None if it is its own. Also where the volume's name is empty
    or none: that is refused as a name."""
    if path.startswith(_VOLUME_PREFIX):
        for action in _ACTIONS:
            if path.endswith(action) and len(path) > len(_VOLUMES + action):
                return action
    return None


def _volume_name(path: str) -> str:
    return validate_name(path.removeprefix(_VOLUME_PREFIX))


def _parameters(query: str, *known: str) -> dict[str, str]:
    """The last value of each parameter; RequestError for one that is not known."""
    parameters = parse_qs(query, keep_blank_values=True)
    unknown = parameters.keys() - set(known)
    if unknown:
        raise RequestError(f"the parameter {min(unknown)!r} is not known here; these are: {', '.join(known)}")
    return {name: values[-1] for name, values in parameters.items()}


def _flags(query: str, *names: str) -> dict[str, bool]:
    """True for `name=true`, `name=1` and a bare `name`; RequestError for any other value or parameter."""
    parameters = _parameters(query, *names)
    flags = {}
    for name in names:
        value = parameters.get(name, "false")
        if value not in ("", "1", "true", "0", "false"):
            raise RequestError(f"{name}={value} is neither true nor false")
        flags[name] = value in ("", "1", "true")
    return flags


def _which_snapshots(query: str) -> tuple[str, int]:
    """Of which volume ("": of all), and behind which id."""
    parameters = _parameters(query, "of", "after")
    of, after = parameters.get("of", ""), parameters.get("after") or "0"
    if of:
        validate_volume_name(of)
    if not after.isascii() or not after.isdecimal() or len(after) > 18:
        raise RequestError(f"after={after} is not the id of a snapshot; take it from `next` of the answer before")
    return of, int(after)
