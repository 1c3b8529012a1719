"""What MLflow accepts: names, lengths of values, flat params."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG = 250, 6000, 8000

_REFUSED = re.compile(
    r"[^\w.\- /]"  # what is no letter of any script, no digit and none of these
    r"|_(?=x)"  # so that every `_x` begins an escape, and no two names give one key
    r"|^/|/$|/(?=/)"  # names are paths, of parts that are not empty
    r"|(?<![^/])\."  # nor begin with a dot, as `..` does
)


def legal_key(name: str) -> str:
    """A name for a metric, param, tag or picture: what MLflow refuses becomes its code point, such as `_x28_` for `(`.

    Different names give different keys; of names too long, the end becomes a hash.
    """
    key = _REFUSED.sub(_escaped, name) or "_x_"
    if len(key) <= LONGEST_KEY:
        return key
    return f"{key[: LONGEST_KEY - 17].rstrip('/.')}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def model_name(name: str) -> str:
    """A name for a logged model, whose rules are stricter: no dots and slashes."""
    return re.sub(r"[./]", _escaped, legal_key(name))


def parent_param(stage: str, key: str) -> str:
    """A stage's flat param in its parent: `train.rank` of train@alps is `train.alps.rank`; the base is everyone's."""
    section, _, rest = key.partition(".")
    if section == "base":
        return key
    return f"{stage.replace('@', '.')}.{rest if rest and section == stage.partition('@')[0] else key}"


def parent_metric(stage: str, key: str) -> str:
    """A stage's single figure in its parent; the report's are those of `dvc metrics diff`, and need no prefix."""
    return key if stage == "report" else f"{stage.replace('@', '.')}/{key}"


def flatten(section: Mapping[str, object]) -> dict[str, str]:
    """Nested params as MLflow wants them: dotted keys, text values, lists as JSON, null for None."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
             for key, value in _leaves(section, "")}  # fmt: skip
    return {legal_key(key): cut(text, LONGEST_PARAM) for key, text in texts.items()}


def cut(text: str, longest: int) -> str:
    """At most `longest` characters; a text that was cut ends with how long it was."""
    note = f" ... [cut: {len(text)} characters in all]"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def _leaves(section: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _escaped(found: re.Match[str]) -> str:
    return f"_x{ord(found[0]):x}_"
