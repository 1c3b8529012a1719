"""What MLflow accepts: names, value lengths, flat params."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping

LONGEST_KEY = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 8000


def legal_key(name: str) -> str:
    """A name for a metric, param, tag or picture: `@` becomes `.`, whatever else MLflow rejects becomes `_`."""
    key = re.sub(r"[^\w.\- /]", "_", name.replace("@", "."), flags=re.ASCII)
    key = posixpath.normpath(key.strip("/ ") or "_")
    key = re.sub(r"^(\.\.?(/|$))+", "_", key) or "_"
    if len(key) <= LONGEST_KEY:
        return key
    return f"{key[: LONGEST_KEY - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def parent_param(stage: str, key: str) -> str:
    """A stage's flat param in its parent: `train.rank` of train.alps is `train.alps.rank`; the base is everyone's."""
    section, _, rest = key.partition(".")
    if section == "base":
        return key
    return legal_key(f"{stage}.{rest if rest and section == stage.partition('.')[0] else key}")


def parent_metric(stage: str, name: str) -> str:
    """A stage's single figure in its parent; the report's are those of `dvc metrics diff`, and need no prefix."""
    return legal_key(name if stage == "report" else f"{stage}/{name}")


def model_name(name: str) -> str:
    """A name for a logged model, whose rules are stricter."""
    return re.sub(r"[^\w-]", "-", name, flags=re.ASCII).strip("-") or "adapter"


def flatten(section: Mapping[str, object]) -> dict[str, str]:
    """Nested params as MLflow wants them: dotted keys, text values, lists as JSON, null for None."""
    return {legal_key(key): cut(_text(value), LONGEST_PARAM) for key, value in _leaves(section, "")}


def cut(text: str, longest: int) -> str:
    """At most `longest` characters; a text that was cut ends with how long it was."""
    if len(text) <= longest:
        return text
    note = f" ... [cut: {len(text)} characters in all]"
    return text[: longest - len(note)] + note


def _leaves(section: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
