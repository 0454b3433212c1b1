"""What keeps a program in: the steps of the launcher that take the rest of the machine away from it.

It is loaded by `launch.py`, between fork and exec, and imports as little. The order matters:

1. namespaces of its own (users, mounts, network, IPC). Root keeps itself on the map beside the user that the
   program will be, until the mounts stand; an ordinary user stays who it is, alone on the map;
2. user namespaces forbidden from here on: none may be made inside, with new powers over old mounts;
3. the loopback device, and the one listener on it, which goes out through the gate: there is no other way out;
4. what must stay visible is cloned before anything is covered; then each place is covered or uncovered, parents
   before what lies in them; then all is read-only but what may be written. Our own modules may be gone now;
5. no capabilities, no other groups, the other user, no new privileges, no sockets of families that know no
   networks, no signals to strangers.

Any step that fails refuses the program. Half a confinement is not called one.
"""

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PROXY_PORT = 3128
"""In a network of its own any port is free."""
OLDEST = "Linux 5.12"

_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x40000000 | 0x08000000  # user, mount, network, IPC
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_AT_FDCWD, _AT_RECURSIVE, _CLONE_TREE, _EMPTY_PATH = -100, 0x8000, 1 | os.O_CLOEXEC, 4
_MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 0x4000 | 1 << 18, 2, 4
_RDONLY, _NOSUID = 1, 2
_CAPBSET_DROP, _NO_NEW_PRIVS = 24, 38
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_SET_SECCOMP, _FILTER = 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_IO_URING_SETUP = 425  # the same on every architecture
_CALLS = {"x86_64": (0xC000003E, 41, 302), "aarch64": (0xC00000B7, 198, 261)}
"""By machine: its name in filters, and the numbers of `socket` and `prlimit64`."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SPACE = "size=64m,nr_inodes=16k"


class Unconfined(Exception):  # noqa: N818 - not an error of ours: a sentence on its way out
    """The step that failed, and why."""


class Places:
    """What of the file system is seen, and what may be written. Paths are absolute and real."""

    def __init__(self) -> None:
        self.hide: list[str] = []
        self.private: list[str] = []
        self.keep: list[str] = []
        self.write: list[str] = []


class Kernel:
    """Calls that Python has no words for; each says what it was for when it fails."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def unshare(self) -> None:
        self._demand("namespaces of its own are not to be had", self._libc.unshare(_NEW_NAMESPACES))

    def keep_mounts_to_ourselves(self) -> None:
        self._demand("mounts cannot be made private", self._mount(b"none", "/", b"", _MS_PRIVATE, b""))

    def cover(self, path: str, mode: str) -> None:
        options = f"mode={mode},{_SPACE}".encode()
        done = self._mount(b"tmpfs", path, b"tmpfs", _MS_NOSUID | _MS_NODEV, options)
        self._demand(f"{path} cannot be covered", done)

    def clone(self, path: str) -> int:
        flags = _CLONE_TREE | _AT_RECURSIVE
        found = self._libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
        if found < 0:
            self._demand(f"{path} cannot be kept", found)
        return int(found)

    def attach(self, tree: int, path: str) -> None:
        name = os.fsencode(path)
        done = self._libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, name, _EMPTY_PATH)
        os.close(tree)
        self._demand(f"{path} cannot be uncovered", done)

    def read_only(self, path: str) -> None:
        self._set(path, _RDONLY | _NOSUID, 0, _AT_RECURSIVE)

    def writable(self, path: str) -> None:
        """This mount alone: what is kept may lie in it, and stays as it is."""
        self._set(path, _NOSUID, _RDONLY, 0)

    def drop_powers(self) -> None:
        """From the set of all that could ever be had; what is held goes with the other user, or the exec."""
        for capability in range(64):
            if self._libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
                break
        self._demand("capabilities cannot be dropped", -1 if capability < 38 else 0)

    def no_new_privileges(self) -> None:
        self._demand("new privileges cannot be ruled out", self._libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))

    def no_sockets_past_the_network(self) -> None:
        """Some families (AF_VSOCK leads to whatever this machine runs on) know no network namespaces."""
        numbers = _CALLS.get(os.uname().machine)
        if numbers is None:
            return
        arch, new_socket, limit = numbers
        steps = (
            (_LOAD, 0, 0, 4),  # the architecture: another one has other numbers
            (_IF_EQUAL, 1, 0, arch),
            (_RETURN, 0, 0, _REFUSE | errno.EPERM),
            (_LOAD, 0, 0, 0),  # the call
            (_IF_AT_LEAST, 0, 1, 0x40000000),  # by the numbers of x32
            (_RETURN, 0, 0, _REFUSE | errno.EPERM),
            (_IF_EQUAL, 0, 1, _IO_URING_SETUP),  # makes sockets that nobody asks about
            (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),
            (
                _IF_EQUAL,
                0,
                3,
                limit,
            ),  # of whom? In its own user namespace a user is no stranger to himself outside
            (_LOAD, 0, 0, 16),
            (_IF_EQUAL, 8, 0, 0),
            (_RETURN, 0, 0, _REFUSE | errno.EPERM),
            (_IF_EQUAL, 0, 6, new_socket),
            (_LOAD, 0, 0, 16),  # its family
            (_IF_EQUAL, 4, 0, 1),  # AF_UNIX
            (_IF_EQUAL, 3, 0, 2),  # AF_INET
            (_IF_EQUAL, 2, 0, 10),  # AF_INET6
            (_IF_EQUAL, 1, 0, 16),  # AF_NETLINK
            (_RETURN, 0, 0, _REFUSE | errno.EAFNOSUPPORT),
            (_RETURN, 0, 0, _ALLOW),
        )
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
        done = self._libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0)
        self._demand("other families of sockets cannot be ruled out", done)

    def no_signals_to_strangers(self) -> bool:
        """Whether the kernel can tell strangers apart (6.12): nothing else protects processes of the same user."""
        rules = (ctypes.c_uint64 * 3)(0, 0, _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS)
        ruleset = self._libc.syscall(_LANDLOCK_CREATE, rules, ctypes.c_size_t(ctypes.sizeof(rules)), 0)
        if ruleset < 0:
            return False
        done: int = self._libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
        os.close(ruleset)
        return done == 0

    def _mount(self, source: bytes, path: str, kind: bytes, flags: int, options: bytes) -> int:
        done: int = self._libc.mount(source, os.fsencode(path), kind, ctypes.c_ulong(flags), options)
        return done

    def _set(self, path: str, wanted: int, unwanted: int, depth: int) -> None:
        attributes = (ctypes.c_uint64 * 4)(wanted, unwanted, 0, 0)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        done = self._libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), depth, attributes, size)
        self._demand(f"{path} cannot be made read-only or writable (it takes {OLDEST})", done)

    def _demand(self, what: str, done: int) -> None:
        if done:
            raise Unconfined(f"{what}: {os.strerror(ctypes.get_errno())}")


def confine(places: Places, user: int, gate: int) -> None:
    """Take everything away that is not named. `user` 0: stay who we are."""
    try:
        kernel = Kernel()
        here = os.getcwd()  # noqa: PTH109 - pathlib is slow to import
        for path in places.write if user else ():
            os.chown(path, user, user)
        if user:
            _uncover_for_strangers(places)
        _enter(kernel, user)
        _write("/proc/sys/user/max_user_namespaces", "0")
        kernel.keep_mounts_to_ourselves()
        listener = _listen()  # and imports what it takes, while it can be seen
        _cover(kernel, places)
        os.chdir(here)  # what we stood in may be covered now, and would be a way behind the cover
        kernel.drop_powers()
        if user:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        kernel.no_new_privileges()
        kernel.no_sockets_past_the_network()
        _hand_out(gate, listener, alone=kernel.no_signals_to_strangers())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Unconfined(f"{where}{error.strerror}") from None


def _enter(kernel: Kernel, user: int) -> None:
    outside = os.geteuid(), os.getegid()
    if not user:
        kernel.unshare()
        _map(os.getpid(), (outside[0],), (outside[1],), deny_groups=True)
        return
    # More than oneself is put on a map by somebody outside alone, so one of us stays there until it is done.
    inside, ready = os.pipe()
    mapper = os.fork()
    if not mapper:
        try:
            os.close(ready)
            unshared = os.read(inside, 1)
            if unshared:
                _map(os.getppid(), (outside[0], user), (outside[1], user), deny_groups=False)
            os._exit(0 if unshared else 1)
        except OSError as error:
            os._exit(error.errno or 1)
    try:
        kernel.unshare()
        os.write(ready, b"!")
    finally:
        os.close(ready)
        os.close(inside)
        failed = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
    if failed:
        raise Unconfined(f"no other user can be put on the map: {os.strerror(failed)}")


def _map(pid: int, users: "Iterable[int]", groups: "Iterable[int]", *, deny_groups: bool) -> None:
    _write(f"/proc/{pid}/uid_map", "".join(f"{user} {user} 1\n" for user in users))
    if deny_groups:  # the kernel demands it before a group may be mapped without privileges
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/gid_map", "".join(f"{group} {group} 1\n" for group in groups))


def _uncover_for_strangers(places: Places) -> None:
    """Where only root may pass, the other user finds a way that leads to what is kept and nowhere else."""
    for path in (*places.keep, *places.write):
        parts = path.split("/")
        for depth in range(2, len(parts)):
            above = "/".join(parts[:depth])
            if not os.stat(above).st_mode & 0o001:  # noqa: PTH116 - pathlib is slow to import
                if above not in (*places.hide, *places.private, *places.keep, *places.write):
                    places.hide.append(above)
                break


def _cover(kernel: Kernel, places: Places) -> None:
    devices = [name for name in _DEVICES if os.path.exists(f"/dev/{name}")]  # noqa: PTH110
    kept = [*places.keep, *places.write, *(f"/dev/{name}" for name in devices)]
    null = [path for path in places.hide if not os.path.isdir(path)]  # noqa: PTH112
    trees = {path: kernel.clone(path) for path in kept}
    nothing = {path: kernel.clone("/dev/null") for path in null}
    covered = dict.fromkeys((*places.hide, "/dev"), "755") | dict.fromkeys(places.private, "1777")
    for path in sorted({*covered, *trees, "/dev/shm"}):  # noqa: S108
        if path in trees:
            _make_place(path, is_directory=os.path.isdir(f"/proc/self/fd/{trees[path]}"))  # noqa: PTH112
            kernel.attach(trees[path], path)
        elif path in nothing:
            if os.path.exists(path):  # noqa: PTH110 - else something around it is covered already
                kernel.attach(nothing[path], path)
        elif path == "/dev/shm" or os.path.isdir(path):  # noqa: PTH112, S108
            _make_place(path, is_directory=True)
            kernel.cover(path, covered.get(path, "1777"))
    for name in ("fd", "stdin", "stdout", "stderr"):
        number = "" if name == "fd" else f"/{('stdin', 'stdout', 'stderr').index(name)}"
        os.symlink(f"/proc/self/fd{number}", f"/dev/{name}")  # noqa: PTH211
    kernel.read_only("/")
    for path in (*places.private, "/dev/shm", *places.write):  # noqa: S108
        if os.path.isdir(path):  # noqa: PTH112
            kernel.writable(path)


def _make_place(path: str, *, is_directory: bool) -> None:
    """Something to mount upon, where a cover took it away."""
    if os.path.exists(path):  # noqa: PTH110
        return
    os.makedirs(path if is_directory else path.rpartition("/")[0], 0o755, exist_ok=True)  # noqa: PTH103
    if not is_directory:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _listen() -> object:
    import _socket  # noqa: PLC0415 - the module around it costs more than all of this file
    import fcntl  # noqa: PLC0415

    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0)
    asked = bytearray(b"lo".ljust(40, b"\0"))
    fcntl.ioctl(listener.fileno(), _SIOCGIFFLAGS, asked)
    asked[16] |= _IFF_UP
    fcntl.ioctl(listener.fileno(), _SIOCSIFFLAGS, bytes(asked))
    listener.bind(("127.0.0.1", PROXY_PORT))
    listener.listen(128)
    return listener


def _hand_out(gate: int, listener: object, *, alone: bool) -> None:
    """The listener leaves by the gate; nothing of it stays here."""
    import _socket  # noqa: PLC0415

    number: int = listener.fileno()  # type: ignore[attr-defined]  # its type has no name that may be imported
    door = _socket.socket(fileno=gate)
    said = b"alone" if alone else b"beside others"
    door.sendmsg([said], [(_SOL_SOCKET, _SCM_RIGHTS, number.to_bytes(4, "little"))])
    door.close()
    listener.close()  # type: ignore[attr-defined]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)
