"""web3.py and its messages, without what a library of its own does to the whole process when it is imported.

py_ecc raises Python's limit on recursion a hundredfold. With that a decoder that recurses in C ends the process where
whoever reads a file of others, a checkpoint's index say, relies on a RecursionError.
"""

import sys

_limit = sys.getrecursionlimit()
import web3  # noqa: E402 - between reading the limit and setting it
import web3.exceptions  # noqa: E402
from eth_account import messages  # noqa: E402

sys.setrecursionlimit(_limit)

__all__ = ["messages", "web3"]
