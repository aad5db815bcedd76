#!/usr/bin/env bash
# Packs benchmarks/gpu_check.py for a machine with a GPU and no network: scripts/pack_gpu_check.sh OUTDIR
#
# OUTDIR gets check.tar.xz (this working tree's source, the wheels that such a machine lacks, the recorded outputs) and
# run.sh, which unpacks and runs it. Expected there: Python 3.12, torch, triton, transformers, accelerate, safetensors,
# einops, opencv, psutil, pillow, pyyaml and huggingface-hub. Versions are those of uv.lock.
#
# PYTHON: an interpreter with pip. PARITY: folder of the recorded outputs. MOST_MIB: how large all of it may be.
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
tree=$work/tree
mkdir -p "$tree/packages" "$work/wheels"

# pip is asked for the exact versions of uv.lock: pydantic-core must match pydantic.
"$python" - "${packages[@]}" > "$work/wanted" <<'PY'
import sys, tomllib
with open("uv.lock", "rb") as file:
    versions = {package["name"]: package["version"] for package in tomllib.load(file)["package"]}
for name in sys.argv[1:]:
    print(f"{name}=={versions[name]}")
PY
platforms=()
for tag in manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
  platforms+=(--platform "$tag")
done
"$python" -m pip download --quiet --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
  --no-deps --dest "$work/wheels" --requirement "$work/wanted"

"$python" - "$work/wheels" "$tree/packages" <<'PY'
import sys, zipfile
from pathlib import Path
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    zipfile.ZipFile(wheel).extractall(sys.argv[2])
PY
git ls-files -z --cached --others --exclude-standard -- wan_orchestration benchmarks data/jobs/demo |
  tar --create --null --files-from=- | tar --extract --directory "$tree"

if [ -d "$parity" ]; then
  mkdir "$tree/parity"
  tar --create --directory "$parity" --exclude=intermediates.npz --exclude=noise.npz --exclude=inputs.npz \
    snapshot cases | tar --extract --directory "$tree/parity"
  chmod -R u+w "$tree/parity"
else
  echo "no recorded outputs at $parity: the parity part will be skipped" >&2
fi

pack() {
  "$python" - "$tree" "$out/check.tar.xz" <<'PY'
import lzma, sys, tarfile
from pathlib import Path
with tarfile.open(sys.argv[2], "w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
    archive.add(sys.argv[1], arcname=".")
print(f"{Path(sys.argv[2]).stat().st_size / 2**20:.1f} MiB")
PY
}
pack
# What can be missed most easily is left out first: the LoRA of one recorded case.
if [ "$(stat -c %s "$out/check.tar.xz")" -gt "$most" ] && [ -e "$tree/parity/snapshot/relighting_lora.ckpt" ]; then
  echo "too large: leaving out relighting_lora.ckpt, whose case is then not measured" >&2
  rm "$tree/parity/snapshot/relighting_lora.ckpt"
  pack
fi
if [ "$(stat -c %s "$out/check.tar.xz")" -gt "$most" ]; then
  echo "error: check.tar.xz has more than $((most / 1024 / 1024)) MiB" >&2
  exit 1
fi

cat > "$out/run.sh" <<'SH'
#!/usr/bin/env bash
# Unpacks the check into a folder of its own and runs it: bash run.sh --deadline SECONDS --out DIR
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$here/check.tar.xz" "$tree"
# Before the machine's own packages; torch, transformers and the like are not among these.
PYTHONPATH="$tree:$tree/packages${PYTHONPATH:+:$PYTHONPATH}" python3 "$tree/benchmarks/gpu_check.py" "$@"
SH
echo "there: bash run.sh --deadline 540 --out DIR"
