"""A service around a training script that exists: the script is read, never run; its copies, its stage, its data and what is left to do."""
