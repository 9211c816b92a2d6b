"""Templates of the pages of HTML that commands write."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def template(
    package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None
) -> jinja2.Template:
    """Returns a template in a package's folder, which escapes values and refuses unknown names.

    Args:
        package: the package, such as "randmix.analysis".
        name: the template's file.
        filters: further filters by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters or {}
    return environment.get_template(name)
