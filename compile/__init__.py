"""The build half: trained weights to a bundle that the run half can trust. Always ``from compile.x import y``."""
