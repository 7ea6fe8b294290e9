"""What is tied to what: a program read with a label on every position of every axis.

Here belongs what follows labels through equations and says what they mean: `labels.py` (what a
label is), `contractions.py` (sums of products, written as contractions), `rules.py` with
`moves.py`, `scatters.py` and `arithmetic.py` (a rule for every primitive), `interpret.py` (the loop
over equations), `solve.py` (which labels are one channel), `roles.py` (what a leaf does),
`groups.py` (units). `coupling.py` puts them together: read it first.
"""
