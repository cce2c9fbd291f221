"""The confined interpreter for untrusted programs: this folder is run as a script.

Nothing here imports balora or anything beyond the standard library, so the process starts in milliseconds and has
nothing of balora in memory.
"""
