"""One target under atheris: the corpus is read, never written; what is found goes where libFuzzer's options say."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """`python -m tests.fuzz TARGET [a directory for new inputs] [-max_total_time=SECONDS ...]`"""
    with atheris.instrument_imports(include=["certs", "daemon.config", "daemon.yamlfile", "gateway", "protocol"]):
        from tests.fuzz.targets import TARGETS
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [DIRECTORY] [-max_total_time=SECONDS ...]")
    name, *options = sys.argv[1:]
    where = [option for option in options if not option.startswith("-")]
    if not where:
        sys.exit("name a directory for the inputs that are found: the corpus beside the code is only read")
    rest = [option for option in options if option.startswith("-")]
    atheris.Setup([sys.argv[0], *rest, *where, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
