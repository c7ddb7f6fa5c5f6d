"""The client's side of the handshake, sans-I/O: comes to terms with a server about one export.

It works against any server of the newstyle handshake: one without structured replies, without GO, even one without
fixed newstyle, costs features and nothing else.

Invariants
 1. What does not follow the protocol raises ProtocolError, upon which the connection must be closed.
 2. Bounded: it holds the replies to one option, at most REPLY_COUNT_MAX of REPLY_BYTES_MAX each.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from holdfast.errors import GoneError, HoldfastError, NotFoundError, RequestError
from holdfast.nbd.options import OPTION_HEADER, REPLY_HEADER
from holdfast.nbd.protocol import (
    BASE_ALLOCATION,
    CHANGED_SINCE,
    EXPORT_NAME_ZEROES,
    FLAG_C_FIXED_NEWSTYLE,
    FLAG_C_NO_ZEROES,
    FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAXIMUM_PAYLOAD_BYTES,
    NBDMAGIC,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_SET_META_CONTEXT,
    OPT_STRUCTURED_REPLY,
    REP_ACK,
    REP_ERR_SHUTDOWN,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_FLAG_ERROR,
    REP_INFO,
    REP_MAGIC,
    REP_META_CONTEXT,
    ProtocolError,
)
from holdfast.units import KIB

REPLY_BYTES_MAX: Final = 64 * KIB
REPLY_COUNT_MAX: Final = 64

_GREETING: Final = Struct(">QQH")
_EXPORT_NAME_REPLY: Final = Struct(">QH")
_INFO_EXPORT: Final = Struct(">HQH")
_INFO_BLOCK_SIZE: Final = Struct(">HIII")
_INFO_REQUESTS: Final = Struct(">HH")
_UINT16: Final = Struct(">H")
_UINT32: Final = Struct(">I")

_Answers = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class ServerTerms:
    """What a server offers on a connection.  The block sizes are the protocol's defaults where it told none."""

    size_bytes: int
    flags: int  # FLAG_HAS_FLAGS and the others
    structured: bool
    base_allocation_context: int | None  # the id of base:allocation, if it is selected
    minimum_block_bytes: int = 1
    preferred_block_bytes: int = 4096
    maximum_payload_bytes: int = MAXIMUM_PAYLOAD_BYTES
    changed_since_context: int | None = None  # likewise of CHANGED_SINCE and the snapshot that was asked for


class ClientHandshake:
    """Comes to terms with a server about one export: `terms` is set when that is done.

    trailing: bytes that the server sent after the handshake (none, before it is asked something)
    """

    def __init__(
        self, export: str, *, structured: bool = True, base_allocation: bool = True, changed_since: str = ""
    ) -> None:
        """`changed_since`: the snapshot of which to ask for the changes since then, if the server knows such."""
        self.terms: ServerTerms | None = None
        self.trailing = b""
        self._export = export.encode()
        self._wants_structured = structured
        self._contexts = [BASE_ALLOCATION] if structured and base_allocation else []
        if structured and changed_since:
            self._contexts.append(CHANGED_SINCE + changed_since)
        self._data = bytearray()
        self._output = bytearray()
        # The course of the handshake is a generator: it yields how many bytes it needs and finds them in `_unit`.
        self._unit = b""
        self._course = self._run()
        self._needed_bytes = next(self._course)

    def data_to_send(self) -> bytes:
        """What is to be sent now, and is forgotten here."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take in what the server sent.

        Raises NotFoundError if it has no such export, GoneError if it is shutting down, RequestError with the
        server's own words if it refuses otherwise, and ProtocolError if it does not speak the protocol.
        """
        assert self.terms is None, "the handshake is over: these bytes belong to the transmission phase"
        self._data += data
        while len(self._data) >= self._needed_bytes:
            self._unit = bytes(self._data[: self._needed_bytes])
            del self._data[: self._needed_bytes]
            try:
                self._needed_bytes = next(self._course)
            except StopIteration:
                self.trailing = bytes(self._data)
                self._data.clear()
                return

    def _run(self) -> Generator[int, None, None]:
        yield _GREETING.size
        magic, version, flags = _GREETING.unpack(self._unit)
        if (magic, version) != (NBDMAGIC, IHAVEOPT):
            raise ProtocolError("this is no NBD server of the newstyle handshake")
        no_zeroes = bool(flags & FLAG_NO_ZEROES)
        fixed = bool(flags & FLAG_FIXED_NEWSTYLE)
        client_flags = (FLAG_C_FIXED_NEWSTYLE if fixed else 0) | (FLAG_C_NO_ZEROES if no_zeroes else 0)
        self._output += client_flags.to_bytes(4, "big")

        structured = False
        contexts: dict[str, int] = {}
        if fixed:
            if self._wants_structured:
                self._ask(OPT_STRUCTURED_REPLY, b"")
                answers = yield from self._answers(OPT_STRUCTURED_REPLY)
                structured = answers[-1][0] == REP_ACK
            if structured and self._contexts:
                queries = b"".join(_string(name.encode()) for name in self._contexts)
                self._ask(OPT_SET_META_CONTEXT, _string(self._export) + _UINT32.pack(len(self._contexts)) + queries)
                answers = yield from self._answers(OPT_SET_META_CONTEXT)
                contexts = _selected_contexts(answers)
            self._ask(OPT_GO, _string(self._export) + _INFO_REQUESTS.pack(1, INFO_BLOCK_SIZE))
            answers = yield from self._answers(OPT_GO)
            kind, message = answers[-1]
            if kind == REP_ACK:
                self.terms = _terms(answers, structured=structured, contexts=contexts)
                return
            if kind != REP_ERR_UNSUP:
                raise _refusal(kind, message, self._export)

        self._ask(OPT_EXPORT_NAME, self._export)
        yield _EXPORT_NAME_REPLY.size
        size_bytes, transmission = _EXPORT_NAME_REPLY.unpack(self._unit)
        if not no_zeroes:
            yield EXPORT_NAME_ZEROES
        self.terms = ServerTerms(
            size_bytes,
            transmission,
            structured,
            contexts.get(BASE_ALLOCATION),
            changed_since_context=_changed_since(contexts),
        )

    def _ask(self, option: int, data: bytes) -> None:
        self._output += OPTION_HEADER.pack(IHAVEOPT, option, len(data)) + data

    def _answers(self, option: int) -> Generator[int, None, _Answers]:
        """The replies to an option, (type, data) each, the final one last."""
        answers: _Answers = []
        while not answers or (answers[-1][0] != REP_ACK and not answers[-1][0] & REP_FLAG_ERROR):
            yield REPLY_HEADER.size
            magic, replied_to, kind, length = REPLY_HEADER.unpack(self._unit)
            if magic != REP_MAGIC or replied_to != option:
                raise ProtocolError(f"the reply to option {option} begins with {self._unit[:12].hex()}")
            if length > REPLY_BYTES_MAX or len(answers) == REPLY_COUNT_MAX:
                raise ProtocolError(f"the reply to option {option} is too long")
            yield length
            answers.append((kind, self._unit))
        return answers


def _string(data: bytes) -> bytes:
    return _UINT32.pack(len(data)) + data


def _selected_contexts(answers: _Answers) -> dict[str, int]:
    """The ids of the contexts that are selected, as the answers to SET_META_CONTEXT say."""
    if answers[-1][0] != REP_ACK:
        return {}
    return {
        data[_UINT32.size :].decode("utf-8", "replace"): _UINT32.unpack_from(data)[0]
        for kind, data in answers
        if kind == REP_META_CONTEXT and len(data) > _UINT32.size
    }


def _changed_since(contexts: dict[str, int]) -> int | None:
    return next((number for name, number in contexts.items() if name.startswith(CHANGED_SINCE)), None)


def _terms(answers: _Answers, *, structured: bool, contexts: dict[str, int]) -> ServerTerms:
    """The terms, of the REP_INFOs that came before the ACK of a GO. Infos of other types are to be ignored."""
    export: tuple[int, int] | None = None
    sizes: tuple[int, int, int] = (1, 4096, MAXIMUM_PAYLOAD_BYTES)
    for kind, data in answers:
        if kind != REP_INFO:
            continue
        info = _UINT16.unpack_from(data)[0] if len(data) >= _UINT16.size else None
        if info == INFO_EXPORT and len(data) == _INFO_EXPORT.size:
            _, size_bytes, flags = _INFO_EXPORT.unpack(data)
            export = (size_bytes, flags)
        elif info == INFO_BLOCK_SIZE and len(data) == _INFO_BLOCK_SIZE.size:
            _, minimum, preferred, maximum = _INFO_BLOCK_SIZE.unpack(data)
            sizes = (minimum, preferred, maximum)
    if export is None:
        raise ProtocolError("the server accepted the export without a word about its size")
    return ServerTerms(
        *export, structured, contexts.get(BASE_ALLOCATION), *sizes, changed_since_context=_changed_since(contexts)
    )


def _refusal(kind: int, message: bytes, export: bytes) -> HoldfastError:
    """What to raise for an error reply to GO: its message is for people, so it is passed on."""
    name = export.decode()
    words = message.decode("utf-8", "replace") or f"error {kind & ~REP_FLAG_ERROR}"
    if kind == REP_ERR_UNKNOWN:
        return NotFoundError(f"the server has no export {name!r}: {words}")
    if kind == REP_ERR_SHUTDOWN:
        return GoneError(f"the server is shutting down: {words}")
    return RequestError(f"the server refused the export {name!r}: {words}")
