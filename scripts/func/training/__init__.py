"""What training needs besides the data: losses, optimisers, checkpoints, processes, TensorBoard, augmentation."""
