"""Training: splits, settings, batches, losses, optimisers, checkpoints, processes, validation, TensorBoard, results."""
