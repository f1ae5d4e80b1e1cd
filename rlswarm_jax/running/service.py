"""A run as a service of the system, that starts it and starts it again: the text that systemd or launchd takes.

Everything is as the command that printed it had it: this interpreter, this folder, this user, these arguments.
"""

import getpass
import os
import plistlib
import re
import sys
from pathlib import Path

from rlswarm_jax.errors import BROKEN, DONE, INTERRUPTED, MAY_PASS, MEND, UsageError
from rlswarm_jax.running.arguments import Arguments

SYSTEMD, LAUNCHD = KINDS = "systemd", "launchd"
ENDS = (DONE, MEND, INTERRUPTED)  # after which a run is not to be started again; after BROKEN and MAY_PASS it is
KEPT = ("JAX_", "XLA_", "CUDA_", "TPU_", "HF_HOME", "XDG_CACHE_HOME", "PYTHONPATH", "TMPDIR", "SSL_CERT_")
WATCHDOG = 180  # seconds that a node may be stalled, or say nothing, before it is started again
TMP = (Path("/tmp"), Path("/var/tmp"))
PRIVATE = "HF_TOKEN, WANDB_API_KEY, or what chain.endpoint names as $NAME"

UNIT = """\
# {name}. To install it:
#   sudo cp THIS /etc/systemd/system/{name}.service
#   sudo systemctl daemon-reload && sudo systemctl enable --now {name}
# Secrets go, as NAME=VALUE, into /etc/rlswarm_jax/env, mode 600:
# {private}.
[Unit]
Description={name}
Wants=network-online.target
After=network-online.target
# it is started again for as long as it takes
StartLimitIntervalSec=0

[Service]
{type}
User={user}
WorkingDirectory={home}
{environment}EnvironmentFile=-/etc/rlswarm_jax/env
ExecStart={command}
# {mend} wants a person; {done} is all rounds played, {interrupted} a stop; after anything else another try may help
Restart=on-failure
RestartSec=30
RestartPreventExitStatus={mend}
SuccessExitStatus={interrupted}
# one request to stop, to the process that passes it on, and time for a checkpoint
KillMode=mixed
TimeoutStopSec=300
# a child that ran out of memory is its parent's to start again
OOMPolicy=continue

UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writes}
PrivateTmp={own_tmp}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
{confined}
[Install]
WantedBy=multi-user.target
"""
CONFINED = "RestrictNamespaces=yes\nSystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\n"
UNCONFINED = "# programs that others write run in namespaces of their own (docs/sandbox.md): those are allowed\n"

# launchd knows of one kind of exit alone, success: the shell makes one of each after which nothing is to be done
SHELL = (
    'trap "kill -TERM \\$child" TERM; "$@" & child=$!; '
    "while :; do wait $child; code=$?; kill -0 $child 2>/dev/null || break; done; "
    f"case $code in {'|'.join(map(str, ENDS))}) exit 0;; esac; exit $code"
)


def text(kind: str, arguments: Arguments) -> str:
    """Of the unit or property list. Raises UsageError."""
    if kind not in KINDS:
        raise UsageError(f"there is no service {kind!r}; expected --print-service systemd or --print-service launchd.")
    return (unit if kind == SYSTEMD else plist)(arguments)


def command(arguments: Arguments) -> list[str]:
    """That starts the run, or goes on with it, wherever it is called."""
    path, colon, variant = arguments.file.partition(":")
    words = [word for word in _without_config(arguments.words) if word]
    resolved = f"--config={Path(path).absolute()}{colon}{variant}"
    workdir = f"--workdir={arguments.workdir.absolute()}"
    return [sys.executable, "-m", "experiments.run", resolved, *words, workdir, "--resume"]


def _without_config(words: tuple[str, ...]) -> list[str]:
    found, rest = [], iter(words)
    for word in rest:
        name, equals, _ = word.lstrip("-").partition("=")
        if name == "config":
            if not equals:
                next(rest, None)
        else:
            found.append(word)
    return found


def unit(arguments: Arguments) -> str:
    """For systemd."""
    config, name = arguments.config, f"rlswarm_jax-{arguments.config.name}"
    workdir = arguments.workdir.absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    programs = any(of.get("kind") == "code" for of in config.tasks.to_dict().values())
    single = config.driver == "node"  # which says itself that it is well
    return UNIT.format(
        name=name,
        private=PRIVATE,
        type=f"Type=notify\nNotifyAccess=main\nWatchdogSec={WATCHDOG}" if single else "Type=exec",
        user=getpass.getuser(),
        home=_escaped(str(Path.cwd())),
        environment="".join(f"Environment={_word(f'{key}={value}')}\n" for key, value in _environment().items()),
        command=" ".join([_escaped(sys.executable), *map(_argument, command(arguments)[1:])]),
        writes=f"{_word(str(_existing(workdir.parent)))} {_word(f'-{cache}')}",
        own_tmp="no" if any(path.is_relative_to(tmp) for path in (Path.cwd(), workdir) for tmp in TMP) else "yes",
        confined=UNCONFINED if programs else CONFINED,
        mend=MEND,
        done=DONE,
        interrupted=INTERRUPTED,
    )


def _existing(folder: Path) -> Path:
    """The folder in which a new one is made; a run that is over is moved aside there."""
    return folder if folder.exists() else _existing(folder.parent)


def _environment() -> dict[str, str]:
    """What of it says how to compute; no secret."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(KEPT) and name != "HF_TOKEN"}


def _escaped(word: str) -> str:
    """As systemd takes it back: its own specifiers begin with %."""
    return word.replace("%", "%%")


def _word(word: str) -> str:
    if re.fullmatch(r"[\w@+=:,./-]+", word, re.ASCII):
        return word
    return '"' + _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _argument(word: str) -> str:
    """Of a command, in which $ begins a variable, too."""
    return _word(word).replace("$", "$$")


def plist(arguments: Arguments) -> str:
    """For launchd, as an agent of the present user."""
    label = f"rlswarm_jax.{arguments.config.name}"
    made = {
        "Label": label,
        "ProgramArguments": ["/bin/sh", "-c", SHELL, label, *command(arguments)],
        "WorkingDirectory": str(Path.cwd()),
        "EnvironmentVariables": _environment() | {"PATH": os.environ.get("PATH", os.defpath)},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        "ExitTimeOut": 300,
        "ProcessType": "Background",
        "Umask": 0o077,
        "StandardOutPath": "/dev/null",  # its log.txt has it all, and is bounded
        "StandardErrorPath": str(Path.home() / "Library" / "Logs" / f"{label}.log"),
    }
    return plistlib.dumps(made).decode()


assert set(ENDS).isdisjoint((BROKEN, MAY_PASS))
