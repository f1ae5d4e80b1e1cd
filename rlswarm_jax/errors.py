"""What ends a program in one sentence instead of a traceback, and the exit codes that say so."""

import os

# a launcher and a supervisor try again after BROKEN and MAY_PASS
DONE, BROKEN, MEND, MAY_PASS, INTERRUPTED = 0, 1, 2, os.EX_TEMPFAIL, 130


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is the one sentence they get."""

    code = MEND


class TransientError(UsageError):
    """The same command may succeed later: a port is taken, a folder in use."""

    code = MAY_PASS


class DiskError(TransientError):
    """The disk does not take what is written, or give back what was: it is full, say. What was whole stays so."""

    code = BROKEN
