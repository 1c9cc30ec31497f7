#!/usr/bin/env bash
# sbatch launch/slurm.sh [arguments of `xmodal train`], in the repository: one process a GPU, on all nodes of the job.
# JAX gives each task the GPU of its number on the node; SIGTERM leaves two minutes to save before the time is up.
#SBATCH --job-name=xmodal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
set -euo pipefail
exec srun --kill-on-bad-exit=1 .venv/bin/xmodal train --distributed "$@"
