"""The numbers of the NBD protocol, under the names of its own document, and the errors that may travel.

This is the bottom of the wire room: the handshake, the request parser, the reply encoders and the client side all take
their constants from here, and it imports nothing of theirs.  The source is `doc/proto.md` of the NetworkBlockDevice/nbd
project; the NBD_ prefix is dropped, the rest of each name is kept so that it can be searched for there.

Invariants
 1. Every integer on the wire is big-endian and unsigned.
 2. Only the errno values of `WIRE_ERRNOS` leave the server: `wire_errno` is the one table that decides what another
    one becomes.
 3. The peer's misbehaviour is `ProtocolError`, and the only answer to it is to disconnect.  Our own misuse of this
    room is an AssertionError.
"""

from __future__ import annotations

import errno as errno_codes
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.units import KIB, MIB

# --- Handshake: greeting and flags ------------------------------------------------------------------------------------

NBDMAGIC: Final = 0x4E42444D41474943  # 'NBDMAGIC'
IHAVEOPT: Final = 0x49484156454F5054  # 'IHAVEOPT'; also opens every option of the client
REP_MAGIC: Final = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

FLAG_C_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_C_NO_ZEROES: Final = 1 << 1

EXPORT_NAME_ZEROES: Final = 124  # reserved bytes after the answer to EXPORT_NAME, unless NO_ZEROES was agreed on

# --- Handshake: options -----------------------------------------------------------------------------------------------

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10
OPT_EXTENDED_HEADERS: Final = 11

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_FLAG_ERROR: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_FLAG_ERROR | 1
REP_ERR_POLICY: Final = REP_FLAG_ERROR | 2
REP_ERR_INVALID: Final = REP_FLAG_ERROR | 3
REP_ERR_PLATFORM: Final = REP_FLAG_ERROR | 4
REP_ERR_TLS_REQD: Final = REP_FLAG_ERROR | 5
REP_ERR_UNKNOWN: Final = REP_FLAG_ERROR | 6
REP_ERR_SHUTDOWN: Final = REP_FLAG_ERROR | 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_FLAG_ERROR | 8
REP_ERR_TOO_BIG: Final = REP_FLAG_ERROR | 9
REP_ERR_EXT_HEADER_REQD: Final = REP_FLAG_ERROR | 10

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

STRING_BYTES_MAX: Final = 4096  # export names, context names, error messages

# --- Transmission flags -----------------------------------------------------------------------------------------------

FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_ROTATIONAL: Final = 1 << 4
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_RESIZE: Final = 1 << 9
FLAG_SEND_CACHE: Final = 1 << 10
FLAG_SEND_FAST_ZERO: Final = 1 << 11

# --- Requests ---------------------------------------------------------------------------------------------------------

REQUEST_MAGIC: Final = 0x25609513
REQUEST_BYTES: Final = 28

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

# --- Replies ----------------------------------------------------------------------------------------------------------

SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

REPLY_FLAG_DONE: Final = 1 << 0

REPLY_TYPE_NONE: Final = 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_FLAG_ERROR: Final = 1 << 15
REPLY_TYPE_ERROR: Final = REPLY_TYPE_FLAG_ERROR | 1
REPLY_TYPE_ERROR_OFFSET: Final = REPLY_TYPE_FLAG_ERROR | 2

# --- Metadata contexts ------------------------------------------------------------------------------------------------

BASE_ALLOCATION: Final = "base:allocation"
BASE_ALLOCATION_CONTEXT: Final = 1  # the id that we give it; the protocol leaves the number to the server

STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

# A context of our own: followed by the name of a snapshot, it tells what is not as it was then. One can be selected.
CHANGED_SINCE: Final = "holdfast:changed-since:"
CHANGED_SINCE_CONTEXT: Final = 2

STATE_CHANGED: Final = 1 << 0

BLOCK_STATUS_EXTENTS_MAX: Final = 1 << 20  # in one chunk

# --- Sizes that the document leaves to the server ---------------------------------------------------------------------

# 32 MiB is what clients assume of a server that announces nothing, so it is the least that may be announced without
# surprising one; more would only let a single request hold more of the receive path.
MAXIMUM_PAYLOAD_BYTES: Final = 32 * MIB

# A WRITE beyond the announced maximum is drained and refused up to here, for the sake of clients that never asked for
# the maximum.  Beyond it the peer is taken to be hostile or out of step, and draining would only serve it.
WRITE_DRAIN_BYTES_MAX: Final = 64 * MIB

# The longest READ that is answered out of the shared reply buffer; the owner of the connection streams longer ones.
LARGE_READ_BYTES: Final = 64 * KIB


class ProtocolError(HoldfastError):
    """The peer broke a rule after which the stream cannot be followed, or is not worth following: disconnect it."""

    errno = errno_codes.EPROTO


# --- Errors -----------------------------------------------------------------------------------------------------------

# The document fixes the numbers.  They are Linux's on x86 and ARM, but MIPS and SPARC number some of them differently.
EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

WIRE_ERRNOS: Final = frozenset((EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN))

# What is not listed becomes EIO: the client learns that the request failed and nothing that could mislead it.
_WIRE_ERRNO: Final = {
    errno_codes.EPERM: EPERM,
    errno_codes.EACCES: EPERM,
    errno_codes.EROFS: EPERM,
    errno_codes.EIO: EIO,
    errno_codes.ENOMEM: ENOMEM,
    errno_codes.EINVAL: EINVAL,
    errno_codes.ENOSPC: ENOSPC,
    errno_codes.EDQUOT: ENOSPC,
    errno_codes.EFBIG: ENOSPC,
    errno_codes.EOVERFLOW: EOVERFLOW,
    errno_codes.ENOTSUP: ENOTSUP,
    errno_codes.ESHUTDOWN: ESHUTDOWN,
}


def wire_errno(errno: int) -> int:
    """The error value that tells a client of a failure with this (positive) errno of the host."""
    assert errno > 0, errno
    return _WIRE_ERRNO.get(errno, EIO)
