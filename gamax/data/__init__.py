"""Images on disk to batches on devices: reading, preparing, the input pipeline, augmentation and degradation."""
