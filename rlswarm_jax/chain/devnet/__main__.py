"""Serves a development network until it is told to stop.

    python -m rlswarm_jax.chain.devnet --dir runs/devnet --port 8545

Prints its address when it is ready. Everything is on disk in --dir; started there again it goes on where it was.
"""

import argparse
import asyncio
import gc
import sys
from pathlib import Path

from rlswarm_jax.chain.devnet.chain import GAS_LIMIT, Chain, Genesis
from rlswarm_jax.chain.devnet.errors import DevnetError, RpcError
from rlswarm_jax.chain.devnet.journal import Journal
from rlswarm_jax.chain.devnet.params import address
from rlswarm_jax.chain.devnet.rpc import Interface
from rlswarm_jax.chain.devnet.server import serve

ETHER = 10**18


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m rlswarm_jax.chain.devnet", description=__doc__.split("\n")[0])
    found.add_argument("--dir", type=Path, required=True, help="folder of the chain; it is made if there is none")
    found.add_argument("--port", type=int, default=0, help="of 127.0.0.1; 0 takes a free one (default)")
    found.add_argument(
        "--fund", nargs="*", default=[], metavar="ADDRESS", help="accounts that have ether from the start"
    )
    found.add_argument("--ether", type=int, default=1000, help="how much each of them has (default 1000)")
    found.add_argument("--base-fee", type=int, default=0, help="wei per gas; at 0, the default, nobody needs funds")
    found.add_argument("--gas-limit", type=int, default=GAS_LIMIT, help=f"of a block (default {GAS_LIMIT})")
    found.add_argument("--tick", type=int, default=1, choices=(0, 1), help="least seconds from block to block")
    found.add_argument("--stop-on-eof", action="store_true", help="end when standard input does")
    return found


def main() -> int:
    arguments = parser().parse_args()
    gc.freeze()  # what is imported stays, and py-evm leaves no cycles that a collection every 700 objects would find
    gc.set_threshold(50_000)
    try:
        accounts = {address(one): arguments.ether * ETHER for one in arguments.fund}
        genesis = Genesis(arguments.base_fee, arguments.gas_limit, accounts)
        journal = Journal(arguments.dir)
        try:
            chain = Chain(journal, genesis, tick=arguments.tick)
            asyncio.run(serve(Interface(chain, journal), arguments.port, _say, arguments.stop_on_eof))
            chain.close()
        finally:
            journal.close()
    except (DevnetError, RpcError) as error:
        print(f"error: {str(error).rstrip('.')}.", file=sys.stderr)
        return 2
    return 0


def _say(url: str) -> None:
    print(f"the development network answers at {url}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
