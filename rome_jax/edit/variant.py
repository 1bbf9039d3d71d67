"""Names of methods with modifiers, such as AlphaEdit+RECT, as flags and result folders have them."""

from __future__ import annotations

import dataclasses
from typing import Self

from rome_jax.edit.config import Hyperparameters, MethodName
from rome_jax.edit.spread_config import Modifier, SpreadConfig
from rome_jax.files.checked import shown


class MethodVariant(str):
    """The name of a method, followed by + and the name of each modifier.

    Without modifiers it equals the `MethodName`.

    Example:
      >>> MethodVariant.parse("alphaedit+rect")
      'AlphaEdit+RECT'
      >>> MethodVariant.parse("ROME") == MethodName.ROME
      True
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a name in upper or lower case.

        Raises:
          ValueError: If a part is unknown or given twice.
        """
        method, *modifiers = (part.strip().casefold() for part in text.split("+"))
        methods = {name.casefold(): name for name in MethodName}
        known = {name.casefold(): name for name in Modifier}
        if method not in methods or not set(modifiers) <= set(known):
            raise ValueError(
                f"{shown(text)}: give one of {', '.join(MethodName)}, and after a + any of {', '.join(Modifier)}."
            )
        if len(set(modifiers)) < len(modifiers):
            raise ValueError(f"{shown(text)}: give each modifier once.")
        return cls("+".join([methods[method], *(known[name] for name in modifiers)]))

    @classmethod
    def of(cls, method: MethodName, config: Hyperparameters) -> Self:
        """Returns the name of a method with the modifiers of its configuration."""
        modifiers = config.modifiers if isinstance(config, SpreadConfig) else ()
        return cls("+".join([method, *modifiers]))

    @property
    def method(self) -> MethodName:
        """The method without its modifiers."""
        return MethodName(self.split("+")[0])

    @property
    def modifiers(self) -> tuple[Modifier, ...]:
        """The modifiers, in their order."""
        return tuple(map(Modifier, self.split("+")[1:]))

    def modify(self, config: Hyperparameters) -> Hyperparameters:
        """Returns a configuration of the method with these modifiers; its own are kept if there are none.

        Raises:
          ValueError: If the method takes no modifiers.
        """
        if not self.modifiers:
            return config
        if not isinstance(config, SpreadConfig):
            raise ValueError(
                f"{self}: {self.method} takes no modifiers, only the methods that spread an edit over layers as MEMIT "
                f"does take them: use {self.method}."
            )
        return dataclasses.replace(config, modifiers=self.modifiers)
