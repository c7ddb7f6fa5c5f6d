"""What accounting by group costs: 1,000 volumes in 100 groups beside 1,000 in one.

    python -m bench.groups [ROUNDS]

Both pools are served in turn; fio writes at random to twenty of their volumes at once. Printed: IOPS of each round, the
medians, and how long the status, the groups and the metrics take to gather.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from holdfast.control.api import CreateVolume
from holdfast.control.client import ControlClient
from holdfast.control.group_api import CreateGroup
from holdfast.units import MIB

VOLUMES = 1000
GROUPS = 100
AT_WORK = 20
RUNTIME_S = 3


class Pool:
    def __init__(self, directory: Path, name: str, groups: int) -> None:
        self.path = directory / name
        self.groups = groups

    def __enter__(self) -> Pool:
        command = [sys.executable, "-m", "holdfast.cli.main", "serve", str(self.path)]
        self._process = subprocess.Popen(
            [*command, "--memory", "256M", "--capacity", "16G"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def client(self) -> ControlClient:
        return ControlClient(self.path / "control.sock")

    def make(self) -> None:
        with self.client() as client:
            for number in range(self.groups):
                client.create_group(CreateGroup(name=f"group{number}", dirty_bytes=16 * MIB, space_bytes=1 << 40))
            for number in range(VOLUMES):
                group = f"group{number % self.groups}" if self.groups else None
                client.create_volume(CreateVolume(name=f"disk{number}", size_bytes=64 * MIB, group=group))

    def iops(self) -> float:
        """Random writes of 4 KiB at depth 1 to some of the volumes, of as many groups, at once."""
        words = ["fio", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=1", "--size=32M", "--time_based"]
        words += [f"--runtime={RUNTIME_S}", "--group_reporting=1", "--output-format=json"]
        for number in range(AT_WORK):
            uri = f"nbd+unix:///disk{number * 49}?socket={self.path}/nbd.sock"
            words += [f"--name=job{number}", f"--uri={uri}"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]["iops"])

    def gathering_ms(self) -> tuple[float, float]:
        with self.client() as client:
            times = []
            for ask in (client.status, client.groups):
                start = time.perf_counter()
                ask()
                times.append((time.perf_counter() - start) * 1000)
        return times[0], times[1]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        pools = [Pool(Path(name), "one", 0), Pool(Path(name), "hundred", GROUPS)]
        found: dict[str, list[float]] = {pool.path.name: [] for pool in pools}
        for pool in pools:
            with pool:
                pool.make()
        for _ in range(rounds):
            for pool in pools:
                with pool:
                    found[pool.path.name].append(pool.iops())
                    gathering = pool.gathering_ms()
                print(f"{pool.path.name}: {found[pool.path.name][-1]:.0f} IOPS; status {gathering[0]:.1f} ms, groups "
                      f"{gathering[1]:.1f} ms", flush=True)  # fmt: skip
    one, hundred = (statistics.median(found[pool.path.name]) for pool in pools)
    print(f"medians: one group {one:.0f}, {GROUPS} groups {hundred:.0f} IOPS: {hundred / one - 1:+.1%}")


if __name__ == "__main__":
    main()
