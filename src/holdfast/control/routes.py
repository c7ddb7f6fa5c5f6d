"""What the paths of the control API mean: each request is checked and passed to the `Service`.

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

What is not one of these is answered 404 or 405; what is not valid raises RequestError, and nothing was done. How
requests arrive and answers leave: `control/http.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar
from urllib.parse import parse_qs

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
    validate_identity,
    validate_quota,
    validate_volume_size,
    validate_wait,
)
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupList, validate_group
from holdfast.control.names import validate_name, validate_snapshot_name, validate_volume_name
from holdfast.control.space_api import ChangePool, ResizeVolume, validate_capacity
from holdfast.errors import HoldfastError, RequestError

METRICS_PATH: Final = "/metrics"
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


Reply = Callable[[Answer | HoldfastError], None]


@dataclass(frozen=True, slots=True)
class Request:
    """`path`: unquoted."""

    method: str
    path: str
    query: str
    body: bytearray


class Answers(Protocol):
    """Where the answer to the present request goes: exactly one, at once or later."""

    def respond(self, status: int, answer: object, *, allow: str | None = None) -> None: ...

    def respond_metrics(self, text: bytes) -> None: ...

    def reply_with(self, status: int) -> Reply:
        """A callback that answers it, once."""
        ...


def route(service: Service, request: Request, answers: Answers) -> None:
    """Have a request carried out. Raises HoldfastError, which is the answer then."""
    method, path = request.method, request.path
    match method, path:
        case "GET", "/metrics":
            answers.respond_metrics(service.metrics())
        case "GET", "/v1/pool":
            answers.respond(200, service.status())
        case "PATCH", "/v1/pool":
            wanted_pool = _decode(request, ChangePool, "a change of the pool")
            validate_capacity(wanted_pool.capacity_bytes)
            service.change_pool(wanted_pool, answers.reply_with(200))
        case "GET", "/v1/statistics":
            answers.respond(200, service.statistics())
        case "GET", "/v1/waits":
            answers.respond(200, service.waits())
        case "GET", "/v1/volumes":
            answers.respond(200, VolumeList(volumes=service.volumes()))
        case "POST", "/v1/volumes":
            wanted = _decode_create(request)
            service.create_volume(wanted, answers.reply_with(201))
        case "GET", _ if path == _GROUPS:
            answers.respond(200, GroupList(groups=service.groups()))
        case "POST", _ if path == _GROUPS:
            service.create_group(_decode_group(request, CreateGroup), answers.reply_with(201))
        case "GET", _ if path.startswith(_GROUP_PREFIX):
            answers.respond(200, service.group(path.removeprefix(_GROUP_PREFIX)))
        case "PATCH", _ if path.startswith(_GROUP_PREFIX):
            change = _decode_group(request, ChangeGroup)
            service.change_group(path.removeprefix(_GROUP_PREFIX), change, answers.reply_with(200))
        case "DELETE", _ if path.startswith(_GROUP_PREFIX):
            service.remove_group(path.removeprefix(_GROUP_PREFIX), answers.reply_with(200))
        case "GET", _ if path == _SNAPSHOTS:
            of, after = _which_snapshots(request.query)
            answers.respond(200, service.snapshots(of=of, after=after))
        case "POST", _ if path == _SNAPSHOTS:
            service.take_snapshots(_decode_snapshots(request), answers.reply_with(201))
        case "POST", _ if (action := _action(path)) is not None:
            _act(service, action, path.removesuffix(action), request, answers)
        case _ if _action(path) is not None:
            refuse_route(request, answers)
        case "POST", "/v1/shutdown":
            service.shutdown()
            answers.respond(202, Stopping())
        case "GET", _ if path.startswith(_VOLUME_PREFIX):
            service.volume(_volume_name(path), answers.reply_with(200))
        case "PATCH", _ if path.startswith(_VOLUME_PREFIX):
            service.change_volume(_volume_name(path), _decode_change(request), answers.reply_with(200))
        case "DELETE", _ if path.startswith(_VOLUME_PREFIX):
            is_set = _flags(request.query, "force", "snapshots")
            name, reply = _volume_name(path), answers.reply_with(200)
            service.remove_volume(name, reply, force=is_set["force"], snapshots=is_set["snapshots"])
        case _:
            refuse_route(request, answers)


def _act(service: Service, action: str, path: str, request: Request, answers: Answers) -> None:
    """Do what is asked of the volume at `path` by a POST to something below it."""
    match action:
        case "/acknowledge-loss":
            wanted_epoch = _decode(request, AcknowledgeLoss, "a loss to acknowledge").loss_epoch
            service.acknowledge_loss(_volume_name(path), wanted_epoch, answers.reply_with(200))
        case "/clone":
            service.clone_volume(_volume_name(path), _decode_clone(request), answers.reply_with(201))
        case "/promote":
            _expect_no_body(request)
            service.promote_volume(_volume_name(path), answers.reply_with(200))
        case "/resize":
            wanted_size = _decode(request, ResizeVolume, "a size for a volume")
            validate_volume_size(wanted_size.size_bytes)
            service.resize_volume(_volume_name(path), wanted_size, answers.reply_with(200))
        case _:
            assert action == _ROLL_BACK, action
            _expect_no_body(request)
            snapshot = validate_snapshot_name(path.removeprefix(_VOLUME_PREFIX))
            service.roll_back_volume(snapshot, answers.reply_with(200))


def refuse_route(request: Request, answers: Answers) -> None:
    """There is nothing at the path, or it does not know the method."""
    method, path = request.method, request.path
    allowed = _METHODS.get(path)
    if _action(path) is not None:
        allowed = "POST"
    elif path.startswith((_VOLUME_PREFIX, _GROUP_PREFIX)):
        allowed = "GET, PATCH, DELETE"
    if allowed is None:
        answers.respond(404, error_answer("not_found", f"there is nothing at {path}", 2))
    else:
        message = f"{method} does not apply to {path}; it knows {allowed}"
        answers.respond(405, error_answer("request", message, 22), allow=allowed)


def _decode_create(request: Request) -> CreateVolume:
    wanted = _decode(request, CreateVolume, "a volume to create")
    validate_volume_name(wanted.name)
    validate_volume_size(wanted.size_bytes)
    validate_quota(wanted.quota_bytes)
    validate_wait(wanted.on_full_wait_s)
    return wanted


def _decode_clone(request: Request) -> CloneVolume:
    wanted = _decode(request, CloneVolume, "a clone to make")
    validate_volume_name(wanted.name)
    validate_quota(wanted.quota_bytes)
    validate_wait(wanted.on_full_wait_s)
    return wanted


def _decode_snapshots(request: Request) -> TakeSnapshots:
    wanted = _decode(request, TakeSnapshots, "snapshots to take")
    if not wanted.names:
        raise RequestError("no snapshot is named; give at least one as VOLUME@SNAPSHOT")
    for name in wanted.names:
        validate_snapshot_name(name)
    validate_identity(wanted)
    return wanted


def _expect_no_body(request: Request) -> None:
    """What is asked takes no options: whoever sends some means something that would not be done."""
    if bytes(request.body) not in (b"", b"{}"):
        raise RequestError("this request takes no body")


def _decode_change(request: Request) -> ChangeVolume:
    change = _decode(request, ChangeVolume, "a change of a volume")
    validate_quota(change.quota_bytes or 0)
    validate_wait(change.on_full_wait_s or 0)
    return change


def _decode_group(request: Request, wanted: type[_G]) -> _G:
    change = _decode(request, wanted, "a group")
    validate_group(change)
    return change


def _decode(request: Request, wanted: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(request.body, type=wanted)
    except msgspec.DecodeError as error:
        raise RequestError(f"the request body is not {what}: {error}") from error


def route_metrics(service: Service, request: Request, answers: Answers) -> None:
    """The same for a scraper: nothing of the service but its metrics can be reached."""
    path = request.path
    if path != METRICS_PATH:
        answers.respond(404, error_answer("not_found", f"there is nothing at {path}; only {METRICS_PATH}", 2))
    elif request.method != "GET":
        refuse_route(request, answers)
    else:
        answers.respond_metrics(service.metrics(age_ns_max=SCRAPE_AGE_NS_MAX))


def error_answer(kind: str, message: str, errno: int) -> ErrorAnswer:
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
