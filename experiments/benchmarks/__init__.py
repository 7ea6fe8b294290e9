"""What the engine costs and what it brings, on a clock: `make bench`, or a module by itself.

- `trace`: finding and removing channels, against Torch-Pruning (`torch_pruning_peer`);
- `linear`: the same over ResNets of 50 to 302 layers, and the memory it takes;
- `multiples`: widths in multiples of 8, MACs and time;
- `compile`: XLA's time for slim nets and dense ones;
- `depthwise`: depthwise convolutions as shifted multiply-adds;
- `latency`: what latency tables predict, and what a budget in latency delivers;
- `hold`: a training step under masks;
- `dns`: a step of moving masks; `steps`: one of group lasso, ADMM, C-SGD, variational gates, FBS;
- `hutchinson`: the Hessian's diagonal; `kfac`: Kronecker factors of ResNet-56;
- `sparse`: sparse layers and nets, and how often the roofline is right;
- `obs`: deletions by optimal brain surgeon;
- `topk`: the best of 25 million scores, on the host and jitted;
- `metapruning`: candidates that are scored in a second;
- `runner`: what sweeps cost, how busy they keep the cores, and vmapped seeds (twenty minutes).

Every module says what it expects, prints what it finds, and adds rows with versions, device,
command and commit to a file of its name in `results/engine` or `results/benchmarks`. Both sides of
a ratio are timed in turns, in one run, on a machine that does nothing else. `--repeats` and
`--nets` make it short.
"""
