"""How long until a server is ready again, against the length of the log that it has to roll forward.

Three ends: a clean stop; kill -9, after which the ring is still there; and a power failure, which is kill -9 with the
ring removed as well.  The log is written by random 4 KiB writes, the dearest kind to roll forward: most commits, most
runs, most map pages.  The server may have taken checkpoints meanwhile, so the log that is rolled forward is at most
what was written; the column says what was written.

The promise: under 1 s after a clean stop (of a pool of 10 GiB too, the last row), and under 1 s + 1 s for each GiB
after kill -9.
"""

from __future__ import annotations

from bench import fio
from bench.experiments import Context, Experiment, Value
from bench.servers import Running, new_disk, ring_files
from bench.settings import BenchError, Settings, remove_disk
from holdfast.units import GIB, KIB, MIB, format_size

NAME = "recovery"
TITLE = "Time to readiness after a clean stop, kill -9 and a power failure"

CLEAN, KILLED, POWER = "clean stop", "kill -9", "power failure"
POOL_BYTES = 10 * GIB


def log_sizes(settings: Settings) -> list[int]:
    return [64 * MIB, 256 * MIB] if settings.quick else [256 * MIB, 512 * MIB, GIB, 2 * GIB]


def scratch_bytes(settings: Settings) -> int:
    return 2 * GIB if settings.quick else POOL_BYTES + 3 * GIB


def limit_s(end: str, written_bytes: int) -> float:
    """What was promised."""
    return 1.0 if end == CLEAN else 1.0 + written_bytes / GIB


def run(context: Context) -> Experiment:
    rows: list[list[Value]] = []
    for written_bytes in log_sizes(context.settings):
        rows += [_one(context, end, written_bytes, random=True) for end in (CLEAN, KILLED, POWER)]
    if not context.settings.quick:
        rows.append(_one(context, CLEAN, POOL_BYTES * 7 // 10, random=False))
    return Experiment(
        NAME,
        TITLE,
        ["end", "written", "written MiB", "first start s", "ready s", "promised s", "met"],
        rows,
        notes=[
            "The log was written by random 4 KiB writes (the last clean stop: one sequential fill), all of it flushed.",
            "A server that took checkpoints while it was written has less than that to roll forward.",
        ],
        plot=["written MiB", "ready s", "end"],
    )


def _one(context: Context, end: str, written_bytes: int, *, random: bool) -> list[Value]:
    server = context.holdfast()
    disk = new_disk(server, context.directory, max(written_bytes, GIB), written_bytes)
    try:
        running = server.start(disk, context.socket_path)
        first_start_s = running.ready_s
        try:
            job = fio.Job(
                pattern="randwrite" if random else "write",
                block_bytes=4 * KIB if random else MIB,
                depth=64 if random else 4,
                region_bytes=disk.size_bytes,
                bytes_max=written_bytes,
                flush_at_end=True,
            )
            fio.run(job, [running.uri()], disk.directory)
        except BaseException:
            running.kill()
            raise
        _end(running, end)
        again = server.start(disk, context.socket_path)
        again.stop()
    finally:
        remove_disk(context.directory)
    promised_s = limit_s(end, written_bytes)
    context.say(f"recovery: {end}, {format_size(written_bytes)} written: ready after {again.ready_s:.2f} s")
    return [
        *(end, format_size(written_bytes), written_bytes // MIB),
        *(round(first_start_s, 3), round(again.ready_s, 3), round(promised_s, 2)),
        "yes" if again.ready_s < promised_s else "no",
    ]


def _end(running: Running, end: str) -> None:
    if end == CLEAN:
        running.stop()
        return
    rings = ring_files(running.pid)
    running.kill()
    if end == POWER:
        if not rings:
            raise BenchError("the server has no ring mapped, so a power failure cannot be told from kill -9")
        for ring in rings:
            ring.unlink()
