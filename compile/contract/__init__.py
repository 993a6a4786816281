"""Contracts that are found: from a network's file, from what is known of its family, and from pictures with their masks."""
