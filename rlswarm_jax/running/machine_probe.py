"""What jax finds on this machine, and what a config would take of it: a config as JSON in, a line of JSON out."""

import json
import sys

import ml_collections


def main() -> None:
    import jax

    from rlswarm_jax.errors import UsageError
    from rlswarm_jax.running import plan

    devices = jax.local_devices()
    found = {"backend": jax.default_backend(), "devices": [one.device_kind for one in devices]}
    config = ml_collections.ConfigDict(json.load(sys.stdin)).lock()
    try:
        parts = plan.of_config(config)
        states, working = plan.nodes_of(config)
        always = sum(part.bytes for part in parts if part.when == plan.ALWAYS)
        peak = states * always + working * (plan.peak(parts) - always)
        found |= {"state": always, "peak": peak, "limit": plan.memory("")}
    except UsageError as error:
        found["why"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
