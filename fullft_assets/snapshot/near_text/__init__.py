"""Texts that are near each other: words, shingles, MinHash, and the search for pairs."""
