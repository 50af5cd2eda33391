"""Models at work: loading, inference, embeddings, token losses. Imports torch: only launched processes import
it.
"""
