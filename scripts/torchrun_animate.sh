#!/usr/bin/env bash
# Generates the video of one job on several GPUs:
#
#   scripts/torchrun_animate.sh --src-root data/jobs/demo [flags of wan-animate infer]
#
# CUDA_VISIBLE_DEVICES  the GPUs to use (default 0,1)
# NPROC                 number of processes, one for each of these GPUs (default: the number of listed GPUs)
# WAN_ENABLE_FSDP=1     also shard the weights over the GPUs
set -euo pipefail

export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0,1}"
devices="${CUDA_VISIBLE_DEVICES//[^,]/}"
nproc="${NPROC:-$((${#devices} + 1))}"

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
[[ -x "$python" ]] || python="$(command -v python3)"

exec "$python" -m torch.distributed.run --standalone --nnodes=1 --nproc-per-node="$nproc" \
  "$root/wan_orchestration/infer.py" "$@"
