"""See ``../__init__.pyi``."""

from ml_collections.config_flags.config_flags import DEFINE_config_file as DEFINE_config_file
from ml_collections.config_flags.config_flags import get_config_filename as get_config_filename
