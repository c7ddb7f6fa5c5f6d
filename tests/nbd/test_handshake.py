"""The handshake, as the protocol's document wants it. Metadata contexts have a file of their own."""

from __future__ import annotations

import struct

import pytest

from holdfast.nbd.handshake import OPTION_COUNT_MAX, OUTPUT_BYTES_MAX, Handshake
from holdfast.nbd.negotiated import Export
from tests.nbd.wire import (
    SIZE_BYTES,
    STRUCTURED_REPLY,
    Exports,
    answers,
    go,
    handshake,
    kinds,
    option,
    request,
    string,
)

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO = 1, 2, 3, 5, 6, 7
ACK, SERVER, REP_INFO = 1, 2, 3
UNSUP, INVALID, UNKNOWN, SHUTDOWN, BLOCK_SIZE_REQD, TOO_BIG = ((1 << 31) + code for code in (1, 3, 6, 7, 8, 9))

# HAS_FLAGS FLUSH FUA TRIM WRITE_ZEROES MULTI_CONN CACHE FAST_ZERO; DF comes with structured replies.
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11
FLAGS_STRUCTURED = FLAGS | 1 << 7
FLAGS_READ_ONLY = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10


OPTION_HEADER_OF_20_MIB = b"IHAVEOPT" + struct.pack(">II", GO, 20 << 20)


def infos(machine: Handshake) -> dict[int, bytes]:
    """The infos of a successful INFO or GO, by type."""
    *found, last = answers(machine)
    assert last[1:] == (ACK, b"")
    assert all(kind == REP_INFO for _, kind, _ in found)
    by_type = {struct.unpack_from(">H", data)[0]: data[2:] for _, _, data in found}
    assert len(by_type) == len(found), "each type of information comes once"
    return by_type


def test_the_server_speaks_first() -> None:
    greeting = Handshake(Exports()).data_to_send()
    assert greeting == b"NBDMAGIC" + b"IHAVEOPT" + b"\x00\x03"


@pytest.mark.parametrize("flags", [1 << 2, 1 << 31, 0xFFFFFFFF])
def test_an_unknown_client_flag_closes_the_connection(flags: int) -> None:
    machine = handshake(client_flags=flags)
    assert machine.closed
    assert machine.data_to_send() == b""


def test_an_option_that_does_not_begin_with_its_magic_closes_the_connection() -> None:
    machine = handshake()
    machine.receive_data(b"IHAVEOPX" + bytes(8))
    assert machine.closed


def test_go_enters_transmission_without_padding() -> None:
    machine = handshake(client_flags=1)
    machine.receive_data(go())
    assert infos(machine)[0] == struct.pack(">QH", SIZE_BYTES, FLAGS)
    assert machine.negotiated is not None
    assert machine.negotiated.export.name == "disk0"
    assert not machine.negotiated.structured
    assert not machine.closed


def test_info_gives_the_same_answers_as_go_and_stays_in_the_handshake() -> None:
    machine = handshake()
    machine.receive_data(go("disk0", 1, 3, number=INFO))
    before = infos(machine)
    assert machine.negotiated is None
    machine.receive_data(go("disk0", 1, 3))
    assert infos(machine) == before
    assert machine.negotiated is not None


def test_block_sizes_are_told() -> None:
    machine = handshake()
    machine.receive_data(go("disk0", 3))
    assert infos(machine)[3] == struct.pack(">III", 1, 4096, 32 << 20)


def test_name_and_description_are_told_when_asked_for() -> None:
    machine = handshake(Exports([Export("disk0", 4096, description="the first")]))
    machine.receive_data(go("", 1, 2))
    found = infos(machine)
    assert (found[1], found[2]) == (b"disk0", b"the first")


def test_name_and_description_are_not_told_unasked() -> None:
    machine = handshake(Exports([Export("disk0", 4096, description="the first")]))
    machine.receive_data(go())
    assert set(infos(machine)) == {0, 3}


def test_unknown_information_requests_are_passed_over() -> None:
    machine = handshake()
    machine.receive_data(go("disk0", 77, 0xFFFF))
    assert set(infos(machine)) == {0, 3}


def test_structured_replies_bring_df_along() -> None:
    machine = handshake()
    machine.receive_data(STRUCTURED_REPLY)
    assert answers(machine) == [(8, ACK, b"")]
    machine.receive_data(go())
    assert infos(machine)[0] == struct.pack(">QH", SIZE_BYTES, FLAGS_STRUCTURED)
    assert machine.negotiated is not None
    assert machine.negotiated.structured


def test_a_read_only_export_announces_no_command_that_writes() -> None:
    machine = handshake(Exports([Export("disk0", 4096, read_only=True)]))
    machine.receive_data(go())
    assert infos(machine)[0] == struct.pack(">QH", 4096, FLAGS_READ_ONLY)


@pytest.mark.parametrize("number", [INFO, GO])
def test_an_unknown_export_is_an_error_that_the_client_can_survive(number: int) -> None:
    machine = handshake()
    machine.receive_data(go("nothing", number=number))
    assert kinds(answers(machine)) == [UNKNOWN]
    machine.receive_data(go())
    assert machine.negotiated is not None


def test_the_empty_name_is_the_only_export() -> None:
    machine = handshake()
    machine.receive_data(go(""))
    assert machine.negotiated is not None
    assert machine.negotiated.export.name == "disk0"


def test_the_empty_name_is_unknown_where_there_are_several() -> None:
    machine = handshake(Exports([Export("a", 4096), Export("b", 4096)]))
    machine.receive_data(go(""))
    assert kinds(answers(machine)) == [UNKNOWN]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(5),
        struct.pack(">I", 0xFFFFFFFF) + b"disk0" + bytes(2),
        string("disk0"),
        string("disk0") + b"\0",
        string("disk0") + struct.pack(">H", 1),
        string("disk0") + struct.pack(">H", 0) + b"x",
        string(b"di\0k0") + bytes(2),
        string(b"\xff\xfe") + bytes(2),
        string("x" * 4097) + bytes(2),
    ],
    ids=["empty", "short", "overrun", "no-count", "half-count", "no-list", "rest", "nul", "no-utf8", "long"],
)
def test_a_malformed_go_is_invalid_and_leaves_the_client_in_step(data: bytes) -> None:
    machine = handshake()
    machine.receive_data(option(GO, data))
    assert kinds(answers(machine)) == [INVALID]
    machine.receive_data(go())
    assert machine.negotiated is not None


def test_a_name_of_the_longest_length_is_fine() -> None:
    name = "n" * 4096
    machine = handshake(Exports([Export(name, 4096)]))
    machine.receive_data(go(name))
    assert machine.negotiated is not None


def test_block_sizes_other_than_the_default_have_to_be_asked_for() -> None:
    machine = handshake(Exports([Export("disk0", SIZE_BYTES, minimum_block_bytes=512)]))
    machine.receive_data(go())
    assert kinds(answers(machine)) == [REP_INFO, BLOCK_SIZE_REQD]
    assert machine.negotiated is None
    machine.receive_data(go("disk0", 3))
    assert infos(machine)[3] == struct.pack(">III", 512, 4096, 32 << 20)


def test_export_name_pads_with_zeroes() -> None:
    machine = handshake(client_flags=1)
    machine.receive_data(option(EXPORT_NAME, b"disk0"))
    assert machine.data_to_send() == struct.pack(">QH", SIZE_BYTES, FLAGS) + bytes(124)
    assert machine.negotiated is not None


def test_export_name_does_not_pad_where_no_zeroes_was_agreed_on() -> None:
    machine = handshake(client_flags=3)
    machine.receive_data(option(EXPORT_NAME, b""))
    assert machine.data_to_send() == struct.pack(">QH", SIZE_BYTES, FLAGS)


@pytest.mark.parametrize("name", [b"nothing", b"\xff", b"di\0k", b"x" * 5000, b"x" * 100000])
def test_export_name_of_no_export_closes_the_connection(name: bytes) -> None:
    machine = handshake()
    machine.receive_data(option(EXPORT_NAME, name))
    assert machine.closed
    assert machine.data_to_send() == b""


def test_an_old_client_gets_by_with_export_name() -> None:
    machine = handshake(client_flags=0)
    machine.receive_data(option(EXPORT_NAME, b"disk0"))
    assert machine.negotiated is not None


def test_an_old_client_may_send_nothing_but_export_name() -> None:
    machine = handshake(client_flags=0)
    machine.receive_data(option(LIST))
    assert machine.closed


def test_list_has_one_server_for_each_export() -> None:
    machine = handshake(Exports([Export("a", 4096), Export("b", 4096, description="beta")]))
    machine.receive_data(option(LIST))
    assert answers(machine) == [(3, SERVER, string("a")), (3, SERVER, string("b") + b"beta"), (3, ACK, b"")]


def test_list_of_no_exports_is_an_acknowledgement() -> None:
    machine = handshake(Exports([]))
    machine.receive_data(option(LIST))
    assert answers(machine) == [(3, ACK, b"")]


def test_a_list_that_is_too_long_is_told_so() -> None:
    machine = handshake(Exports([Export(f"{number:04000}", 4096) for number in range(300)]))
    machine.receive_data(option(LIST))
    assert kinds(answers(machine)) == [TOO_BIG]


@pytest.mark.parametrize("number", [LIST, 8])
def test_data_with_an_option_that_takes_none_is_invalid(number: int) -> None:
    machine = handshake()
    machine.receive_data(option(number, b"x"))
    assert kinds(answers(machine)) == [INVALID]


@pytest.mark.parametrize("data", [b"", b"goodbye", bytes(70000)])
def test_abort_is_acknowledged_whatever_comes_with_it(data: bytes) -> None:
    machine = handshake()
    machine.receive_data(option(ABORT, data))
    assert answers(machine) == [(2, ACK, b"")]
    assert machine.closed


@pytest.mark.parametrize("number", [0, 4, STARTTLS, 11, 12, 0xFFFFFFFF])
@pytest.mark.parametrize("data", [b"", b"abc", bytes(200000)], ids=len)
def test_an_unknown_option_is_drained_and_unsupported(number: int, data: bytes) -> None:
    machine = handshake()
    machine.receive_data(option(number, data) + go())
    found = answers(machine)
    assert found[0][:2] == (number, UNSUP)
    assert machine.negotiated is not None


def test_a_known_option_that_is_too_long_is_drained_and_too_big() -> None:
    machine = handshake()
    machine.receive_data(option(GO, bytes(65537)) + go())
    assert answers(machine)[0][:2] == (GO, TOO_BIG)
    assert machine.negotiated is not None


def test_a_long_option_is_not_kept_while_it_is_drained() -> None:
    machine = handshake()
    machine.receive_data(OPTION_HEADER_OF_20_MIB)
    for _ in range(20):
        machine.receive_data(bytes(1 << 20))
        assert len(machine._data) == 0
    assert kinds(answers(machine)) == [TOO_BIG]


def test_more_option_bytes_than_anyone_needs_close_the_connection() -> None:
    machine = handshake()
    machine.receive_data(OPTION_HEADER_OF_20_MIB + bytes(20 << 20))
    assert not machine.closed
    machine.receive_data(OPTION_HEADER_OF_20_MIB)
    assert machine.closed


def test_more_options_than_anyone_needs_close_the_connection() -> None:
    machine = handshake()
    for _ in range(OPTION_COUNT_MAX):
        machine.receive_data(option(99))
        assert kinds(answers(machine)) == [UNSUP]
    machine.receive_data(option(99))
    assert machine.closed


def test_a_client_that_asks_without_reading_is_disconnected() -> None:
    machine = handshake(Exports([Export(f"{number:0400}", 4096) for number in range(100)]))
    machine.receive_data(option(LIST) * 1000)
    assert machine.closed
    assert len(machine.data_to_send()) < 2 * OUTPUT_BYTES_MAX


def test_what_follows_go_belongs_to_the_transmission_phase() -> None:
    machine = handshake()
    machine.receive_data(go() + request(3) + b"and more")
    assert machine.trailing == request(3) + b"and more"


def test_what_follows_an_abort_is_ignored() -> None:
    machine = handshake()
    machine.receive_data(option(ABORT) + option(LIST))
    machine.receive_data(option(LIST))
    assert answers(machine) == [(2, ACK, b"")]


def test_during_shutdown_options_are_refused_but_abort_is_not() -> None:
    machine = Handshake(Exports(), shutting_down=lambda: True)
    machine.data_to_send()
    machine.receive_data(bytes([0, 0, 0, 3]) + option(LIST) + go() + option(99) + option(ABORT))
    assert kinds(answers(machine)) == [SHUTDOWN, SHUTDOWN, SHUTDOWN, ACK]


def test_during_shutdown_export_name_closes() -> None:
    machine = Handshake(Exports(), shutting_down=lambda: True)
    machine.receive_data(bytes([0, 0, 0, 3]) + option(EXPORT_NAME, b"disk0"))
    assert machine.closed
