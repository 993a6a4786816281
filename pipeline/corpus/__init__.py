"""Masks of a whole corpus: many pictures and videos, on this machine, in shards or on Ray; what is done is not done again."""
