#!/bin/sh
# Searches an index that is larger than the memory it may use, nothing of it in the page cache: recall,
# queries per second, p50 and p99, and what was read from the disk for a query.
#
#     sudo benches/larger_than_ram.sh INDEX query.npy truth.npy [MIB] [RECALL]
#
# The limit holds for the page cache as for the heap (a memory cgroup, version 1 or 2). Needs root, for
# the cgroup and to drop the caches. Runs the `cellardb` that is built here (`cargo build --release -p
# cellardb-cli`, in CARGO_TARGET_DIR if that is set), or else the one that is installed.
set -eu
[ $# -ge 3 ] || { echo "usage: $0 INDEX query.npy truth.npy [MIB] [RECALL]" >&2; exit 2; }
index=$1 query=$2 truth=$3 mib=${4:-256} recall=${5:-0.95}
[ "$(id -u)" = 0 ] || { echo "needs root, for a cgroup and to drop the caches" >&2; exit 1; }
bench="${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/release/cellardb"
# The PATH of sudo leaves out where cargo installs.
home=$(getent passwd "${SUDO_USER:-root}" | cut -d : -f 6)
for found in "$(command -v cellardb || true)" "${CARGO_HOME:-$home/.cargo}/bin/cellardb"; do
    [ -x "$bench" ] || bench=$found
done
[ -x "$bench" ] || { echo "no cellardb: cargo install --locked --path cli" >&2; exit 1; }
if [ -d /sys/fs/cgroup/memory ]; then
    group=/sys/fs/cgroup/memory/cellardb-bench limit=memory.limit_in_bytes
else
    group=/sys/fs/cgroup/cellardb-bench limit=memory.max
    echo +memory > /sys/fs/cgroup/cgroup.subtree_control
fi
mkdir -p "$group"
trap 'rmdir "$group"' EXIT
echo $((mib << 20)) > "$group/$limit"
sync
echo 3 > /proc/sys/vm/drop_caches
# A shell of its own joins the group, so that this one can remove it.
sh -c 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"' sh "$group" \
    "$bench" bench "$index" "$query" --truth "$truth" --queries 1000 --seconds 60 --recall "$recall" --cold
