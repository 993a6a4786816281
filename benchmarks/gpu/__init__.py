"""All that is measured on an NVIDIA GPU: parts of ``python -m benchmarks gpu`` that may fail alone, and the GPU's rows of ``peers``."""
