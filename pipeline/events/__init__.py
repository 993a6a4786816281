"""Events on their way to other programs: a buffer with a thread of its own, and who carries them."""
