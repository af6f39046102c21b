#!/bin/bash
# The ten folds of an arm as a Slurm array; each task trains one fold and knows nothing of the others.
#
#   sbatch docs/cluster/slurm-array.sh
#
# ARCH, DATA and RUNS may be given: sbatch --export=ALL,ARCH=inceptionresnetv2,DATA=/data/rsna ...
# RUNS must be on a disk that all nodes share. Slurm sends SIGTERM five minutes before the time is over;
# the run saves, and the task is queued again.
#SBATCH --job-name=ich-folds
#SBATCH --array=0-9
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ich-fold-%a.log
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
INDEX=${SLURM_ARRAY_TASK_ID:?this is for sbatch}
PYTHON=${PYTHON:-.venv/bin/python}

# --resume starts a fold that has not begun, and goes on with one that has.
"$PYTHON" train.py --fold "$INDEX" --arch "${ARCH:-efficientnetb3}" --data "${DATA:-data}" \
    --runs "${RUNS:-runs}" --resume &
child=$!
trap 'kill -TERM "$child"' TERM
wait "$child"
code=$?
if [ "$code" -gt 128 ]; then
    # The signal ended the wait; the run is still saving.
    wait "$child"
    code=$?
fi
if [ "$code" -eq 75 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${INDEX}"
    exit 0
fi
exit "$code"
