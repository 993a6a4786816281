"""What this machine has, what is missing, and the command that mends it: ``python -m pipeline.doctor``."""
