#!/usr/bin/env bash
# One run on a SLURM cluster, one process per GPU; the processes find each other through SLURM's own variables.
# Usage: sbatch [--nodes=4 --time=8:00:00 ...] launch/slurm.sh configs/coco.py --config.run.dir=/shared/runs/coco
# The run directory must be on a file system that all nodes share. Options of the sbatch command override those below.
#SBATCH --job-name=mdw
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time limit every process gets SIGTERM, as it does when the job is preempted; it then saves and
# ends, and the job goes back into the queue.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config=$1
shift
export MDW_DISTRIBUTED=1 MDW_STATUS_WHEN_STOPPED=85 # so that "stopped" differs from "finished"
trap : TERM                                         # on preemption this script gets it too, and has to outlive srun
status=0
srun mdw run --config "$config" "$@" || status=$?
if ((status == 85)); then
    echo "stopped before the end; back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
