"""HTTP: requests and their answers, TLS, proxies, redirects, and what failures mean.

Invariants:

- Nothing is taken from the environment behind our back: no ~/.netrc, no cookies, and proxies only as they are given.
- Redirects are followed here, not by requests: a hop to another origin loses the Authorization header, a hop from
  https to anything else is refused, and their number is bounded.
- Bodies are never decoded: a blob's bytes are hashed as they were sent.
- Foreign exceptions end here, both those of requests and those that urllib3 raises while a body is read.
"""

from bundler.net.http import Http, Response, Timeouts, number
from bundler.net.proxy import Proxies
from bundler.net.tls import Tls

__all__ = ["Http", "Proxies", "Response", "Timeouts", "Tls", "number"]
