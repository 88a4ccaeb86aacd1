#!/usr/bin/env bash
# cosmos-tiny from nothing: videos of the 40 Meta-World tasks that are not in MT10 (no actions are read), a VAE, a video transformer.
# About 20 minutes on one H200 with 16 CPU cores.
#
#   experiments/cosmos_tiny/run.sh                      everything
#   experiments/cosmos_tiny/run.sh vae transformer      these steps; each overwrites its own output only
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/cosmos_tiny
mimicvideo() { python3 -m mimicvideo "$@"; }

videos() { # Noise on the experts' motion and random starts show the robot more than the experts' own paths.
    mimicvideo demos --root "$out/videos" --tasks not-MT10 --episodes_per_task 12 --cameras '[workspace,front]' --stride 2 --seed 40 \
        --action_noise 0.3 --noise_smoothness 0.7 --noise_probability 0.7 --start_noise_steps 20 --tail_steps 20 --overwrite true
}
vae() {
    mimicvideo fit --config conf/experiment/cosmos_tiny_vae.yaml
}
transformer() { # with its text encoder, from random weights
    python3 experiments/cosmos_tiny/untrained.py --out "$out/untrained" --vae "$out/vae/vae"
    mimicvideo fit --config conf/experiment/cosmos_tiny_transformer.yaml
}
export_folder() { # what `pretrained: cosmos-tiny` reads
    python3 experiments/cosmos_tiny/export.py --backbone "$out/transformer/backbone" --out "$out/cosmos-tiny"
}

for step in "${@:-videos vae transformer export_folder}"; do
    for name in $step; do
        printf '%s %s\n' "$(date +%T)" "$name"
        "$name"
    done
done
