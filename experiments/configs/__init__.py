"""Configurations: one short file a comparison, with `CONFIG`, a `Sweep`.

Its docstring names the papers, the numbers to expect with their source, and the exact command.
"""
