#!/usr/bin/env bash
# scripts/test.sh with the newest torch in the registry, in an environment and a build tree of its own.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export KKTORCH_VENV=${KKTORCH_VENV:-$PWD/.venv-newest} KKTORCH_BUILD_DIR=${KKTORCH_BUILD_DIR:-$PWD/build-newest}
export KKTORCH_RUNTIME_REQUIREMENTS=newest.txt
exec scripts/test.sh "$@"
