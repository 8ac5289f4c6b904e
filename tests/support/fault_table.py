"""The table of faults: every way to fail that is provoked, what the tool does then, and the test that shows it.

`tests/integration/test_faults.py` tries each row with the real command and real sockets; docs/faults.md is made of it.
"""

from tests.support.fault_row import Row
from tests.support.faults_of_answers import CREDENTIALS, ERRORS, PAUSES
from tests.support.faults_of_bodies import BREAKS, CONTENT, SIZES
from tests.support.faults_of_bundle import BUNDLE
from tests.support.faults_of_sessions import LOCATIONS, MOUNTS, SESSIONS

PUSH: tuple[Row, ...] = (*(*CREDENTIALS, *MOUNTS, *SESSIONS, *LOCATIONS, *SIZES, *PAUSES, *ERRORS, *BREAKS, *CONTENT),)
TABLE: tuple[Row, ...] = (*PUSH, *BUNDLE)

_HEAD = """# Faults

Generated from `tests/support/fault_table.py` by `make docs`. `tests/integration/test_faults.py` provokes each of these
with a registry that fails on purpose, over real sockets, with the real command. After every one:

- no tag points to incomplete content, and none was tried to be put before its content was there;
- the exit code is the one below, the report names the error, and there is no traceback;
- the bundle that is pushed is untouched, to the byte and the time; the bundle that is made has an index and a lock that
  name only what is whole;
- exit code 0 means that everything is there; otherwise the same command completes it, run again without the fault.

Where one image fails (exit code 10), the others arrive.

What is said of zot, GHCR, ECR, Aliyun and distribution 3 is imitated, after their documentation and source: none of
them was at hand. Debian's docker-registry (2.8) is real in `tests/integration/test_chunked.py`, among others.
"""


def markdown() -> str:
    """Return docs/faults.md."""
    parts = [_HEAD]
    for title, rows in (("push", PUSH), ("bundle", BUNDLE)):
        parts.append(f"## {title}: {len(rows)} faults\n")
        parts.append("| fault | what the tool does | exit code | test |")
        parts.append("| --- | --- | --- | --- |")
        for row in rows:
            code = f"{row.code}, `{row.error}`" if row.error else str(row.code)
            parts.append(f"| {row.fault} | {row.does} | {code} | `test_fault[{row.id}]` |")
        parts.append("")
    return "\n".join(parts)
