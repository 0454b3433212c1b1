"""What the platform says about itself: written with the change it speaks of, told as events of source `tieline`.

A service builds a notice (`notice.py`), writes it in the transaction of what it speaks of (`outbox.py`), and its
relay (`relay.py`) puts it on the bus (`stream.py`), from where the mapper stores it like any other event. So a
notice is never lost and never speaks of what did not happen.
"""

from foundation.notices.notice import notice
from foundation.notices.relay import NoticeRelay

__all__ = ["NoticeRelay", "notice"]
