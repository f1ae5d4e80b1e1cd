"""A swarm of language models that play reasoning games and learn from each other, in functional JAX.

The one glossary of axis names. A tensor that crosses a function boundary carries its axes in its name:

    B  sequences of a batch           P  prompts                  G  completions per prompt
    R  rows of a sampler's tile       T  time (tokens)            S  slots of a key/value cache
    V  vocabulary                     D  model width              F  width of the MLP
    L  layers                         N  query heads              K  key/value heads
    H  head size                      W  nodes of a simulated swarm
    C  chunk of a vocabulary or batch M  a PRNG key's two 32-bit words

So `logits_BTV` is `[batch, time, vocabulary]`, and `tokens_PGT` holds G completions for each of P prompts.
"""

from rlswarm_jax import environment

environment.check()

__version__ = "0.1.0"
