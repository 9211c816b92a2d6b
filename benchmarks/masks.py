"""Time to label 10,000 parameters, against naming them with JAX alone.

    python benchmarks/masks.py

A selector of several rules is applied to nested dictionaries in turn with
`jax.tree_util.tree_map_with_path` making each leaf's path as a string, which any rule of paths
needs at least.
"""

import timing
from absl import app, flags

flags.DEFINE_integer("rounds", 15, "Timed rounds.", lower_bound=1)

SELECTOR = "~role('role1') & depth(4, None) | path('role2/.*/kernel') - leaf('bias')"


def main(argv):
    import jax

    from randmix import masks

    block = {"conv": {"kernel": 0.0, "bias": 0.0}}
    tree = {f"role{r}": {f"block_{b:03d}": block for b in range(500)} for r in range(10)}
    rules = masks.trainable(SELECTOR)
    seconds = timing.in_turn(
        {
            "labels": lambda: masks.labels(tree, rules),
            "paths": lambda: jax.tree_util.tree_map_with_path(
                lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
            ),
        },
        rounds=flags.FLAGS.rounds,
    )
    for name, figures in seconds.items():
        print(f"{name:7} {timing.milliseconds(figures):8.1f} ms")
    print(f"labels / paths: {timing.ratio(seconds, 'labels', 'paths'):.2f}")


if __name__ == "__main__":
    app.run(main)
