"""A log of one of the paper's domains, its figures of Table 2, and its `.inter.gz` file.

Letters: E records.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.errors import UserError
from pdrec_jax.prepare.origins import Domain

HEAD = 10  # bytes of a gzip file that say how it was packed, the last one under which system
_NO_SYSTEM = 0xFF


@dataclasses.dataclass(frozen=True, eq=False)
class DomainLog:
    """Records of one domain, sorted by user and then in log order.

    Attributes:
        users: `[E]` int64 from 1.
        items: `[E]` int64 from 1.
        times: `[E]` Unix seconds, float64; None where they are not known.
        order: `[E]` float64, of which only the order has meaning: where the records stand among the
            other domain's; None where `times` are all that is needed.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.float64] | None
    order: NDArray[np.float64] | None = None

    @property
    def figures(self) -> tuple[int, int, int]:
        """Users, items and records, as in Table 2."""
        return np.unique(self.users).size, np.unique(self.items).size, self.items.size

    @property
    def density(self) -> float:
        """Records by users times items."""
        users, items, records = self.figures
        return records / max(users * items, 1)

    def text(self) -> bytes:
        """The `.inter` file: RecBole's header, tab separated, one record a line."""
        found = {"timestamp": self.times, "order": self.order}
        clocks = {name: values.tolist() for name, values in found.items() if values is not None}
        head = ["user_id:token", "item_id:token", *(f"{name}:float" for name in clocks)]
        lines = ["\t".join(head)]
        ids = zip(self.users.tolist(), self.items.tolist(), strict=True)
        for (user, item), *times in zip(ids, *clocks.values(), strict=True):
            stamps = (str(int(time)) if time.is_integer() else repr(time) for time in times)
            lines.append("\t".join([str(user), str(item), *stamps]))
        return ("\n".join(lines) + "\n").encode()

    def packed(self) -> tuple[bytes, str]:
        """The `.inter.gz` file, and the SHA-256 of its unpacked content."""
        text = self.text()
        # Without a time of packing and a system's name, which Python writes up to 3.12, the same
        # content is the same file wherever zlib is the same one.
        packed = bytearray(gzip.compress(text, mtime=0))
        packed[HEAD - 1] = _NO_SYSTEM
        return bytes(packed), hashlib.sha256(text).hexdigest()


def require_figures(log: DomainLog, domain: Domain) -> None:
    """Checks a log against Table 2 and the checksum of its content.

    Args:
        log: made from the authors' files.
        domain: what is expected.

    Raises:
        UserError: it differs.
    """
    wanted = (domain.users, domain.items, domain.records)
    if log.figures != wanted:
        raise UserError(
            f"{domain.name}: {figures_text(*wanted)} are expected (Table 2), "
            f"found {figures_text(*log.figures)}"
        )
    known = log if log.order is None else dataclasses.replace(log, times=None)
    found = hashlib.sha256(known.text()).hexdigest()
    if found != domain.sha256:
        raise UserError(
            f"{domain.name}: content of SHA-256 {domain.sha256} is expected, found {found}"
        )


def figures_text(users: int, items: int, records: int) -> str:
    """The figures of Table 2 in words, density included."""
    density = 100 * records / max(users * items, 1)
    return f"{users:,} users, {items:,} items, {records:,} records, density {density:.4f} %"
