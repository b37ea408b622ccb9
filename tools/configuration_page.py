"""Write docs/configuration.md from the options of `minihs.base.config`.

python -m tools.configuration_page            rewrite it
python -m tools.configuration_page --check    fail if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from minihs.base.config import ENVIRONMENT_PREFIX, describe_options

PAGE = Path(__file__).resolve().parents[1] / "docs/configuration.md"
INTRODUCTION = """\
# Configuration

Made by `make docs` from `minihs/base/config.py`; do not edit.

Every option has a name in the file and one in the environment; the environment wins. The file is
`--config FILE`, else what `MINIHS_CONFIG` names (nothing: no file), else `minihs.toml` of the
directory that a command is run in. It is TOML: `server_name = "example.org"`. All options have a
default, so a server for a look around needs none. `minihs check-config` says what is wrong with a
configuration without starting anything.

| option | environment | values | default | |
| --- | --- | --- | --- | --- |
"""


def shown(value: object) -> str:
    """Return a default as the file would write it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def page() -> str:
    """Return the whole page."""
    return INTRODUCTION + "".join(
        f"| `{name}` | `{ENVIRONMENT_PREFIX}{name.upper()}` | {kind} | {shown(default)} "
        f"| {description} |\n"
        for name, kind, default, description in describe_options()
    )


def main() -> int:
    """Write or check the page; return the process's status."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        print("docs/configuration.md is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
