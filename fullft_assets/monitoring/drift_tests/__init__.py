"""The drift tests: one file each."""
