#!/usr/bin/env bash
# All rows of tools/benchmark on one H200: experiments/benchmarks/h200.sh [folder] [seconds]
# First every row with a hundred calls, then the percentiles of a thousand. What is measured is written at once; a second run goes on
# where the first was stopped. It needs the environment of tools/setup, or any other with this package's dependencies, to be active,
# and for the fastest ways the extras flash4 and fp8.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-experiments/benchmarks}
budget=${2:-900}

row() { # most seconds, folder, row, options
    local left=$((budget - SECONDS)) most=$1 folder=$2 name=$3
    shift 3
    if ((left < 40)); then
        echo "== $name: no time left"
        return
    fi
    echo "== $name: at most $((left < most ? left : most)) of $left seconds"
    timeout --signal=INT $((left < most ? left : most)) python3 tools/benchmark "$name" --resume --out "$folder" "$@" ||
        echo "== $name ended early: what it measured is in $folder"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
mkdir -p "$out"
nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,clocks_event_reasons.active \
    --format=csv -lms 500 > "$out/h200_clocks.csv" &
trap "kill $!" EXIT

fp8=("ours, FP8 attention" "ours, FP8 products and attention")
row 180 "$out" hidden_states --ways 3 --calls 100 --seconds 20 --reference-calls 5 --profile
row 240 "$out" chunk --only ours "${fp8[1]}" --calls 100 --seconds 20 --reference-calls 5 --profile
row 350 "$out" lora_step --ways 5 --calls 16 --reference-calls 3 --seconds 60 --profile
row 150 "$out" realtime --ways 5 --calls 200 --seconds 40 --reference-calls 5 --profile
row 300 "$out" decoder_training --ways 2 --calls 10 --reference-calls 3 --seconds 40 --curve-seconds 26
row 280 "$out/thousand_calls" hidden_states --only "${fp8[0]}" --calls 1000 --reference-calls 3
row 300 "$out/thousand_calls" chunk --only "${fp8[1]}" --calls 1000 --reference-calls 2
row 130 "$out/thousand_calls" realtime --only "0 future latents, half size" --calls 1000 --reference-calls 2
