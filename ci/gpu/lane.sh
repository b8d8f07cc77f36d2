#!/usr/bin/env bash
# Lane "gpu": on a machine with a GPU and no network, in nine minutes: programs, operators, the tiny pairs, and what a
# round costs on the fork and on upstream. Everything that is worth keeping lies in one folder at the end.
#
#   ci/gpu/lane.sh [--out DIR] [--pack FILE] [--backend cuda] [--shapes "qwen3-8b:1 qwen3.5-27b:2"] [--minutes 9]
#                  [--skip-tests] [--cost "words for bench-dflash cost"] [words for build-fork ...]
#
# Without --pack both builds are made here (a compiler cache makes the second one short). With --pack they come from
# ci/gpu/pack.sh, and so do the GGUF files of the tiny pairs. PYTHON names the interpreter; it needs numpy and gguf, and
# without --pack, to convert the tiny pairs, torch and transformers.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$( [[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=convert:tools${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
out=${OUT:-bench-results/gpu} pack='' backend=cuda shapes='qwen3-8b:1 qwen3.5-27b:2' minutes=9 tests=yes cost=''
while [[ ${1:-} == --* ]]; do
    case $1 in
        --out) out=$2 ;; --pack) pack=$2 ;; --backend) backend=$2 ;; --shapes) shapes=$2 ;; --minutes) minutes=$2 ;;
        --cost) cost=$2 ;; --skip-tests) tests=no; shift; continue ;;
        *) break ;;
    esac
    shift 2
done
mkdir -p "$out" .bench
end=$("$python" -c "print(int($minutes * 60))")
# the share of the time a shape gets: the number behind its name, or 1
weight() { [[ $1 == *:* ]] && echo "${1#*:}" || echo 1; }
step() { printf '\n== %s (%d s of %d)\n' "$1" "$SECONDS" "$end"; }

programs() {
    step programs
    if [[ -n $pack ]]; then
        rm -rf .bench/bin && mkdir .bench/bin && tar -C .bench/bin -xf "$pack"
    else
        local native=(); [[ $backend == cuda ]] && native=(--cuda-arch native)
        "$python" -m dflash_tools.fork.cli build --backend "$backend" "${native[@]}" "$@"
        "$python" -m dflash_tools.fork.cli build --upstream --backend "$backend" "${native[@]}" "$@"
    fi
    "$fork/llama-server" --version
    "$fork/llama-server" --list-devices
}

correct() {
    step operators
    ci/gpu/operators.sh "$fork" 10 || echo "FAIL: operators"
    step 'tiny pairs'
    local made=()
    [[ -z $pack ]] || { "$python" ci/gpu/tiny.py restore .bench/bin/tiny .bench/tiny && made=(--only serve); }
    # the texts are compared in float32, which cuBLAS would otherwise round to TF32
    NVIDIA_TF32_OVERRIDE=0 "$python" -m dflash_tools.demo --bin-dir "$fork" --work .bench/tiny "${made[@]}" \
        || echo "FAIL: tiny pairs"
}

costs() {
    local item shape left=0 share
    for item in $shapes; do left=$((left + $(weight "$item"))); done
    for item in $shapes; do
        shape=${item%%:*}
        step "cost of $shape"
        share=$("$python" -c "print(max(0.5, ($end - $SECONDS - 8) / 60 * $(weight "$item") / $left))")
        # what was measured is written when a case takes longer than anyone expected
        # shellcheck disable=SC2086  # words
        timeout --signal=TERM --kill-after=10 "$("$python" -c "print(int($share * 60) + 20)")" \
            "$python" -m dflash_tools.bench.cli cost --shape "$shape" --bin "$fork" --baseline "$upstream" \
            --minutes "$share" --models .bench/models --logs ".bench/logs/$shape" --out "$out/cost-$shape" $cost \
            || echo "FAIL: cost of $shape"
        left=$((left - $(weight "$item")))
    done
    tar -C .bench -czf "$out/logs.tar.gz" logs
    step done
}

if [[ -n $pack ]]; then fork=.bench/bin/fork upstream=.bench/bin/upstream; else fork=.fork/bin upstream=.fork/upstream-bin; fi
{
    programs "$@"
    [[ $tests == no ]] || correct
    costs
} 2>&1 | tee "$out/lane.log"
! grep -q '^FAIL' "$out/lane.log"
