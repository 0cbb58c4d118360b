"""Training of both stages.

`stage` is the contract that everything here meets at: `stages` fulfil it, `loop` runs what fulfils it, `launch` builds
both from a command line. `optimization` and `checkpoints` stand below and know neither stages nor loop; `experiment`
has the section of the YAML file that all of them read, and its counts.
"""
