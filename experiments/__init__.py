"""Everything that produced a number: scripts, their settings and what they measured.

`keras_nets.py` brings the networks of keras.applications, `zoos.py` puts all of them through the
engine (`make zoos`), `benchmarks/` holds whatever needs a quiet machine (`make bench`), `results/`
holds measured rows, and `tables.py` makes tables and pages of them (`make tables`). Read `rows.py`
first: how a measurement is kept.

Comparisons of methods: `run.py` runs the configurations in `configs/`. `sweep.py` says what is to
be run, `perform.py` does a run, `work.py` shares the runs among processes, `show.py` shows them,
and `seeds.py` trains several seeds in one step.

Nothing in `jprune` imports from here.
"""
