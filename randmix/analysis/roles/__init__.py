"""Roles for a model that declares none: what each parameter is for, by name and shape."""

from randmix.analysis.roles.proposal import Proposal, propose

__all__ = ["Proposal", "propose"]
