#!/usr/bin/env bash
# One run on a SLURM cluster: by default on the 8 GPUs of one node, which one process uses.
# Usage: sbatch [--gpus-per-node=4 --time=8:00:00 ...] launch/slurm.sh coco|FILE --config.run.dir=/shared/runs/coco
# Several nodes want one process per GPU, which find each other through SLURM's own variables:
#   sbatch --nodes=4 --ntasks-per-node=8 --cpus-per-task=8 launch/slurm.sh coco --config.run.dir=/shared/runs/coco
# The run directory must be on a file system that all nodes share. Options of the sbatch command override those below.
#SBATCH --job-name=mdw
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# Two minutes before the time limit every process gets SIGTERM, as it does when the job is preempted; it then saves and
# ends, and the job goes back into the queue.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config=${1:?name of a config, or a file; see the first lines of this script}
shift
nodes=${SLURM_NNODES:-1}
if ((nodes > 1 && ${SLURM_NTASKS:-1} == nodes && ${SLURM_GPUS_ON_NODE:-1} > 1)); then # jax gives each task one GPU
    echo "one process on each of $nodes nodes would use one GPU of each; add --ntasks-per-node=$SLURM_GPUS_ON_NODE" >&2
    exit 2
fi
export MDW_DISTRIBUTED=1 MDW_STATUS_WHEN_STOPPED=85 # so that "stopped" differs from "finished"
trap : TERM                                         # on preemption this script gets it too, and has to outlive srun
status=0
srun mdw run "$config" "$@" || status=$?
if ((status == 85)); then
    echo "stopped before the end; back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
