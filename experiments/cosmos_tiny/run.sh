#!/usr/bin/env bash
# cosmos-tiny from nothing: videos of the 40 Meta-World tasks that are not in MT10 (no actions are read), a VAE, a video transformer.
# About 18 minutes on one H200 with 16 CPU cores. The steps can be run one by one; each overwrites its own output only.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/cosmos_tiny
mimicvideo() { python3 -m mimicvideo "$@"; }

# 1. Videos. Noise on the experts' motion and random starts show the robot more than the experts' own paths.
mimicvideo demos --root "$out/videos" --tasks not-MT10 --episodes_per_task 30 --cameras '[workspace]' --stride 2 --seed 40 \
    --action_noise 0.3 --noise_smoothness 0.7 --noise_probability 0.7 --start_noise_steps 20 --tail_steps 20 --overwrite true
# 2. The VAE.
mimicvideo fit --config conf/experiment/cosmos_tiny_vae.yaml
# 3. An untrained transformer and T5 beside it.
python3 experiments/cosmos_tiny/untrained.py --out "$out/untrained" --vae "$out/vae/vae"
# 4. The video model.
mimicvideo fit --config conf/experiment/cosmos_tiny_transformer.yaml
# 5. The folder that `pretrained: cosmos-tiny` reads.
python3 experiments/cosmos_tiny/export.py --backbone "$out/transformer/backbone" --out "$out/cosmos-tiny"
