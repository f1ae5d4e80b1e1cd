"""What a caller of the JSON-RPC interface is told, with the codes that Ethereum's clients know."""

from typing import Any

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
REFUSED, LIMIT_EXCEEDED, REVERTED = -32000, -32005, 3


class RpcError(Exception):
    """An answer that is an error. data: what a contract reverted with, in hexadecimal."""

    def __init__(self, message: str, code: int = REFUSED, data: str | None = None):
        super().__init__(message)
        self.code, self.data = code, data

    def answer(self) -> dict[str, Any]:
        found = {"code": self.code, "message": str(self)}
        return found if self.data is None else found | {"data": self.data}


class DevnetError(RuntimeError):
    """The network cannot start or go on; the message says what to do."""
