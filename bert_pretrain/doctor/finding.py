"""What a check of ``doctor`` returns."""

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """The result of one check on one rank."""

    level: str
    found: str
    advice: str = ""
