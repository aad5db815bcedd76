#!/usr/bin/env bash
# Packs benchmarks/gpu_check.py for a machine with a GPU and no network: scripts/pack_gpu_check.sh OUTDIR
#
# It writes to OUTDIR: archives of this working tree's source, of wheels and of the recorded outputs, and run.sh, which
# unpacks them and runs the check. The machine needs Python 3.12, torch, triton, transformers, accelerate, safetensors,
# einops, opencv, psutil, pillow, pyyaml and huggingface-hub; the wheels hold the rest, in the versions of uv.lock.
#
# PYTHON: an interpreter with pip. PARITY: folder of the recorded outputs. MOST_MIB: largest size of all archives.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: scripts/pack_gpu_check.sh OUTDIR" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
parity=${PARITY:-../shared/parity}
most=$((${MOST_MIB:-45} * 1024 * 1024))
packages=(av diffusers pydantic pydantic-core pydantic-settings ftfy wcwidth importlib-metadata zipp python-dotenv
  dagster-pipes typing-inspection annotated-types)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/packages/packages" "$work/wheels" "$work/source" "$work/parity/parity" "$work/lora/parity/snapshot"
rm -f "$out"/{source,parity,lora}.tar.xz

# The exact versions of uv.lock: pydantic-core must match pydantic.
"$python" - "${packages[@]}" > "$work/wanted" <<'PY'
import sys, tomllib
with open("uv.lock", "rb") as file:
    versions = {package["name"]: package["version"] for package in tomllib.load(file)["package"]}
for name in sys.argv[1:]:
    print(f"{name}=={versions[name]}")
PY
if ! cmp --silent "$work/wanted" "$out/packages.txt" || [ ! -e "$out/packages.tar.xz" ]; then
  rm -f "$out/packages.tar.xz"
  platforms=()
  for tag in manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    platforms+=(--platform "$tag")
  done
  "$python" -m pip download --quiet --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --no-deps --dest "$work/wheels" --requirement "$work/wanted"

  "$python" - "$work/wheels" "$work/packages/packages" <<'PY'
import sys, zipfile
from pathlib import Path
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    zipfile.ZipFile(wheel).extractall(sys.argv[2])
PY
fi
git ls-files -z --cached --others --exclude-standard -- wan_orchestration benchmarks data/jobs/demo |
  tar --create --null --files-from=- | tar --extract --directory "$work/source"

if [ -d "$parity" ]; then
  tar --create --directory "$parity" --exclude=intermediates.npz --exclude=noise.npz --exclude=inputs.npz \
    snapshot cases | tar --extract --directory "$work/parity/parity"
  chmod -R u+w "$work/parity"
  lora=parity/snapshot/relighting_lora.ckpt
  mv "$work/parity/$lora" "$work/lora/$lora"
else
  echo "no recorded outputs at $parity: the parity part will be skipped" >&2
fi

pack() {
  "$python" - "$work/$1" "$out/$1.tar.xz" <<'PY'
import lzma, sys, tarfile
with tarfile.open(sys.argv[2], "w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
    archive.add(sys.argv[1], arcname=".")
PY
}
size() {
  du --bytes --summarize --apparent-size "$out" | cut -f1
}
# Packing the wheels takes minutes, so their archive is kept for the next run.
[ -e "$out/packages.tar.xz" ] || pack packages &
pack source
if [ -d "$parity" ]; then
  pack parity
  pack lora
fi
wait $!
cp "$work/wanted" "$out/packages.txt"
# Only one recorded case needs the relighting LoRA, so it is left out first.
if [ "$(size)" -gt "$most" ]; then
  echo "too large: the relighting LoRA is left out, and its case is not measured" >&2
  rm -f "$out/lora.tar.xz"
fi
if [ "$(size)" -gt "$most" ]; then
  echo "error: $(($(size) / 1024 / 1024)) MiB in $out, more than $((most / 1024 / 1024))" >&2
  exit 1
fi

cat > "$out/run.sh" <<'SH'
#!/usr/bin/env bash
# Unpacks the check into a temporary folder and runs it: bash run.sh --deadline SECONDS --out DIR
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
for archive in "$here"/*.tar.xz; do
  python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$archive" "$tree"
done
# The wheels come before the machine's packages; torch, transformers and the like are the machine's.
PYTHONPATH="$tree:$tree/packages${PYTHONPATH:+:$PYTHONPATH}" python3 "$tree/benchmarks/gpu_check.py" "$@"
SH
echo "$(($(size) / 1024 / 1024)) MiB in $out. On the machine: bash run.sh --deadline 540 --out DIR"
