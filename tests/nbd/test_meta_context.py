"""The negotiation of metadata contexts: base:allocation, changes since a snapshot, and nothing for any other name."""

from __future__ import annotations

import struct

import pytest

from holdfast.nbd.handshake import Handshake
from holdfast.nbd.negotiated import Export
from tests.nbd.wire import STRUCTURED_REPLY, Exports, answers, go, handshake, kinds, meta_context, option, string

LIST, SET = 9, 10
ACK, META_CONTEXT = 1, 4
INVALID, UNKNOWN, TOO_BIG = ((1 << 31) + code for code in (3, 6, 9))
BASE = "base:allocation"


@pytest.fixture
def machine() -> Handshake:
    """A handshake with structured replies, of a server with two exports."""
    machine = handshake(Exports([Export("disk0", 1 << 20), Export("disk1", 1 << 20)]))
    machine.receive_data(STRUCTURED_REPLY)
    machine.data_to_send()
    return machine


def selected(machine: Handshake, name: str = "disk0") -> bool:
    """Whether the context counts once transmission of this export is entered."""
    machine.receive_data(go(name))
    assert machine.negotiated is not None
    return machine.negotiated.base_allocation


def test_setting_base_allocation_selects_it(machine: Handshake) -> None:
    machine.receive_data(meta_context(SET, "disk0", BASE))
    assert answers(machine) == [(SET, META_CONTEXT, struct.pack(">I", 1) + BASE.encode()), (SET, ACK, b"")]
    assert selected(machine)


def test_asking_twice_for_a_context_selects_it_once(machine: Handshake) -> None:
    machine.receive_data(meta_context(SET, "disk0", BASE, BASE))
    assert kinds(answers(machine)) == [META_CONTEXT, ACK]


@pytest.mark.parametrize("queries", [(), (BASE,), ("base:",), ("x-y:z", BASE)])
def test_listing_shows_the_context_without_selecting_it(machine: Handshake, queries: tuple[str, ...]) -> None:
    machine.receive_data(meta_context(LIST, "disk0", *queries))
    assert answers(machine) == [(LIST, META_CONTEXT, bytes(4) + BASE.encode()), (LIST, ACK, b"")]
    assert not selected(machine)


@pytest.mark.parametrize("number", [LIST, SET])
@pytest.mark.parametrize("query", ["x-other:thing", "qemu:dirty-bitmap:b", "base:nothing", "nothing", ""])
def test_unknown_names_are_passed_over(machine: Handshake, number: int, query: str) -> None:
    machine.receive_data(meta_context(number, "disk0", query))
    assert answers(machine) == [(number, ACK, b"")]


@pytest.mark.parametrize("queries", [(), ("base:",)])
def test_setting_nothing_or_a_wildcard_selects_nothing(machine: Handshake, queries: tuple[str, ...]) -> None:
    machine.receive_data(meta_context(SET, "disk0", *queries))
    assert answers(machine) == [(SET, ACK, b"")]
    assert not selected(machine)


@pytest.mark.parametrize(
    "failing",
    [
        meta_context(SET, "disk0"),
        meta_context(SET, "nothing", BASE),
        option(SET, b"xx"),
        option(SET, bytes(70000)),
        meta_context(SET, "disk0", *["x:y"] * 300),
    ],
    ids=["none", "unknown", "malformed", "oversized", "many"],
)
def test_each_set_replaces_what_was_selected_also_when_it_fails(machine: Handshake, failing: bytes) -> None:
    machine.receive_data(meta_context(SET, "disk0", BASE))
    machine.receive_data(failing)
    assert not selected(machine)


def test_a_list_leaves_the_selection_alone(machine: Handshake) -> None:
    machine.receive_data(meta_context(SET, "disk0", BASE))
    machine.receive_data(meta_context(LIST, "disk1"))
    assert selected(machine)


def test_a_selection_counts_only_for_the_export_it_was_made_for(machine: Handshake) -> None:
    machine.receive_data(meta_context(SET, "disk1", BASE))
    assert not selected(machine, "disk0")


@pytest.mark.parametrize("number", [LIST, SET])
def test_contexts_need_structured_replies(number: int) -> None:
    machine = handshake()
    machine.receive_data(meta_context(number, "disk0", BASE))
    assert kinds(answers(machine)) == [INVALID]
    assert not selected(machine)


@pytest.mark.parametrize("number", [LIST, SET])
def test_contexts_of_an_unknown_export_are_unknown(machine: Handshake, number: int) -> None:
    machine.receive_data(meta_context(number, "nothing", BASE))
    assert kinds(answers(machine)) == [UNKNOWN]


@pytest.mark.parametrize("number", [LIST, SET])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        string("disk0"),
        string("disk0") + struct.pack(">I", 1),
        string("disk0") + struct.pack(">I", 2) + string(BASE),
        string("disk0") + struct.pack(">I", 0xFFFFFFFF),
        string("disk0") + struct.pack(">II", 1, 0xFFFFFFFF) + b"base:",
        string("disk0") + struct.pack(">I", 1) + string(BASE) + b"x",
        string("disk0") + struct.pack(">I", 1) + string(b"base:\xff"),
        string("disk0") + struct.pack(">I", 1) + string("x:" + "y" * 4095),
    ],
    ids=["empty", "no-count", "no-query", "missing", "count", "overrun", "rest", "no-utf8", "long"],
)
def test_lengths_that_do_not_add_up_are_invalid(machine: Handshake, number: int, data: bytes) -> None:
    machine.receive_data(option(number, data))
    assert kinds(answers(machine)) == [INVALID]


def test_too_many_queries_are_too_big(machine: Handshake) -> None:
    machine.receive_data(meta_context(SET, "disk0", *["base:allocation"] * 257))
    assert kinds(answers(machine)) == [TOO_BIG]


# --- Changes since a snapshot -----------------------------------------------------------------------------------------

SINCE = "holdfast:changed-since:"


@pytest.fixture
def with_snapshots() -> Handshake:
    exports = Exports([Export("disk0", 1 << 20), Export("disk1", 1 << 20)], ("monday", "tuesday"))
    machine = handshake(exports)
    machine.receive_data(STRUCTURED_REPLY)
    machine.data_to_send()
    return machine


def changed_since(machine: Handshake, name: str = "disk0") -> str | None:
    machine.receive_data(go(name))
    assert machine.negotiated is not None
    return machine.negotiated.changed_since


def test_changes_since_a_snapshot_are_selected_with_an_id_of_their_own(with_snapshots: Handshake) -> None:
    with_snapshots.receive_data(meta_context(SET, "disk0", SINCE + "monday", BASE))
    assert answers(with_snapshots) == [
        (SET, META_CONTEXT, struct.pack(">I", 1) + BASE.encode()),
        (SET, META_CONTEXT, struct.pack(">I", 2) + SINCE.encode() + b"monday"),
        (SET, ACK, b""),
    ]
    assert changed_since(with_snapshots) == "disk0@monday"


def test_changes_alone_are_enough_to_ask_for_block_status(with_snapshots: Handshake) -> None:
    with_snapshots.receive_data(meta_context(SET, "disk0", SINCE + "monday"))
    answers(with_snapshots)
    with_snapshots.receive_data(go("disk0"))
    terms = with_snapshots.negotiated
    assert terms is not None
    assert terms.block_status
    assert not terms.base_allocation


def test_the_first_snapshot_that_there_is_counts(with_snapshots: Handshake) -> None:
    with_snapshots.receive_data(meta_context(SET, "disk0", SINCE + "nobody", SINCE + "tuesday", SINCE + "monday"))
    assert kinds(answers(with_snapshots)) == [META_CONTEXT, ACK]
    assert changed_since(with_snapshots) == "disk0@tuesday"


def test_a_later_choice_replaces_the_changes_too(with_snapshots: Handshake) -> None:
    with_snapshots.receive_data(meta_context(SET, "disk0", SINCE + "monday"))
    with_snapshots.receive_data(meta_context(SET, "disk0", BASE))
    answers(with_snapshots)
    assert changed_since(with_snapshots) is None


def test_changes_selected_for_one_export_do_not_count_for_another(with_snapshots: Handshake) -> None:
    with_snapshots.receive_data(meta_context(SET, "disk0", SINCE + "monday"))
    answers(with_snapshots)
    assert changed_since(with_snapshots, "disk1") is None


@pytest.mark.parametrize(
    ("queries", "listed"),
    [
        ((), [BASE, SINCE + "monday", SINCE + "tuesday"]),
        (("holdfast:",), [SINCE + "monday", SINCE + "tuesday"]),
        ((SINCE,), [SINCE + "monday", SINCE + "tuesday"]),
        ((SINCE + "tuesday",), [SINCE + "tuesday"]),
        ((SINCE + "tuesday", SINCE), [SINCE + "monday", SINCE + "tuesday"]),
        ((SINCE + "nobody",), []),
    ],
)
def test_listing_shows_what_can_be_compared_with(
    with_snapshots: Handshake, queries: tuple[str, ...], listed: list[str]
) -> None:
    with_snapshots.receive_data(meta_context(LIST, "disk0", *queries))
    assert [data[4:].decode() for _, kind, data in answers(with_snapshots) if kind == META_CONTEXT] == listed
    assert changed_since(with_snapshots) is None
