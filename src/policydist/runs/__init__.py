"""Run directories, typed configs, metrics, checkpoints, exact resume and seed streams."""
