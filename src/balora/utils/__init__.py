"""Shared helpers for batches, processes, files, lengths, linear algebra, loading, modules and sampling."""
