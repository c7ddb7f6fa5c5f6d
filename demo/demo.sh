#!/usr/bin/env bash
# The main job from end to end, in under a minute and without root: a pool, a disk, a filesystem full of files on it,
# load from several clients, kill -9 in the middle, and proof that nothing is missing.  `./dev demo` runs it.
# It works in a scratch directory that is gone afterwards, and exits with 1 if anything is not as it should be.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin # mkfs and fsck live there, and an ordinary user's PATH often lacks it

if [[ -t 1 ]]; then BOLD=$'\033[1m' PLAIN=$'\033[0m'; else BOLD='' PLAIN=''; fi
step() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
wrong() {
    printf 'demo: WRONG: %s\n' "$*" >&2
    if [[ -s $SCRATCH/server.log ]]; then sed 's/^/    server: /' "$SCRATCH/server.log" >&2; fi
    exit 1
}

for tool in holdfast nbdinfo nbdcopy nbdsh fio mkfs.ext4 e2fsck debugfs; do
    if ! command -v "$tool" >/dev/null; then
        echo "demo: $tool is missing; \`./dev demo\` installs what it can and says what else to install" >&2
        exit 2
    fi
done

SCRATCH=$(mktemp -d -t holdfast-demo-XXXXXX)
POOL=$SCRATCH/pool
SOCKET=$SCRATCH/nbd.sock
SERVER='' LOAD='' DIARY=''

clean_up() {
    local pid
    for pid in $LOAD $DIARY; do
        kill -9 "$pid" 2>/dev/null || true # it may have ended already
        wait "$pid" 2>/dev/null || true
    done
    if [[ -n $SERVER ]]; then
        kill "$SERVER" 2>/dev/null || true # a clean end, so that its ring does not stay behind in shared memory
        timeout 10 tail --pid="$SERVER" -f /dev/null || kill -9 "$SERVER" 2>/dev/null || true
    fi
    rm -rf "$SCRATCH"
}
trap clean_up EXIT

uri() { echo "nbd+unix:///$1?socket=$SOCKET"; }
show() { holdfast volume show "$POOL/$1" --json; }
mapped_mib() { show "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["mapped_bytes"] >> 20)'; }
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
# nbdsh starts the first python3 of the path, and only the distribution's own has the bindings of libnbd.
sh_nbd() { PATH=/usr/bin:/bin nbdsh "$@"; }

serve() {
    local began
    began=$(milliseconds)
    : >"$SCRATCH/ready"
    holdfast serve "$POOL" --capacity 4G --memory 64M --nbd "unix:$SOCKET" "$@" >"$SCRATCH/ready" 2>>"$SCRATCH/server.log" &
    SERVER=$!
    until grep -q '^ready ' "$SCRATCH/ready"; do
        kill -0 "$SERVER" 2>/dev/null || wrong "the server did not start"
        sleep 0.02
    done
    note "ready after $(($(milliseconds) - began)) ms, process $SERVER"
}

step "1. A pool and two disks, by one command; 64 MiB of memory"
note "holdfast serve ./pool --volume disk0=10G --volume diary=1T --memory 64M"
serve --volume disk0=10G --volume diary=1T
nbdinfo "$(uri disk0)" | grep -E 'export-size|can_(flush|trim|multi)' | sed 's/^[[:space:]]*/    nbdinfo: /'

step "2. A filesystem with real files goes into disk0"
LIBRARY=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir "$SCRATCH/files"
tar -C "$LIBRARY" --exclude=site-packages --exclude=dist-packages --exclude=__pycache__ -cf - . | tar -C "$SCRATCH/files" -xf -
mkfs.ext4 -q -N 65536 -d "$SCRATCH/files" "$SCRATCH/image" 512M >"$SCRATCH/mkfs.log" 2>&1 ||
    wrong "no image: $(tail -1 "$SCRATCH/mkfs.log")"
note "an ext4 image of 512 MiB with $(find "$SCRATCH/files" -type f | wc -l) files of $LIBRARY"
holdfast copy --verify "$SCRATCH/image" "$POOL/disk0" | sed 's/^/    holdfast copy: /'
MAPPED=$(mapped_mib disk0)
note "disk0 has 10 GiB and takes $MAPPED MiB: what is not written takes nothing"
[[ $MAPPED -gt 0 && $MAPPED -lt 512 ]] || wrong "disk0 is not thin"

step "3. Load: fio on disk0 behind the filesystem, and a diary that notes what was acknowledged"
# One process (--thread), so that it can be killed as one; and what it says goes nowhere, because once its server is dead
# fio says the same line for ever, as fast as the disk takes it.
fio --thread --name=load --ioengine=nbd --uri="$(uri disk0)" --rw=randwrite --bssplit=4k/60:16k/30:64k/10 \
    --offset=1G --size=4G --iodepth=32 --rate=60m --time_based --runtime=60 >/dev/null 2>&1 &
LOAD=$!
touch "$SCRATCH/acknowledged"
# Entry number N goes to a block of its own somewhere in the 1 TiB.  Only once it is acknowledged N is noted.
cat >"$SCRATCH/entries.py" <<'ENTRIES'
BLOCKS = 1 << 28
def entry(number):
    return (number * 2654435761 % BLOCKS) * 4096, (b"entry %d of the diary;" % number).ljust(4096, b".")
ENTRIES
sh_nbd -u "$(uri diary)" -c "exec(open('$SCRATCH/entries.py').read())" -c "
acknowledged = open('$SCRATCH/acknowledged', 'w', buffering=1)
number = 0
try:
    while True:
        offset, text = entry(number)
        h.pwrite(text, offset)
        print(number, file=acknowledged)
        number += 1
except nbd.Error:
    pass  # the server was killed: that is what this is about
" 2>/dev/null &
DIARY=$!
until [[ $(wc -l <"$SCRATCH/acknowledged") -gt 5000 ]]; do
    kill -0 "$DIARY" 2>/dev/null || wrong "the diary ended early"
    kill -0 "$LOAD" 2>/dev/null || wrong "fio ended early"
    sleep 0.1
done

note "fio keeps 32 writes in flight; disk0 takes $(mapped_mib disk0) MiB by now"

step "4. kill -9"
{ # bash tells of the killed on standard error
    kill -9 "$SERVER" "$LOAD"
    wait "$SERVER" "$LOAD" "$DIARY" || true # 137, as it should be
} 2>/dev/null
SERVER='' LOAD='' DIARY=''
ENTRIES=$(wc -l <"$SCRATCH/acknowledged")
note "the server is dead; the diary has $ENTRIES acknowledged entries, and nobody had asked for a flush"

step "5. The same command again"
serve
sh_nbd -u "$(uri diary)" -c "exec(open('$SCRATCH/entries.py').read())" -c "
for number in range($ENTRIES):
    offset, text = entry(number)
    assert h.pread(4096, offset) == text, f'entry {number} is lost'
" || wrong "an acknowledged write is lost"
note "all $ENTRIES entries of the diary are there"

step "6. The filesystem, as it went in"
nbdcopy "$(uri disk0)" "$SCRATCH/disk"
cmp -n $((512 * 1024 * 1024)) "$SCRATCH/image" "$SCRATCH/disk" || wrong "disk0 differs from the image"
note "byte for byte the image"
truncate -s 512M "$SCRATCH/disk"
e2fsck -fn "$SCRATCH/disk" >"$SCRATCH/e2fsck.log" 2>&1 || wrong "e2fsck: $(tail -3 "$SCRATCH/e2fsck.log")"
note "e2fsck: $(tail -1 "$SCRATCH/e2fsck.log" | sed "s|$SCRATCH/||")"
debugfs -R 'cat /os.py' "$SCRATCH/disk" 2>/dev/null | cmp - "$LIBRARY/os.py" || wrong "os.py is not what it was"
note "and os.py in it is the one of this machine"

step "7. Trimmed space comes back"
sh_nbd -u "$(uri disk0)" -c 'h.trim(1 << 30, 1 << 30); h.trim(3 << 30, 2 << 30); h.flush()'
note "disk0 takes $(mapped_mib disk0) MiB once fio's blocks are trimmed"
[[ $(mapped_mib disk0) -eq $MAPPED ]] || wrong "the trimmed blocks are still there"
holdfast volume list "$POOL" | sed 's/^/    /; s/ *URI$//; s/ nbd+unix.*//'
PEAK=$(awk '/^VmHWM/ {print int($2 / 1024)}' "/proc/$SERVER/status")
note "the server has used $PEAK MiB at most, the 64 MiB of --memory included"

step "8. SIGTERM: everything is flushed, the pool checks clean, and the next start is instant"
kill -TERM "$SERVER"
wait "$SERVER" || wrong "the server did not end well"
SERVER=''
holdfast check --quiet "$POOL" | sed "s|$SCRATCH/|    holdfast check: |" || wrong "holdfast check found damage"
serve
kill -TERM "$SERVER"
wait "$SERVER" || wrong "the server did not end well"
SERVER=''
if grep -E 'Traceback|ERROR' "$SCRATCH/server.log" >/dev/null; then wrong "the server complained"; fi

step "Nothing is missing. ($SECONDS s)"
