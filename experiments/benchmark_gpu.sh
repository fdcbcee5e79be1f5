#!/usr/bin/env bash
# One GPU in under eight minutes: do its log-probs agree with those of a CPU, and how long does a step
# take beside transformers' generate and a PyTorch training step?
#
#   experiments/benchmark_gpu.sh [--device=cuda] [--shape=Q,Q1.5] [--out=runs/benchmark_gpu] [FLAGS]
#
# FLAGS go to experiments/benchmark.py. It needs jax for the device, and torch, transformers and peft
# for it in the same environment (PYTHON=... names its interpreter). Each part is a process of its
# own: one that fails is reported, and the others go on.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda shapes=Q,Q1.5 out=runs/benchmark_gpu flags=()
for argument in "$@"; do
  case $argument in
    --device=*) device=${argument#*=} ;;
    --shape=*) shapes=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# The CPU beside the GPU, to compare with; and memory for PyTorch beside jax.
export JAX_PLATFORMS=$device XLA_PYTHON_CLIENT_PREALLOCATE=false
[ "$device" = cpu ] || export JAX_PLATFORMS=$device,cpu
work=(--dtype=bfloat16 --prompts=8 --prompt_tokens=512 --group_size=8 --completion_tokens=128)
mkdir -p "$out"
failed=0

part() { # part NAME COMMAND ...: runs it, its output also in a file, and says how long it took
  local name=$1 began=$SECONDS
  shift
  echo "== $name"
  "$@" 2> "$out/$name.log" | tee "$out/$name.txt" || { failed=1; tail -n 5 "$out/$name.log"; }
  echo "   $((SECONDS - began)) s"
}

for shape in ${shapes//,/ }; do
  part "parity-$shape" "$python" experiments/check_parity.py --shape="$shape" "${work[@]}" \
    --prompts=2 --group_size=4 --json="$out/parity-$shape.json" \
    $(printf '%s\n' "${flags[@]}" | grep -E -- '--(prompt_tokens|completion_tokens|seed)=')
  for rank in 0 16; do
    part "step-$shape-lora$rank" "$python" experiments/benchmark.py --shape="$shape" "${work[@]}" \
      --micro_batch_prompts=2 --steps=3 --lora_rank=$rank --compare=torch \
      --peer_python="$(command -v "$python")" "${flags[@]}" --json="$out/step-$shape-lora$rank.json"
  done
done
exit $failed
