#!/usr/bin/env bash
# The operators that speculation leans on, on the device against the CPU: those of patches/backend-ops and the ones a
# verify and a draft use most.   ci/gpu/operators.sh BIN_DIR [SECONDS for each, default 20]
set -euo pipefail
cd "$(dirname "$0")/../.."
ops=(GATED_DELTA_NET SSM_CONV FLASH_ATTN_EXT MUL_MAT_ID SET_ROWS GET_ROWS CPY TOP_K ARGMAX)
[[ -f patches/backend-ops ]] && mapfile -t -O "${#ops[@]}" ops < <(grep -v '^#' patches/backend-ops)
status=0 limit=${2:-20}
for op in $(printf '%s\n' "${ops[@]}" | sort -u); do
    # FLASH_ATTN_EXT has tens of thousands of cases: what does not end in time is said, and is no failure
    set +e
    said=$(timeout "$limit" "$1/test-backend-ops" test -o "$op" 2>&1); code=$?
    set -e
    summary=$(grep -E 'tests passed|Backend .*: (OK|FAIL)|FAIL|backends passed' <<<"$said" | tail -n 4 | tr '\n' ';' || true)
    case $code in
        0) echo "$op: $summary" ;;
        124) echo "$op: cut off after $limit s; $(grep -c ': .*OK' <<<"$said" || true) cases right, $(grep -c 'FAIL' <<<"$said" || true) wrong" ;;
        *) echo "FAIL: $op: $summary"; status=1 ;;
    esac
    [[ $code == 124 ]] && grep -q FAIL <<<"$said" && status=1
done
exit $status
