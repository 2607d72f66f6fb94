#!/usr/bin/env bash
# The packages that a GPU machine with torch, transformers and pandas but no registry lacks, as wheels in .wheels.
# For Python 3.12 on x86-64 Linux, at the versions of requirements.lock. usage: scripts/pack_wheels.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
# hydra-core .. antlr4: configuration; deepspeed .. annotated-types: DeepSpeed and what it imports; datasets .. multiprocess: text.
names="hydra-core omegaconf antlr4-python3-runtime deepspeed hjson pydantic pydantic-core annotated-types typing-inspection
    datasets dill multiprocess"
stk=$(sed -n 's/^STK *= *//p' Makefile)
platforms=$(printf -- '--platform manylinux%s_x86_64 ' _2_28 _2_27 _2_17 2014 1)

rm -rf .wheels
mkdir .wheels
# A copy of the working tree without .git says by this which code it is.
commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit+=-dirty
echo "$commit" >.wheels/commit
wanted=$stk
for name in $names; do
    wanted+=" $(grep -x "$name==.*" requirements.lock)"
done
for package in $wanted; do
    # shellcheck disable=SC2086
    "$python" -m pip download -qq --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
        -d .wheels "$package" 2>/dev/null || "$python" -m pip wheel -qq --no-deps -w .wheels "$package"
done
for wheel in .wheels/*.whl; do
    case $wheel in
        *-none-any.whl | *-cp312-*x86_64.whl | *-abi3-*x86_64.whl) ;;
        *) echo "pack_wheels: $wheel is for another machine" >&2; exit 1 ;;
    esac
done
echo "pack_wheels: $(ls .wheels/*.whl | wc -l) wheels, $(du -cb .wheels/*.whl | tail -1 | cut -f1) bytes in .wheels"
