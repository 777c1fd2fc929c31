#!/usr/bin/env bash
# Builds kktorch and runs it: scripts/run.sh [ARGS of kktorch]. Without ARGS: trains Attention-BN and softmax attention on
# JapaneseVowels and writes the report.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment
build kktorch kktorch_program
if (($#)); then
  exec "$KKTORCH_BUILD_DIR/bin/kktorch" "$@"
fi
cd "$ROOT"
run=runs/JapaneseVowels
"$KKTORCH_BUILD_DIR/bin/kktorch" train --data JapaneseVowels --attention softmax,bn --seeds 3 --out "$run" --resume
PYTHONPATH="$ROOT/python" python -m kktorch.report "$run"
