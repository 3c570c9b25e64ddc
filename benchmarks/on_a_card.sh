#!/usr/bin/env bash
# Everything that only a card can show, in under nine minutes: results go to $OUT, or to benchmarks/results/.
#   bash benchmarks/on_a_card.sh               on the first CUDA card
#   bash benchmarks/on_a_card.sh cpu           the same script in small without a card, to try it
# A part that fails is told at the end and does not stop the others. Works in the repository, installed or not.

cd "$(dirname "$0")/.." || exit 2
device=${1:-cuda:0}
out=${OUT:-benchmarks/results}
name=card_${device%%:*}_$(date -u +%F)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD
failed=()

part() { # what, seconds at most, command
  echo "== $1"
  local what=$1 most=$(($2 * patience)); shift 2
  timeout "$most" "$@" || failed+=("$what")
}

if [ "$device" = cpu ]; then
  budgets=(--vram 64M --vram 128M); nets=(--width 8); size=(--size 64 64 --batch 4); minutes=5s; precision=fp32
  patience=10
else
  budgets=(--vram 512M --vram 1G --vram 2G --vram 4G); nets=(--width 32 --width 64); size=(); minutes=2m; precision=auto
  patience=1
  nvidia-smi
  part "tests on the card" 50 python -m pytest -q -m gpu -n 0
fi
bench=(python -m lowmem_brats bench memory --device "$device" --precision "$precision" --overwrite "${budgets[@]}" "${size[@]}")
part "budgets" 70 "${bench[@]}" "${nets[@]}" --json "$out/${name}_budgets.json"
part "budgets of EMCAD-B0" 40 "${bench[@]}" --network emcad-b0 --json "$out/${name}_budgets_emcad.json"
part "budgets with expandable segments" 25 env PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
  "${bench[@]}" --width 32 --json "$out/${name}_budgets_expandable.json"
part "context, equality, speed, peers" 110 python benchmarks/bench_card.py "$out/$name.json" --device "$device" \
  --parts context equality speed peers
part "picture" 10 python benchmarks/bench_card.py - --picture "$out/${name}_budgets.json" "$out/${name}_budgets.png"

shape=(); [ "$device" = cpu ] && shape=(--shape 48 48 32)
part "phantoms" 30 python -m lowmem_brats phantom "$work/cases" -n 4 "${shape[@]}" -q
part "training" 145 python -m lowmem_brats train "$work/cases" -o "$work/run" --device "$device" --vram 2G \
  --precision "$precision" --mode one-network --validation 0 --test 0 --epochs 10000 --max-time "$minutes" -q
cp "$work/run/run.json" "$out/${name}_training.json" || failed+=("training's report")
part "compiled" 50 python benchmarks/bench_card.py "$out/${name}_compiled.json" --device "$device" --parts compiled

[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
