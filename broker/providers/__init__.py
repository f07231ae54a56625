"""Who runs GPUs."""
