"""How far masks agree with each other and with ground truth."""
