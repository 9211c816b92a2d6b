"""What is measured and drawn of trained runs and of filter banks."""
