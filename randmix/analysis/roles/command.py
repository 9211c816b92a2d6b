"""The work of ``python -m randmix roles``."""

from collections.abc import Mapping
from typing import Any

from randmix.analysis.roles.proposal import Proposal, declared, propose
from randmix.config import Config
from randmix.models import counts
from randmix.training import runs

_PARAMS = "params"  # the collection of a model that declares no roles


def main(options: Any) -> None:
    """Prints the roles of the model of ``commands/roles.py``'s config."""
    name, variables, image_shape, num_classes = describe(options.config)
    found = for_variables(variables, image_shape, num_classes)
    says = "declares no roles; by names and shapes:" if _PARAMS in variables else "has roles:"
    print(f"{name} {says}\n\n{found}")
    if _PARAMS in variables and not found.selectors:
        print("\nThe selectors are longer than a config may have: write roles by module by hand.")


def describe(config: Config) -> tuple[str, dict[str, Any], tuple[int, int, int], int | None]:
    """Looks up a config's model and data; nothing is computed.

    Returns:
        ``(name, variables, image_shape, num_classes)``; the variables are shapes and dtypes by
        collection.

    Raises:
        UserError: a config value is invalid, or the data set is unknown.
    """
    resolved, dataset = runs.resolve(config)
    model = runs.build_model(resolved, dataset.num_classes, image_shape=dataset.image_shape)
    model.check_image_shape(dataset.image_shape)
    variables = counts.abstract_variables(model, dataset.image_shape)
    return config.model.name, variables, dataset.image_shape, dataset.num_classes


def for_variables(
    variables: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int | None
) -> Proposal:
    """Returns the roles of a model's variables: their collections, or else a proposal.

    Args:
        variables: parameters or their shapes by collection, and the state ``batch_stats``. A model
            with the collection ``params`` declares no roles.
        image_shape: (height, width, channels).
        num_classes: number of outputs, or None.
    """
    params = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    if _PARAMS not in params:
        return declared(params)
    only = params[_PARAMS] if len(params) == 1 else params
    return propose(only, image_shape=image_shape, num_classes=num_classes)
