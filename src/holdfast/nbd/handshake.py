"""The server's side of the handshake: from the first byte of a connection to its transmission phase.

Bytes go in by `receive_data`, bytes come out by `data_to_send`; in the end either `negotiated` or `closed` is set.
The owner of the connection sends what there is to send in both cases, then changes over to `RequestReader`, beginning
with `trailing`, or closes.  Time limits are the owner's as well.

It speaks fixed newstyle.  TLS, extended headers and resizing are options that it does not know: REP_ERR_UNSUP.

Invariants
 1. Whatever is sent to it, no exception comes out; a stream that cannot be followed sets `closed`.
 2. It stays in step: the data of an option is consumed to its declared end before the answer, whatever the answer.
 3. Bounded: it holds at most one option of OPTION_BYTES_MAX and OUTPUT_BYTES_MAX plus one answer, which is bounded by
    OUTPUT_BYTES_MAX too.  A connection has OPTION_COUNT_MAX options of OPTION_BYTES_TOTAL_MAX together: a client needs
    some six options, so more is an attack on our time.
 4. The answers depend on the bytes alone, not on how they were cut (as long as what there is to send is taken).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from holdfast.nbd.negotiated import Export, ExportDirectory, Negotiated, transmission_flags
from holdfast.nbd.options import (
    OPTION_HEADER,
    MalformedOptionError,
    decode_string,
    encode_info_block_size,
    encode_infos,
    encode_meta_context,
    encode_reply,
    encode_server,
    parse_info,
    parse_meta_context,
)
from holdfast.nbd.protocol import (
    BASE_ALLOCATION,
    BASE_ALLOCATION_CONTEXT,
    CHANGED_SINCE,
    CHANGED_SINCE_CONTEXT,
    EXPORT_NAME_ZEROES,
    FLAG_C_FIXED_NEWSTYLE,
    FLAG_C_NO_ZEROES,
    FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    NBDMAGIC,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT,
    OPT_STRUCTURED_REPLY,
    REP_ACK,
    REP_ERR_BLOCK_SIZE_REQD,
    REP_ERR_INVALID,
    REP_ERR_SHUTDOWN,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_INFO,
    REP_META_CONTEXT,
    REP_SERVER,
)
from holdfast.units import KIB, MIB

__all__ = ["Export", "ExportDirectory", "Handshake", "Negotiated"]

# The longest options in use carry two strings of at most 4096 bytes each.
OPTION_BYTES_MAX: Final = 64 * KIB
OPTION_COUNT_MAX: Final = 1024
OPTION_BYTES_TOTAL_MAX: Final = 32 * MIB
OUTPUT_BYTES_MAX: Final = 1 * MIB
META_QUERY_COUNT_MAX: Final = 256

_GREETING: Final = Struct(">QQH")
_CLIENT_FLAGS: Final = Struct(">I")
_EXPORT_NAME_REPLY: Final = Struct(">QH")
_KNOWN_CLIENT_FLAGS: Final = FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES
_META_CONTEXT_OPTIONS: Final = (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT)
_OPTIONS: Final = frozenset(
    (OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, *_META_CONTEXT_OPTIONS)
)


def _never() -> bool:
    return False


class Handshake:
    """The handshake of one connection.

    negotiated: the terms, once transmission has been entered
    closed:     the connection is to be closed, after what there is to send has been sent
    trailing:   with `negotiated`, the bytes received that belong to transmission already
    """

    __slots__ = (
        "_client_flags",
        "_context_allocation",
        "_context_base",
        "_context_export",
        "_data",
        "_exports",
        "_option",
        "_option_bytes_total",
        "_option_count",
        "_output",
        "_shutting_down",
        "_skip_bytes",
        "_structured",
        "closed",
        "negotiated",
        "trailing",
    )

    def __init__(self, exports: ExportDirectory, *, shutting_down: Callable[[], bool] = _never) -> None:
        self.negotiated: Negotiated | None = None
        self.closed = False
        self.trailing = b""
        self._exports = exports
        self._shutting_down = shutting_down
        self._data = bytearray()  # received and not yet used
        self._output = bytearray(_GREETING.pack(NBDMAGIC, IHAVEOPT, FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))
        self._client_flags: int | None = None
        self._option = 0  # the option whose data is being skipped
        self._skip_bytes = 0  # how much of it is still to come
        self._option_count = 0
        self._option_bytes_total = 0
        self._structured = False
        # The contexts that are selected, and the name of the export for which they are: they count only for that one.
        self._context_export: str | None = None
        self._context_allocation = False
        self._context_base: str | None = None  # as the client named it

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take in what was received.  The view is the caller's again when this returns."""
        assert self.closed or not self._finished(), "these bytes belong to the transmission phase"
        if self._finished():
            return
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            if self._skip_bytes:
                return
            self._oversized()
            if self._finished():
                return
            data = data[skipped:]
        self._data += data
        while self._step():
            if self._finished():
                self._data.clear()
                break

    def data_to_send(self) -> bytes:
        """What is to be sent now, and is forgotten here."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def _finished(self) -> bool:
        return self.closed or self.negotiated is not None

    def _step(self) -> bool:
        """Use the next unit of the received data, if it is there in full."""
        if self._client_flags is None:
            if len(self._data) < _CLIENT_FLAGS.size:
                return False
            (self._client_flags,) = _CLIENT_FLAGS.unpack(self._take(_CLIENT_FLAGS.size))
            self.closed = bool(self._client_flags & ~_KNOWN_CLIENT_FLAGS)
            return True
        if len(self._data) < OPTION_HEADER.size:
            return False
        magic, option, length = OPTION_HEADER.unpack_from(self._data)
        if magic != IHAVEOPT:
            self.closed = True
            return True
        if length <= OPTION_BYTES_MAX and len(self._data) < OPTION_HEADER.size + length:
            return False
        if not self._admit(option, length):
            self.closed = True
            return True
        self._take(OPTION_HEADER.size)
        if length > OPTION_BYTES_MAX:
            self._option = option
            skipped = min(length, len(self._data))
            self._take(skipped)
            self._skip_bytes = length - skipped
            if self._skip_bytes:
                return False
            self._oversized()
        else:
            self._answer(option, self._take(length))
        return True

    def _take(self, length: int) -> bytes:
        taken = bytes(self._data[:length])
        del self._data[:length]
        return taken

    def _admit(self, option: int, length: int) -> bool:
        """False where the client must be disconnected: it does not play by the rules, or plays to wear us out."""
        self._option_count += 1
        self._option_bytes_total += length
        if self._option_count > OPTION_COUNT_MAX or self._option_bytes_total > OPTION_BYTES_TOTAL_MAX:
            return False
        # Answers pile up only if the client sends options without reading, which the protocol forbids.
        if len(self._output) > OUTPUT_BYTES_MAX:
            return False
        if option == OPT_EXPORT_NAME:
            return True
        # To a client that does not know fixed newstyle, no other option and no reply to one has a meaning.
        return bool((self._client_flags or 0) & FLAG_C_FIXED_NEWSTYLE)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._output += encode_reply(option, kind, data)

    def _fail(self, option: int, kind: int, message: str) -> None:
        """Answer an option with an error; EXPORT_NAME knows no errors, so it is answered by closing."""
        if option == OPT_EXPORT_NAME:
            self.closed = True
        else:
            self._reply(option, kind, message.encode())

    def _oversized(self) -> None:
        """Answer an option whose data was too long to be kept: it has been skipped."""
        option = self._option
        if option == OPT_ABORT or option not in _OPTIONS:
            self._answer(option, b"")
        else:
            self._forget_contexts(option)
            self._fail(option, REP_ERR_TOO_BIG, f"the option is longer than {OPTION_BYTES_MAX} bytes")

    def _forget_contexts(self, option: int) -> None:
        # A SET replaces what was selected before even when it fails.
        if option == OPT_SET_META_CONTEXT:
            self._context_export = self._context_base = None
            self._context_allocation = False

    def _answer(self, option: int, data: bytes) -> None:
        """Carry out one option whose data is complete."""
        self._forget_contexts(option)
        if option == OPT_ABORT:
            # Its data, though there should be none, is to be ignored.
            self._reply(option, REP_ACK)
            self.closed = True
        elif self._shutting_down():
            self._fail(option, REP_ERR_SHUTDOWN, "the server is shutting down")
        elif option not in _OPTIONS:
            self._fail(option, REP_ERR_UNSUP, f"option {option} is not known here")
        else:
            try:
                self._carry_out(option, data)
            except MalformedOptionError as error:
                self._fail(option, REP_ERR_INVALID, str(error))

    def _carry_out(self, option: int, data: bytes) -> None:
        if option in (OPT_INFO, OPT_GO):
            self._info(option, data)
        elif option == OPT_EXPORT_NAME:
            self._export_name(data)
        elif option in _META_CONTEXT_OPTIONS:
            self._meta_context(option, data)
        elif data:
            raise MalformedOptionError(f"the option takes no data but came with {len(data)} bytes")
        elif option == OPT_LIST:
            self._list()
        else:
            assert option == OPT_STRUCTURED_REPLY, option
            self._structured = True
            self._reply(option, REP_ACK)

    def _list(self) -> None:
        answer = bytearray()
        for name in self._exports.names():
            export = self._exports.find(name)
            description = "" if export is None else export.description
            answer += encode_reply(OPT_LIST, REP_SERVER, encode_server(name, description))
            if len(answer) > OUTPUT_BYTES_MAX:
                self._fail(OPT_LIST, REP_ERR_TOO_BIG, "there are too many exports to list")
                return
        self._output += answer
        self._reply(OPT_LIST, REP_ACK)

    def _export_name(self, data: bytes) -> None:
        export = self._exports.find(decode_string(data, "export name"))
        if export is None:
            self.closed = True
            return
        self._output += _EXPORT_NAME_REPLY.pack(
            export.size_bytes, transmission_flags(export, structured=self._structured)
        )
        if not (self._client_flags or 0) & FLAG_C_NO_ZEROES:
            self._output += bytes(EXPORT_NAME_ZEROES)
        self._enter_transmission(export)

    def _info(self, option: int, data: bytes) -> None:
        name, requests = parse_info(data)
        export = self._exports.find(name)
        if export is None:
            self._fail(option, REP_ERR_UNKNOWN, f"there is no export {name[:256]!r}")
        elif export.minimum_block_bytes > 1 and INFO_BLOCK_SIZE not in requests:
            # The sizes come along with the refusal, which saves the client one round trip.
            self._reply(option, REP_INFO, encode_info_block_size(export))
            self._fail(
                option, REP_ERR_BLOCK_SIZE_REQD, f"requests must be multiples of {export.minimum_block_bytes} bytes"
            )
        else:
            for info in encode_infos(export, requests, structured=self._structured):
                self._reply(option, REP_INFO, info)
            self._reply(option, REP_ACK)
            if option == OPT_GO:
                self._enter_transmission(export)

    def _meta_context(self, option: int, data: bytes) -> None:
        if not self._structured:
            raise MalformedOptionError("metadata contexts need structured replies, which were not negotiated")
        name, queries = parse_meta_context(data, query_count_max=META_QUERY_COUNT_MAX)
        export = self._exports.find(name)
        if export is None:
            self._fail(option, REP_ERR_UNKNOWN, f"there is no export {name[:256]!r}")
            return
        if queries is None:
            self._fail(option, REP_ERR_TOO_BIG, f"more than {META_QUERY_COUNT_MAX} queries")
            return
        # Namespaces and leaves that are not known here are passed over, as the protocol demands.
        if option == OPT_SET_META_CONTEXT:
            self._select_contexts(export, queries)
        else:
            self._list_contexts(export, queries)
        self._reply(option, REP_ACK)

    def _select_contexts(self, export: Export, queries: list[str]) -> None:
        self._context_export = export.name
        if BASE_ALLOCATION in queries:
            self._context_allocation = True
            data = encode_meta_context(BASE_ALLOCATION_CONTEXT, BASE_ALLOCATION)
            self._reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, data)
        for query in queries:
            if not query.startswith(CHANGED_SINCE):
                continue
            base = query.removeprefix(CHANGED_SINCE)
            if self._exports.base(export, base) is not None:
                self._context_base = base
                self._reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, encode_meta_context(CHANGED_SINCE_CONTEXT, query))
                break  # there is room for one; a client sees what it was given

    def _list_contexts(self, export: Export, queries: list[str]) -> None:
        names = []
        if not queries or BASE_ALLOCATION in queries or "base:" in queries:
            names.append(BASE_ALLOCATION)
        if not queries or "holdfast:" in queries or CHANGED_SINCE in queries:
            names += [CHANGED_SINCE + base for base in self._exports.bases(export)]
        names += [
            query
            for query in dict.fromkeys(queries)
            if query.startswith(CHANGED_SINCE)
            and query not in names
            and self._exports.base(export, query.removeprefix(CHANGED_SINCE)) is not None
        ]
        for name in names:
            self._reply(OPT_LIST_META_CONTEXT, REP_META_CONTEXT, encode_meta_context(0, name))

    def _enter_transmission(self, export: Export) -> None:
        selected = self._structured and self._context_export == export.name
        base = None
        if selected and self._context_base is not None:
            base = self._exports.base(export, self._context_base)  # it may have been removed meanwhile
        self.negotiated = Negotiated(
            export=export,
            structured=self._structured,
            base_allocation=selected and self._context_allocation,
            changed_since=base,
        )
        self.trailing = bytes(self._data)
