"""Episodes to batches."""
