#!/usr/bin/env bash
# MT10 with one policy, starting from cosmos-tiny, on one GPU: demonstrations, both stages, evaluation; and the same decoder and
# budget on (a) a random frozen backbone and (b) cosmos-tiny without stage 1, beside (c) with stage 1. The three decoders train at
# the same time, since each alone leaves a good part of the GPU idle. About 15 minutes on one H200 with 16 CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=runs/metaworld_mt10 data=datasets/metaworld_mt10
mimicvideo() { python3 -m mimicvideo "$@"; }
note() { printf '%s %s\n' "$(date +%T)" "$*"; }
rollouts="--config conf/rollout.yaml --episodes 20 --seed 2 --execute 8 --envs_per_worker 4"

# Stage 2 of one variant, then its rollouts: 20 new episodes of each task.
variant() { # variant NAME flags...
    local name=$1; shift
    mimicvideo fit --config conf/experiment/metaworld_mt10_action.yaml --run_dir "$out/$name" "$@" > "$out/$name.log" 2>&1
    note "$name trained"
    mimicvideo rollout $rollouts --policy "$out/$name/checkpoints/last.ckpt" --run_dir "$out/$name/rollout" --videos 1 >> "$out/$name.log" 2>&1
    note "$name evaluated"
}

mkdir -p "$out"
note "demonstrations"
mimicvideo demos --root "$data" --tasks MT10 --episodes_per_task 50 --cameras '[workspace,front]' --stride 2 --seed 10 --action_noise 0.3 \
    --noise_probability 0.6 --start_noise_steps 25 --tail_steps 20 --overwrite true
note "stage 1"
mimicvideo fit --config conf/experiment/metaworld_mt10_video.yaml > "$out/video.log" 2>&1 &
video=$!
while kill -0 $video 2> /dev/null && ! ls "$out"/video/csv/*/metrics.csv > /dev/null 2>&1; do sleep 1; done # the latents are cached then
variant random_backbone --config conf/ablation/random_backbone.yaml &
variant no_adaptation --config conf/ablation/no_adaptation.yaml &
wait $video
note "stage 1 done"
variant action &
wait
note "control"
mimicvideo rollout $rollouts --policy "$out/action/checkpoints/last.ckpt" --run_dir "$out/action/zero_context" --videos 0 \
    --control zero_context >> "$out/action.log" 2>&1
note "done"
