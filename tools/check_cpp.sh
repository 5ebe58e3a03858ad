#!/usr/bin/env bash
# Builds runtime/cpp twice (plain, and with the address and undefined sanitizers) and tests it:
# agreement with Python, flipped bytes, threads, the installed package, a minute of fuzzing.
# Usage: tools/check_cpp.sh [pytest arguments]    ATM_CPP_WORK: where to build (kept)
# Skips with a reason, exit code 0, where there is no compiler or no headers.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "C++ checks skipped: $1"
  exit 0
}

for tool in g++ cmake; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done
work=${ATM_CPP_WORK:-}
if [ -z "$work" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
packages="$work/packages"
if [ -z "${ONNXRUNTIME_ROOT:-}" ]; then
  if ! reason=$(tools/cpp_packages.sh "$packages" 2>&1); then skip "$reason"; fi
  export ONNXRUNTIME_ROOT="$packages"
fi
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
common=(-DCMAKE_PREFIX_PATH="$packages" -DONNXRUNTIME_ROOT="$ONNXRUNTIME_ROOT")
# build NAME OPTION TARGET...
build() {
  cmake -S runtime/cpp -B "$work/$1" "${generator[@]}" "${common[@]}" $2 >"$work/$1.log" 2>&1 &&
    cmake --build "$work/$1" --parallel 2 --target ${@:3} >>"$work/$1.log" 2>&1 ||
    { cat "$work/$1.log"; return 1; }
}
echo "== C++ runtime: build, plain and with sanitizers"
build plain -DATM_BUNDLE=ON atm_abi atm_classify atm_logits atm_self_test atm_stress atm_verdicts
build sanitized -DATM_SANITIZE=ON atm_abi atm_classify atm_fuzz atm_self_test atm_verdicts
task=tests/extensions/test_task.py
input=tests/extensions/test_input.py
ATM_CPP_BUILD="$work" python -m pytest -q tests/test_cpp.py tests/test_cpp_inputs.py tests/test_cpp_package.py \
  $task::test_cpp_proves_it_and_gives_it_by_name $task::test_cpp_refuses_a_task_that_cannot_be_meant \
  $input::test_cpp_gives_the_same_answers "$@"
