"""The main job: names in; a small net out, measured, exported and reported.

`main.py` is what `jprune prune` does: read it first. `finish.py` has the stages that only the job
has (the law, exports, measurements), `result.py` writes `result.json`, `inspection.py` looks at a
net, `export.py` exports a finished run once more. Nothing below imports this room.
"""
