"""Seeds for every draw, from what the draw is for and from nothing else."""

import hashlib


def keyed_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on all the parts and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
