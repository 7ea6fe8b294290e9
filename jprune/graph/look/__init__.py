"""Where the values of a net can be read or changed: call sites, handlers, residual branches.

Read `sites.py` first, then `intercept.py`, which runs a net with a handler at its sites. What
follows a value is in `flow.py`, where its axes stand behind transposes and reshapes in `moved.py`.
"""
