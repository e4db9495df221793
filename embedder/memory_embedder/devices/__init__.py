"""The GPUs and CPU cores of this machine: their readings, and which sidecar uses which GPU."""
