"""What the engine costs and what it brings, on a clock: `make bench`, or a module by itself.

- `trace`: finding and removing channels, against Torch-Pruning (`torch_pruning_peer`);
- `linear`: the same over ResNets of 50 to 302 layers, and the memory it takes;
- `compile`: XLA's time for slim nets and dense ones;
- `depthwise`: depthwise convolutions as shifted multiply-adds;
- `hold`: a training step under masks;
- `obs`: deletions by optimal brain surgeon;
- `runner`: what sweeps cost, how busy they keep the cores, and vmapped seeds (twenty minutes).

Every module says what it expects, prints what it finds, and adds rows with versions, device,
command and commit to a file of its name in `results/engine`. Both sides of a ratio are timed in
turns, in one run, on a machine that does nothing else. `--repeats` and `--nets` make it short.
"""
