"""Memory that the ranks of a group share, and how they meet around its use.

Neither the memory nor the sockets have a name in a file system, so nothing is left behind however a rank ends, and
the size of /dev/shm does not matter (Linux only).
"""

import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

ROW_BYTES = 1 << 36  # of address space; only what has been written takes memory
KEPT_BYTES = 1 << 26  # of a row's memory; giving back and taking anew what small messages use would cost time


class SharedBuffer:
    """One row of bytes for each of G ranks: a rank writes its own, meets the others, and reads theirs.

    Meeting goes over connections to the first rank (Unix sockets, which block in the kernel): who waits sleeps, who
    is gone is missed at once, and what was written before a meeting is seen after it.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        """Wait for all ranks of the group. store: only to find one another; timeout: of each wait for a rank."""
        self._rank, self._size, self._timeout_s = rank, size, timeout.total_seconds()
        self._peers: dict[int, socket.socket] = {}  # the first rank's: all others; the others': the first
        memory = self._share(store) if rank == 0 else self._join(store)
        try:
            self._map = mmap.mmap(memory, size * ROW_BYTES)
        except OSError as error:
            needed = f"{size} emulated ranks share {size * ROW_BYTES >> 30} GiB of address space"
            raise OSError(f"{needed}, which this machine does not give them ({error}); see ulimit -v") from error
        self._memory = torch.frombuffer(self._map, dtype=torch.uint8).view(size, ROW_BYTES)
        self._written = 0
        os.close(memory)

    def write(self, tensor: torch.Tensor) -> None:
        """Fill the start of this rank's row. Raises ValueError if the tensor is too large."""
        if tensor.nbytes > ROW_BYTES:
            raise ValueError(f"a rank sends {tensor.nbytes} bytes at once; at most {ROW_BYTES} can be shared")
        self.read(tensor)[self._rank].copy_(tensor)
        self._written = tensor.nbytes

    def read(self, like: torch.Tensor, start: int = 0) -> torch.Tensor:
        """A view of all rows, [G, *like.shape], on the host: as many elements as `like` has, from the start-th on."""
        return self._memory.view(like.dtype)[:, start : start + like.numel()].view(self._size, *like.shape)

    def forget(self) -> None:
        """Give back the memory of a large message, once all have read it; where a sandbox cannot, it is kept."""
        if self._written > KEPT_BYTES:
            with suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, self._rank * ROW_BYTES, self._written)
        self._written = 0

    def meet(self, note: Sequence[float] = (0.0,)) -> np.ndarray:
        """Sleep until all ranks are here; returns their notes, which are of one length: float64 [G, len(note)].

        Raises TimeoutError if one does not come, ConnectionError if one has died.
        """
        mine, peer = np.array(note, dtype=np.float64).tobytes(), 0
        try:
            if self._rank == 0:
                everybodys = mine
                for peer in range(1, self._size):
                    everybodys += self._receive(peer, len(mine))
                for peer in range(1, self._size):
                    self._peers[peer].send(everybodys)
            else:
                self._peers[0].send(mine)
                everybodys = self._receive(0, len(mine) * self._size)
        except TimeoutError:
            # Only the first rank hears from each other one, so only it knows who is late.
            late = f"rank {peer} of the group has not" if self._rank == 0 else "not all ranks of the group have"
            raise TimeoutError(f"{late} come to a collective within {self._timeout_s:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionError(f"Connection closed by peer: rank {peer} of the group is gone") from None
        return np.frombuffer(everybodys).reshape(self._size, -1)

    def _receive(self, peer: int, num_bytes: int) -> bytes:
        message = self._peers[peer].recv(num_bytes)
        if not message:
            raise ConnectionResetError
        return message

    def _share(self, store: dist.Store) -> int:
        """Make the memory and hand it to all who connect; returns its file descriptor."""
        memory = os.memfd_create("board")
        os.truncate(memory, self._size * ROW_BYTES)
        with self._socket() as server:
            server.bind("")  # the kernel chooses an abstract address
            server.listen(self._size)
            store.set("board", server.getsockname())
            while len(self._peers) < self._size - 1:
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    found = f"{len(self._peers) + 1} of {self._size} ranks have joined their group"
                    raise TimeoutError(f"only {found} within {self._timeout_s:g} s") from None
                peer.settimeout(self._timeout_s)
                self._peers[int(peer.recv(16))] = peer
                socket.send_fds(peer, [b"board"], [memory])
        return memory

    def _join(self, store: dist.Store) -> int:
        first = self._peers[0] = self._socket()
        first.connect(store.get("board"))
        first.send(str(self._rank).encode())
        _, (memory,), _, _ = socket.recv_fds(first, 16, 1)
        return memory

    def _socket(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps messages whole
        connection.settimeout(self._timeout_s)
        return connection
