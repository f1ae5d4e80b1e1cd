"""web3.py and its messages, without the library for encrypted key files that it imports and nothing here uses.

That one takes half a second of each node's start; and its py_ecc raises Python's limit on recursion a hundredfold, with
which a decoder that recurses in C ends the process where whoever reads a file of others, a checkpoint's index say,
relies on a RecursionError.
"""

import sys
import types

_stand_ins = {}
for _name in ("eth_keyfile", "eth_keyfile.keyfile"):
    _stand_ins[_name] = types.ModuleType(_name)
    _stand_ins[_name].__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
_own = {name: module for name, module in _stand_ins.items() if sys.modules.setdefault(name, module) is module}
try:
    import web3
    import web3.exceptions
    from eth_account import messages
finally:
    for _name in _own:  # who wants key files imports the real one
        del sys.modules[_name]

__all__ = ["messages", "web3"]
