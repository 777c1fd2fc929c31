#!/usr/bin/env bash
# Builds kktorch and runs every test: ctest, then pytest with [ARGS], a process per core. One summary at the end.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
build
cd "$ROOT"
cpp=passed python=passed
ctest --test-dir "$KKTORCH_BUILD_DIR" --output-on-failure || cpp=FAILED
python -m pytest -n auto --dist worksteal "$@" || python=FAILED
say "C++ tests $cpp, Python tests $python"
[ "$cpp" = passed ] && [ "$python" = passed ]
