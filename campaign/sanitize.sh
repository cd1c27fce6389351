#!/usr/bin/env bash
# campaign/sanitize.sh thread|address [SECONDS [SEED]]: builds the harness and the suites with a sanitizer
# and runs them: `campaign threads` for so many seconds, then the suites concurrency, api and model.
# Any report fails it. Needs Rust, and for `thread` a C compiler and nm.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?thread or address} seconds=${2:-20} seed=${3:-1}
target=x86_64-unknown-linux-gnu
room=${CARGO_TARGET_DIR:-$PWD/target}/sanitize-$kind
mkdir -p "$room"
flags=(-Zsanitizer="$kind")
here=$PWD/campaign/sanitize

case $kind in
address)
    # LeakSanitizer comes with it.
    export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_init_order=1
    ;;
thread)
    # The std of the toolchain is not instrumented: see edges.c.
    flags+=(-Cunsafe-allow-abi-mismatch=sanitizer --cfg crossbeam_sanitize_thread)
    std=$(rustc --print target-libdir --target "$target")
    symbols=$(nm -D --defined-only "$std"/libstd-*.so | cut -d ' ' -f 3)
    defines=()
    edge() {
        local symbol
        symbol=$(grep -E "^_RN.*3std.*$2\$" <<<"$symbols") || true
        test "$(wc -w <<<"$symbol")" = 1 || { echo "no one $2 in std: '$symbol'" >&2; exit 1; }
        defines+=("-D$1=$symbol")
        flags+=("-Clink-arg=-Wl,--wrap=$symbol")
    }
    edge SCOPE_END 6scoped.*29decrement_num_running_threads
    edge LOCK_CONTENDED 5mutex5futex.*14lock_contended
    edge READ_CONTENDED 6rwlock5futex.*14read_contended
    edge WRITE_CONTENDED 6rwlock5futex.*15write_contended
    edge WAIT 7condvar5futex.*7Condvar4wait
    edge WAIT_TIMEOUT 7condvar5futex.*12wait_timeout
    edge ONCE_CALL 4once5futex.*4Once4call
    "${CC:-cc}" -O1 -Wall -Werror -c "${defines[@]}" "$here/edges.c" -o "$room/edges.o"
    flags+=("-Clink-arg=$room/edges.o")
    export TSAN_OPTIONS=suppressions=$here/thread.supp:history_size=7:exitcode=66
    ;;
*)
    echo "thread or address, not $kind" >&2
    exit 2
    ;;
esac

export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}"
options=(--target "$target" --target-dir "$room")
cargo build "${options[@]}" -p cellardb-campaign --bin campaign
timeout $((seconds + 240)) "$room/$target/debug/campaign" threads --seconds "$seconds" --seed "$seed"
test -n "${ONLY_THREADS:-}" && exit
for suite in concurrency api model; do
    timeout 1200 cargo test "${options[@]}" --test suite "$suite::"
done
