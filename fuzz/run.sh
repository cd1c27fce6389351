#!/usr/bin/env bash
# Fuzzes under AddressSanitizer: fuzz/run.sh SECONDS [TARGET...], every target in turn if none is named.
# What is found stays in fuzz/artifacts, what is learned in fuzz/work, and the last line of each
# target says what was done. Ends with an error if anything was found.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
export RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=2}
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi
logs=${FUZZ_LOGS:-fuzz/logs}
mkdir -p "$logs"
# To trace every comparison of the engine, and to weigh inputs by rare features, takes three quarters of
# the time; the targets know the structure, so little is learned by it.
cargo fuzz build --fuzz-dir fuzz --no-trace-compares
host=$(rustc -vV | sed -n 's/^host: //p')

found=0
for target in "${targets[@]}"; do
    work=fuzz/work/$target
    mkdir -p "$work" "fuzz/artifacts/$target"
    # A leak is no unsoundness, and to look for them takes most of the time. A panic of redb over a
    # damaged catalog is one that the engine answers for.
    limits=(-rss_limit_mb=2048 -malloc_limit_mb=256 "-timeout=${FUZZ_TIMEOUT:-10}" -detect_leaks=0)
    limits+=(-max_len="${FUZZ_MAX_LEN:-1024}" -len_control=20 -print_final_stats=1 -entropic=0)
    started=$SECONDS
    ended=fine
    "fuzz/target/$host/release/$target" "${limits[@]}" -max_total_time="$seconds" \
        -artifact_prefix="fuzz/artifacts/$target/" "$work" "fuzz/corpus/$target" \
        >"$logs/$target.log" 2>&1 || ended=FINDING
    if [ $ended != fine ]; then
        found=1
        grep -aE -m 3 'panicked|ERROR|SUMMARY|Test unit' "$logs/$target.log" || true
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target.log")
    last=$(grep -aE 'cov: [0-9]+' "$logs/$target.log" | tail -n 1)
    covered=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' <<<"$last")
    printf '%-12s %s: %s executions, %s edges covered, %s inputs, %s s\n' "$target" "$ended" \
        "${runs:-?}" "${covered:-?}" "$(find "$work" "fuzz/corpus/$target" -type f | wc -l)" \
        $((SECONDS - started))
done
exit $found
