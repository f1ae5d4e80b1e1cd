"""What can go wrong between a node and its chain: one class for each thing that a person would do something about.

No message holds a key, or more of an endpoint's address than its host (the path often is a password).
"""


class ChainError(RuntimeError):
    """Any of what follows."""


class EndpointDown(ChainError):
    """The endpoint cannot be reached, is too slow, or is too busy: try again later."""


class Busy(EndpointDown):
    """The endpoint says so itself, by a status or an error: it limits how much it is asked.

    seconds: that it asks to wait for, within a bound; 0 where it names none.
    """

    def __init__(self, message: str, seconds: float = 0.0):
        super().__init__(message)
        self.seconds = seconds


class MalformedAnswer(ChainError):
    """The endpoint answered with something that is not what the question allows: it is broken, or hostile."""


class AnswerTooLarge(MalformedAnswer):
    """The answer is larger than this node reads: ask for less at once."""


class WrongStatus(MalformedAnswer):
    """The endpoint answered with an HTTP status that no waiting mends: its address or its key is wrong."""


class Refused(ChainError):
    """The endpoint answered with a JSON-RPC error. code: its number; words: its message, cut; data: of a revert."""

    def __init__(self, method: str, code: int, words: str, data: bytes | None = None):
        super().__init__(f"the endpoint refused {method}: {words} (code {code}).")
        self.code, self.words, self.data = code, words, data


class Reverted(ChainError):
    """The contract refused a call. `name`: of its error, as in its source; `detail`: the error's arguments, if any."""

    def __init__(self, name: str, detail: str = ""):
        super().__init__(f"the contract refused the call: {name}{f' ({detail})' if detail else ''}.")
        self.name, self.detail = name, detail


class WrongChain(ChainError):
    """The endpoint serves another chain than the one the node, or its outbox, is made for."""


class NoContract(ChainError):
    """There is no contract at the address, or none that this client can speak to."""


class InsufficientFunds(ChainError):
    """The account cannot pay for a transaction."""


class FileDamaged(ChainError):
    """The outbox or the index cannot be used: damaged, another account's, another process holds it, a full disk."""


class NotMined(ChainError):
    """A transaction failed in its block, or is in none so far; the message has its hash."""


class BadRegistration(ChainError):
    """A signed registration does not hold, or is for another swarm."""


class ExpiredRegistration(BadRegistration):
    """Its deadline is over, or too near."""


class NotAllowed(ChainError):
    """The contract lets another account do this."""


class BeaconMissing(ChainError):
    """A round has no beacon although its block should be there."""


class PayoutFixed(ChainError):
    """Earnings go to an address that this node's account cannot change."""
