"""From the scans of one infant to the isotropic T2w."""
