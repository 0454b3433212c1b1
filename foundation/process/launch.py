"""The last steps of every child before it becomes its program.

    python -I -S launch.py [options] -- PROGRAM [ARGUMENT ...]

    --parent PID           leave unless PID is still the parent
    --death-signal N       the signal this child gets when its parent dies
    --map-user UID         root only: become UID inside a user namespace of its own
    --gate FD              confine the program (see confining.py); its proxy's listener leaves here
    --user UID             root only, confined: who the program will be
    --hide, --private, --keep, --write PATH
                           confined: what is covered, covered and writable, seen all the same, writable;
                           each repeatable
    --cgroup PATH          the control group that the program and all it starts belong to
    --limit NAME=VALUE     an rlimit, soft and hard (core, data, nofile, nproc, ...); repeatable
    --nice N               lower the priority by N
    --status-fd FD         where a failure is told; closed by the exec, which is how success is told

It runs between fork and exec of every process we start, so it imports next to nothing (`-I -S`, no enum,
no argparse) and the order of its steps matters:

1. the control group, and limits while we may still raise them, but the count of processes, which another
   user's are no part of;
2. namespaces: a change of credentials clears the death signal;
3. the death signal, and only then the look at the parent: a parent that died before the first of the two
   is seen by the second, one that dies later is told by the first. No gap is left.
"""

import os
import sys

FAILED = 125  # as `env`, `timeout` and container engines say "not the program's fault"

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PER_USER = "nproc"


class Refusal(Exception):  # noqa: N818 - not an error of ours: a sentence on its way out
    """Why the program will not be executed."""


class Options:
    """What the command line asks for."""

    def __init__(self) -> None:
        self.parent = 0
        self.death_signal = 0
        self.map_user = 0
        self.nice = 0
        self.status_fd = 2
        self.gate = 0
        self.user = 0
        self.places: dict[str, list[str]] = {"hide": [], "private": [], "keep": [], "write": []}
        self.limits: list[tuple[str, int]] = []
        self.cgroup = ""
        self.program: list[str] = []


def parse(arguments: list[str]) -> Options:
    options = Options()
    numbers = {"--parent", "--death-signal", "--map-user", "--nice", "--status-fd", "--gate", "--user"}
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            options.program = list(rest)
            break
        value = next(rest, "")
        try:
            if argument in numbers:
                setattr(options, argument[2:].replace("-", "_"), int(value))
            elif argument == "--cgroup":
                options.cgroup = value
            elif argument == "--limit":
                name, _, bound = value.partition("=")
                options.limits.append((name, int(bound)))
            elif argument[2:] in options.places:
                options.places[argument[2:]].append(value)
            else:
                raise Refusal(f"the launcher does not know the option {argument}")
        except ValueError:
            raise Refusal(f"the launcher's option {argument} needs a number") from None
    if not options.program:
        raise Refusal("the launcher was given no program")
    return options


def main(arguments: list[str]) -> int:
    status_fd = 2
    try:
        options = parse(arguments)
        status_fd = options.status_fd
        if status_fd > 2:
            os.set_inheritable(status_fd, False)  # noqa: FBT003 - takes no keywords
        prepare(options)
        execute(options.program)
    except Refusal as refusal:
        os.write(status_fd, f"{refusal}\n".encode(errors="backslashreplace"))
    return FAILED


def prepare(options: Options) -> None:
    import ctypes  # noqa: PLC0415 - 3 ms that a malformed command line need not wait for

    libc = ctypes.CDLL(None, use_errno=True)
    if options.cgroup:
        join(options.cgroup)
    if options.nice:
        os.nice(options.nice)
    restrict([limit for limit in options.limits if limit[0] != _PER_USER])
    if options.map_user:
        outside = os.geteuid(), os.getegid()  # inside, before the map is written, nobody has a name
        if libc.unshare(_CLONE_NEWUSER):
            reason = os.strerror(ctypes.get_errno())
            raise Refusal(
                f"the program refuses to run as root and no user namespace is to be had ({reason}): "
                "run as an ordinary user"
            )
        become(options.map_user, *outside)
    if options.gate:
        enclose(options)
    restrict([limit for limit in options.limits if limit[0] == _PER_USER])
    if options.death_signal:
        libc.prctl(_PR_SET_PDEATHSIG, options.death_signal, 0, 0, 0)
    if options.parent and os.getppid() != options.parent:
        raise Refusal(f"the parent {options.parent} is gone")


def join(cgroup: str) -> None:
    try:
        with open(f"{cgroup}/cgroup.procs", "w") as file:  # noqa: PTH123 - pathlib is slow to import
            file.write("0")
    except OSError as error:
        raise Refusal(f"cannot join the control group {cgroup}: {error.strerror}") from None


def enclose(options: Options) -> None:
    sys.path.append(__file__.rpartition("/")[0])  # isolated, so nothing of ours is on it
    # Whatever the steps to come import: where modules are may be covered when they do.
    import resource  # noqa: F401, PLC0415
    import warnings  # noqa: F401, PLC0415

    import confining  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415

    places = confining.Places()
    for name, paths in options.places.items():
        setattr(places, name, paths)
    try:
        confining.confine(places, options.user, options.gate)
    except confining.Unconfined as why:
        raise Refusal(f"it cannot be confined: {why}") from None


def become(user: int, outer_uid: int, outer_gid: int) -> None:
    """Map the one identity we have to `user`; files keep belonging to who we are outside."""
    maps = (
        ("uid_map", f"{user} {outer_uid} 1"),
        ("setgroups", "deny"),  # the kernel demands it before a group may be mapped
        ("gid_map", f"{user} {outer_gid} 1"),
    )
    try:
        for name, line in maps:
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib is slow to import
                file.write(line)
    except OSError as error:
        raise Refusal(f"cannot become uid {user} in a user namespace: {error.strerror}") from None


def restrict(limits: list[tuple[str, int]]) -> None:
    if not limits:
        return
    import resource  # noqa: PLC0415 - most children have limits, failures need none

    for name, bound in limits:
        kind = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if kind is None:
            raise Refusal(f"there is no limit called {name}")
        try:
            resource.setrlimit(kind, (bound, bound))
        except (OSError, ValueError) as error:
            raise Refusal(f"cannot set the limit {name}={bound}: {error}") from None


def execute(program: list[str]) -> None:
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is the point
    except OSError as error:
        raise Refusal(f"cannot execute {program[0]}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
