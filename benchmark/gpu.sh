#!/usr/bin/env bash
# Times the image scripts on a GPU, eager and with --compile, then trains Pong for a while:
#
#     bash benchmark/gpu.sh
#
# It takes less than ten minutes, needs no network, and writes benchmark/results/gpu.json and docs/gpu.png. A trial without a GPU:
#
#     DEVICE=cpu STEPS=4096 PONG_SECONDS=60 bash benchmark/gpu.sh
set -euo pipefail
device=${DEVICE:-cuda} steps=${STEPS:-20480} pong_seconds=${PONG_SECONDS:-200}
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
cd "$folder"
for script in ppo_atari_envpool ppo_atari ppo_atari_lstm; do
    for flag in --no-compile --compile; do
        python "$root/$script.py" --device "$device" --total-timesteps "$steps" "$flag" --exp-name "$script"
    done
done
# An interrupted run ends in order, with exit code 130; timeout turns that into 124.
timeout --signal INT "$pong_seconds" \
    python "$root/ppo_atari_envpool.py" --env-id Pong-v5 --device "$device" --compile --exp-name pong || [ $? = 124 ]
python "$root/benchmark/gpu.py" runs/*
rm -r "$folder"
