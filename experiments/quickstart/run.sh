#!/usr/bin/env bash
# The whole method on two CPU cores in a quarter of an hour: demonstrations, stage 1, stage 2, rollouts with a control, report.
# `run.sh smoke` takes a few steps of everything, to see that it runs; nothing is learned then.
set -euo pipefail
cd "$(dirname "$0")/../.."
size=${1:-full}
out=runs/quickstart data=datasets/quickstart
tasks='[door-open,drawer-open,window-close]'
demos=25 video_steps=60 action_steps=1000 episodes=20 limit=500
if [ "$size" = smoke ]; then
    out=runs/smoke data=datasets/smoke demos=2 video_steps=4 action_steps=6 episodes=1 limit=60
fi
# bf16 halves the time of the video model on CPUs that multiply it, and is far slower on others.
dtype=$(python3 -c 'import torch; print("bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32")')
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "1/6 demonstrations: scripted experts, $demos of each task"
mimicvideo demos --root "$data" --tasks "$tasks" --episodes_per_task "$demos" --cameras '[workspace]' --stride 6 --seed 3 \
    --action_noise 0.3 --noise_probability 0.6 --start_noise_steps 25 --tail_steps 6 --overwrite true

step "2/6 stage 1: the video model learns how these tasks look"
mimicvideo fit --config conf/experiment/quickstart_video.yaml --data.root "$data" --run_dir "$out/video" \
    --trainer.max_steps "$video_steps" --model.backbone.dtype "$dtype"

step "3/6 stage 2: the action decoder learns to read its hidden states"
mimicvideo fit --config conf/experiment/quickstart_action.yaml --data.root "$data" --run_dir "$out/action" \
    --trainer.max_steps "$action_steps" --model.backbone.dtype "$dtype" --model.backbone.adapter "$out/video/adapter"

step "4/6 rollouts: $episodes new episodes of each task"
mimicvideo rollout --config conf/rollout.yaml --policy "$out/action/checkpoints/last.ckpt" --benchmark.tasks "$tasks" \
    --episodes "$episodes" --seed 1 --execute 12 --max_steps "$limit" --run_dir "$out/rollout" --envs_per_worker 10 --overwrite true

step "5/6 control: the same without what the video model sees"
mimicvideo rollout --config conf/rollout.yaml --policy "$out/action/checkpoints/last.ckpt" --benchmark.tasks "$tasks" \
    --episodes "$episodes" --seed 1 --execute 12 --max_steps "$limit" --run_dir "$out/zero_context" --envs_per_worker 10 --overwrite true \
    --control zero_context --videos 1

step "6/6 report"
mimicvideo report --runs "[$data,$out/video,$out/action,$out/rollout,$out/zero_context]" --out "$out/report.html" --title "mimicvideo quickstart"
printf '\nall done in %s s: %s\n' "$SECONDS" "$out/report.html"
