#!/bin/bash
# Training on several machines under SLURM. Two minutes before the time limit, and at a preemption, the run saves a
# checkpoint and ends with status 143; the job is then queued again and resumes. Give the options of pretrain:
#   sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 slurm.sh pretrain --config C.yaml --corpus CORPUS -o OUTPUT
# CELLGLOT_ACCELERATE names another configuration than ddp.yaml: fsdp2.yaml, or a file.
#SBATCH --job-name=cellglot
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

# SLURM starts each process itself, so that their status is that of the job step.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
settings=$(python -m cellglot.training.launch "${CELLGLOT_ACCELERATE:-ddp.yaml}") || exit 1
eval "$settings"

trap ":" TERM  # that of a preemption: the processes end by themselves
srun --kill-on-bad-exit=0 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python -m cellglot "$@"' cellglot "$@" &
step=$!
wait $step
status=$?
while kill -0 $step 2>/dev/null; do  # a signal ended the wait, not the step
    wait $step
    status=$?
done
if [ $status -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
