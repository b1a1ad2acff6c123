"""What pfimg is measured beside: one module a peer that is no ordinary dependency.

`python -m benches.peers` gets them. A peer that is not there raises `Missing`, and the tables name it.
"""

from .origin import Missing

__all__ = ["Missing"]
