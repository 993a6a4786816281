"""What is measured on an NVIDIA GPU, in parts that may fail alone, and the samples and figures that they share."""
