"""What is inside a bundle: files, layers, precisions, sizes, and the plans as their runtime sees them."""
