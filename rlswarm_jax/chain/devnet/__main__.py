"""Serves a development network until it is told to stop.

    python -m rlswarm_jax.chain.devnet --dir runs/devnet --port 8545

Prints its address when it is ready. Everything is on disk in --dir; started there again it goes on where it was.
"""

import argparse
import asyncio
import gc
import re
import sys
from pathlib import Path

from rlswarm_jax.chain.devnet.chain import Chain
from rlswarm_jax.chain.devnet.errors import DevnetError
from rlswarm_jax.chain.devnet.rpc import Interface
from rlswarm_jax.chain.devnet.server import serve
from rlswarm_jax.chain.devnet.store import Store


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m rlswarm_jax.chain.devnet", description=__doc__.split("\n")[0])
    found.add_argument("--dir", type=Path, required=True, help="folder of the chain; it is made if there is none")
    found.add_argument("--port", type=int, default=0, help="of 127.0.0.1; 0 takes a free one (default)")
    found.add_argument("--fund", action="append", default=[], metavar="0x...", help="an account to begin with coins")
    found.add_argument("--stop-on-eof", action="store_true", help="end when standard input does")
    return found


def main() -> int:
    given = parser().parse_args()
    for account in given.fund:
        if not re.fullmatch("0x[0-9a-fA-F]{40}", account):
            parser().error(f"--fund {account[:60]!r} is no address: that is 0x and 40 hexadecimal digits.")
    gc.freeze()  # what is imported stays, and py-evm leaves no cycles that a collection every 700 objects would find
    gc.set_threshold(50_000)
    try:
        store = Store(given.dir)
        try:
            asyncio.run(serve(Interface(Chain(store, funded=given.fund), store), given.port, _say, given.stop_on_eof))
        finally:
            store.close()
    except DevnetError as error:
        print(f"error: {str(error).rstrip('.')}.", file=sys.stderr)
        return 2
    return 0


def _say(url: str) -> None:
    print(f"the development network answers at {url}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
