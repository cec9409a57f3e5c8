"""Scans on disk and in memory: NIfTI files, BIDS names and sidecars, the Hub, intensities, registration."""
