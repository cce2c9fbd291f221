"""Helpers without a subject of their own: files, loading, linear algebra, processes, batches."""
