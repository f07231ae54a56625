"""The replacements for RunPod and R2 on one machine, over the same protocols."""
