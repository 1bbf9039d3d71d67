"""YAML documents from outside, by a loader that builds nothing but plain values and takes each field once."""

from __future__ import annotations

from typing import Any

import yaml

_MOST = 1 << 16  # characters; PyYAML reads about 50 kB per second


class _Loader(yaml.SafeLoader):
    """The safe loader of PyYAML without aliases, a few of which can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="it has an alias (*NAME)", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, Any] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, value) is not value:
                raise yaml.MarkedYAMLError(
                    problem=f"it has the field {key.value} twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str, *, error: type[ValueError]) -> Any:
    """Parses a YAML document.

    Args:
      text: The document.
      name: Its name in messages, such as its path.
      error: Exception to raise.

    Raises:
      error: If the text is not YAML, has aliases or a field that is given twice, or has over 65,536 characters.

    Example:
      >>> parse_yaml("layers: [17]", "rome.yaml", error=ValueError)
      {'layers': [17]}
      >>> parse_yaml("layers: [17]\\nlayers: [5]", "rome.yaml", error=ValueError)
      Traceback (most recent call last):
      ValueError: rome.yaml is not YAML that is read (it has the field layers twice, line 2): correct it.
    """
    if len(text) > _MOST:
        raise error(f"{name} has {len(text):,} characters of YAML: give it as JSON.")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise error(f"{name} is nested too deeply: give fewer levels.") from None
    except (yaml.YAMLError, ValueError) as problem:
        mark = getattr(problem, "problem_mark", None)
        why = getattr(problem, "problem", None) or problem
        reason = " ".join(str(why).split())[:200] + (f", line {mark.line + 1}" if mark else "")
        raise error(f"{name} is not YAML that is read ({reason}): correct it.") from None
