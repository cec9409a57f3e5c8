"""Thick slices: where they lie in a volume, what they see of it, and how to find them in one."""
