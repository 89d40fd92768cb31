"""The cards of this machine. Needs nvidia-ml-py and nothing else."""
