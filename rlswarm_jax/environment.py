"""What a program says where the environment is missing, before a library is missed with a traceback.

It runs on any Python 3 of these years, so that an old one is told, too.
"""

import importlib.util
import os
import sys

NEEDED = ("absl", "coincurve", "jax", "libp2p", "ml_collections", "msgspec", "rich", "trio")


def complaint(executable, version, find, checkout):
    """One sentence for a Python that cannot run this, None for one that can."""
    missing = [name for name in NEEDED if find(name) is None]
    if version[:2] >= (3, 11) and not missing:
        return None
    what = f"has no {', '.join(missing)}" if missing else f"is version {version[0]}.{version[1]}"
    own = os.path.join(".venv", "bin", "python")
    there = os.path.exists(os.path.join(checkout, own))
    do = f"run {own} -m ..." if there else f"run `make install`, then {own} -m ..."
    return f"error: this Python ({executable}) {what}: {do}, from the folder of the checkout."


def check():
    """Ends a program that was started with `python -m` by another Python than the environment's; exit code 2."""
    if sys.argv[:1] != ["-m"]:  # an import by somebody else's program is that one's to answer
        return
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    said = complaint(sys.executable, sys.version_info, importlib.util.find_spec, checkout)
    if said:
        sys.stderr.write(said + "\n")
        sys.exit(2)
