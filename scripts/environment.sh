# Sourced by run.sh, test.sh and .ci/run: makes everything that kktorch is built and run with, safe to repeat.
#   KKTORCH_VENV       virtual environment (default .venv)
#   KKTORCH_BUILD_DIR  build tree (default build)
#   KKTORCH_RUNTIME_REQUIREMENTS  file in requirements/ that names torch (default runtime.txt, which pins it)
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export KKTORCH_VENV=${KKTORCH_VENV:-$ROOT/.venv}
export KKTORCH_BUILD_DIR=${KKTORCH_BUILD_DIR:-$ROOT/build}

say() { printf '\033[1m%s\033[0m\n' "kktorch: $*" >&2; }
fail() { say "$*"; exit 1; }

# Debian packages: the compiler, and the libraries that CMake finds (elsewhere it fetches those itself).
PACKAGES=(g++ git python3-dev python3-venv libgtest-dev libcli11-dev nlohmann-json3-dev libfmt-dev libsvm-dev zlib1g-dev
          libeigen3-dev)

system_packages() {
  command -v dpkg-query >/dev/null || {
    command -v g++ >/dev/null && command -v python3 >/dev/null ||
      fail "expected g++ (C++20) and python3 >= 3.10 with venv; please install them"
    return 0
  }
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "please install: apt-get install ${missing[*]}"
    sudo=(sudo -n)
  fi
  say "installing ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

virtual_environment() {
  local requirements="$ROOT/requirements" stamp="$KKTORCH_VENV/.kktorch-requirements" wanted
  local runtime=${KKTORCH_RUNTIME_REQUIREMENTS:-runtime.txt}
  wanted=$(cat "$requirements"/{"$runtime",build.txt,report.txt,test.txt,data.txt} | sha256sum)
  [ -x "$KKTORCH_VENV/bin/python" ] || python3 -m venv "$KKTORCH_VENV"
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
  say "installing Python packages into $KKTORCH_VENV (about 5 GB, mostly LibTorch)"
  local pip=("$KKTORCH_VENV/bin/python" -m pip install -q --disable-pip-version-check)
  "${pip[@]}" -r "$requirements/$runtime" -r "$requirements/build.txt" \
    -r "$requirements/report.txt" -r "$requirements/test.txt"
  "${pip[@]}" --no-deps -r "$requirements/data.txt"
  echo "$wanted" >"$stamp"
}

environment() {
  system_packages
  virtual_environment
  export PATH="$KKTORCH_VENV/bin:$PATH"
}

# build TARGET...: configures if needed and builds. A compiler of LibTorch headers needs about 2 GB of memory a job.
build() {
  local memory_gb jobs
  memory_gb=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  jobs=$(nproc)
  ((jobs > memory_gb / 2)) && jobs=$((memory_gb / 2 > 0 ? memory_gb / 2 : 1))
  cmake -S "$ROOT" --preset release -B "$KKTORCH_BUILD_DIR" \
    -DPython3_EXECUTABLE="$KKTORCH_VENV/bin/python" >"$ROOT/.configure.log" 2>&1 ||
    { cat "$ROOT/.configure.log" >&2; fail "configuration failed"; }
  mv "$ROOT/.configure.log" "$KKTORCH_BUILD_DIR/configure.log"
  ninja -C "$KKTORCH_BUILD_DIR" -j "$jobs" --quiet "$@" || fail "build failed"
}
