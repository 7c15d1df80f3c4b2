"""Names for deployments: such as are allowed everywhere, and such as nobody may take.

Each has `UNIQUE` in it, for which a test puts something that no other model's name has, since a server may be somebody's.
"""

from __future__ import annotations

import string

from hypothesis import strategies as st

__all__ = ["UNIQUE", "hostile", "valid"]

UNIQUE = "unique08"
"""As long as what takes its place."""
LONGEST = 200
FIRST, REST = string.ascii_letters + string.digits + "_", string.ascii_letters + string.digits + "_.-"
#: What no name may have anywhere, and what none may begin with.
NOWHERE = st.one_of(
    st.sampled_from(["/", "/../", "\\", "\0", "\n", "\r\n", "\t", "\x7f"]), st.characters(categories=["Cc"])
)
LEADING = st.sampled_from([".", "..", "../", "/", "./", "~/../"])


def valid() -> st.SearchStrategy[str]:
    """Draw a name of ASCII letters, digits, ``_``, ``.`` and ``-``, with a letter in it, short or as long as 200."""
    rest = st.one_of(st.text(REST, max_size=12), st.text(REST, min_size=LONGEST, max_size=LONGEST))
    return st.builds(lambda first, end: f"{first}a{UNIQUE}{end}"[:LONGEST], st.sampled_from(FIRST), rest)


def hostile() -> st.SearchStrategy[str]:
    """Draw a name with a separator or a control character, or one that begins with a dot."""
    text = st.text(max_size=8)
    around = st.one_of(
        st.builds(lambda left, wrong, right: f"{left}{wrong}{UNIQUE}{right}", text, NOWHERE, text),
        st.builds(lambda left, right, wrong: f"{left}{UNIQUE}{right}{wrong}", text, text, NOWHERE),
    )
    return st.one_of(around, st.builds(lambda wrong, end: f"{wrong}{UNIQUE}{end}", LEADING, text))
