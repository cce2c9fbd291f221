"""The interpreter that a program to be judged runs in: this folder is run as a script, apart from balora.

Nothing here imports balora or anything beyond the standard library, so that the process starts in milliseconds and
holds nothing of ours.
"""
