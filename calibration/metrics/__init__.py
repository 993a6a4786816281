"""How masks are judged: agreement, saliency against ground truth, flicker."""
